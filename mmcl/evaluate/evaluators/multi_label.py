"""Multi-label zero-shot classification: an image may show several classes, or none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mmcl.errors import UserError
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.measures.ranking import cosine_scores
from mmcl.evaluate.reporting.metric import metric_rows
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.validation import Array, as_tensor, same_width, unit_rows

EVALUATOR = "zero_shot_multilabel"
_BLOCK = 2**22


def zero_shot_multilabel(
    image_emb: Array,
    target_NC: Array | Sequence[Sequence[int]],
    class_emb: Array,
    *,
    class_names: Sequence[str] | None = None,
    data: str = "",
    model: str = "trained",
) -> Report:
    """Computes mean average precision: the images are ranked for each class by their cosine with it.

    Average precision equals scikit-learn's `average_precision_score`: equal scores form one threshold. Classes that no image
    shows are left out of the mean.

    Args:
        image_emb: finite rows [N, D], scaled to unit length.
        target_NC: [N, C], 1 where the image shows the class, else 0.
        class_emb: [C, D], as returned by `class_embeddings`.
        class_names: C names, for the details.
        data, model: names of the data and the model in the report.

    Returns:
        `zero_shot_mAP`; n is the number of classes that at least one image shows, and the interval is over these classes.
        `details` contains the average precision and the number of images of each class.

    Raises:
        UserError: shapes do not match, a target is not 0 or 1 or no image shows a class, or an embedding is not finite.

    Example:
        >>> zero_shot_multilabel(np.eye(2), [[1, 0], [1, 1]], np.eye(2))["zero_shot_mAP"]
        1.0
    """
    from sklearn.metrics import average_precision_score

    image, classes = unit_rows(image_emb, "image_emb"), unit_rows(class_emb, "class_emb")
    same_width(image, classes, "image_emb and class_emb")
    target = as_tensor(target_NC, "target_NC").cpu().numpy()
    if target.shape != (len(image), len(classes)) or not np.isin(target, (0, 1)).all():
        raise UserError(f"target_NC must be {len(image)} x {len(classes)} of 0 and 1, not {target.dtype} {list(target.shape)}")
    if class_names is not None and len(class_names) != len(classes):
        raise UserError(f"{len(class_names)} class_names for the {len(classes)} rows of class_emb; give one name per row")
    shown = np.flatnonzero(target.any(axis=0))
    if not len(shown):
        raise UserError("target_NC is 0 everywhere: no image shows a class, so there is nothing to find")
    precision: list[float | None] = [None] * len(classes)
    for part in np.array_split(shown, -(-len(shown) * len(image) // _BLOCK)):
        # Each class is a query, so that only some columns of the N x C scores are in memory at a time.
        score = cosine_scores(classes[torch.from_numpy(part)], image)(slice(0, len(part))).cpu().numpy()
        for number, row in zip(part.tolist(), score, strict=True):
            precision[number] = float(average_precision_score(target[:, number], row))
    estimate = statistics.mean(np.array([precision[number] for number in shown]))
    place = ", ".join(word for word in (EVALUATOR, data, model) if word)
    table = {
        "class": [str(name) for name in class_names or range(len(classes))],
        "n": target.sum(axis=0).astype(int).tolist(),
        "average_precision": precision,
    }
    note = f"{EVALUATOR}{', ' + data if data else ''}: {len(shown)} of {len(classes)} classes have images."
    return Report(
        metric_rows(EVALUATOR, data, model, {"zero_shot_mAP": estimate}),
        notes=(note,) if len(shown) < len(classes) else (),
        details={f"per class: {place}": table},
    )
