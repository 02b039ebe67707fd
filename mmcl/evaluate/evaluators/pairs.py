"""Hard-negative tests of images and texts: SugarCrepe and Winoground.

Comparisons are strict. Ties count as wrong, so a model that gives every pair the same score gets 0 and not 100 %, as an argmax
would give it.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mmcl.errors import UserError
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.reporting.clusters import clusters_note
from mmcl.evaluate.reporting.metric import metric_rows
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.task import CachedModel, Task, needs, require_text
from mmcl.evaluate.validation import Array, Values, as_tensor, cluster_numbers, same_width, unit_rows

EVALUATOR = "pairs"


def pairs(
    image_emb: Array,
    positive_emb: Array,
    negative_emb: Array,
    *,
    clusters: Values | None = None,
    data: str = "",
    model: str = "trained",
) -> Report:
    """Computes the share of images closer to their text than to a hard negative, as in SugarCrepe (Hsieh et al., 2023).

    Args:
        image_emb, positive_emb, negative_emb: finite rows [N, D]: each image, its text, and a wrong text.
        clusters: integers or strings [N], equal for comparisons that share an image or a group of images; the interval treats
            them as one draw.
        data, model: names of the data and the model in the report.

    Returns:
        `pairs_accuracy`; chance is 1/2.

    Raises:
        UserError: shapes do not match, or an embedding is not finite.

    Example:
        >>> image, text = np.eye(2), np.array([[1.0, 0.1], [0.1, 1.0]])
        >>> pairs(image, text, text[::-1])["pairs_accuracy"]
        1.0
    """
    image, positive = unit_rows(image_emb, "image_emb"), unit_rows(positive_emb, "positive_emb")
    negative = unit_rows(negative_emb, "negative_emb")
    for name, other in {"positive_emb": positive, "negative_emb": negative}.items():
        same_width(image, other, f"image_emb and {name}")
        if len(image) != len(other):
            raise UserError(f"image_emb has {len(image)} rows and {name} {len(other)}; give one of each for every comparison")
    right = (_cosine(image, positive) > _cosine(image, negative)).cpu().numpy()
    own = cluster_numbers(clusters, len(image))
    return Report(metric_rows(EVALUATOR, data, model, {"pairs_accuracy": statistics.mean(right, clusters=own)}))


def winoground(image_emb: Array, text_emb: Array, *, data: str = "", model: str = "trained") -> Report:
    """Evaluates pairs of images with texts of the same words, as in Winoground (Thrush et al., 2022, equations 1 to 3).

    Args:
        image_emb, text_emb: finite [N, 2, D]; text 0 describes image 0, and text 1 image 1.
        data, model: names of the data and the model in the report.

    Returns:
        `winoground_text` (each image is closer to its own text), `winoground_image` (each text is closer to its own image)
        and `winoground_group` (both); chance is 1/4, 1/4 and 1/6.

    Raises:
        UserError: shapes do not match, or an embedding is not finite.

    Example:
        >>> rows = np.eye(2)[None]  # one example of two images and their two texts
        >>> winoground(rows, rows)["winoground_group"]
        1.0
    """
    image, text = _twos(image_emb, "image_emb"), _twos(text_emb, "text_emb")
    same_width(image[0], text[0], "image_emb and text_emb")
    if len(image[0]) != len(text[0]):
        raise UserError(f"image_emb has {len(image[0])} examples and text_emb {len(text[0])}; give two of each for every one")
    score = [[_cosine(image[i], text[t]) for t in range(2)] for i in range(2)]
    texts = (score[0][0] > score[0][1]) & (score[1][1] > score[1][0])
    images = (score[0][0] > score[1][0]) & (score[1][1] > score[0][1])
    outcomes = {"winoground_text": texts, "winoground_image": images, "winoground_group": texts & images}
    return Report(
        metric_rows("winoground", data, model, {name: statistics.mean(right.cpu().numpy()) for name, right in outcomes.items()})
    )


def _check(task: Task, has_text: bool) -> None:
    require_text(EVALUATOR, has_text)
    for index in range(len(task.source)):
        sample = task.source[index]
        if not sample.captions or not sample.negatives:
            raise UserError(f"{sample.name}: has no caption or no negative text, which {EVALUATOR} needs")


@needs(_check, reads=["negatives"])
def evaluate_pairs(model: CachedModel, task: Task) -> Report:
    """Evaluates `pairs` on a source with hard negatives: each image's first caption against its negative texts; with chance.

    Raises:
        UserError: the model has no text tower, or a sample has no caption or no negative text.
    """
    samples = [task.source[index] for index in range(len(task.source))]
    rows = np.repeat(np.arange(len(samples)), [len(sample.negatives) for sample in samples])
    positive = model.encode_text([samples[row].captions[0] for row in rows])
    negative = model.encode_text([text for sample in samples for text in sample.negatives])
    image_emb = model.images(task.source)[rows]
    groups = task.source.groups
    clusters = rows if groups is None else groups[rows]
    report = pairs(image_emb, positive, negative, clusters=clusters, data=task.name, model=model.name)
    report += Report(notes=clusters_note(EVALUATOR, task.name, clusters, unit="image" if groups is None else "group"))
    if task.baselines:
        report += Report(metric_rows(EVALUATOR, task.name, "chance", {"pairs_accuracy": statistics.exact(0.5, len(rows))}))
    return report


def _cosine(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """float32 [N], computed in float64: equal rows have equal scores."""
    return (a_ND.double() * b_ND.double()).sum(dim=1).float()


def _twos(rows: Array, name: str) -> tuple[Tensor, Tensor]:
    emb_N2D = as_tensor(rows, name)
    if emb_N2D.ndim != 3 or emb_N2D.shape[1] != 2:
        raise UserError(f"{name} must be [N, 2, D], not {list(emb_N2D.shape)}")
    return unit_rows(emb_N2D[:, 0], f"{name}[:, 0]"), unit_rows(emb_N2D[:, 1], f"{name}[:, 1]")
