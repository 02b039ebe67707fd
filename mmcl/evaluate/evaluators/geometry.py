"""Geometry of embeddings on the unit sphere: collapse, and the gap between images and texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mmcl.core import geometry as sphere
from mmcl.errors import UserError
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.reporting.metric import metric_rows
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.task import CachedModel, Task, needs
from mmcl.evaluate.validation import Array, as_tensor, same_width, unit_rows
from mmcl.rng import permutation

EVALUATOR = "geometry"
ROWS = 4096
"""Maximum number of rows for uniformity, which compares all pairs; more rows are subsampled at random."""


def geometry(
    image_emb: Array,
    text_emb: Array | None = None,
    *,
    pairs: Sequence[tuple[int, int]] | np.ndarray | None = None,
    data: str = "",
    model: str = "trained",
) -> Report:
    """Measures the geometry of unit-length embeddings; see core/geometry.py for the papers.

    Args:
        image_emb: finite rows [N, D], N at least 2; they are scaled to unit length.
        text_emb: finite rows [M, D] of the other modality.
        pairs: integers [P, 2], row numbers of an image and a text that belong together; by default row i with row i.
        data, model: names of the data and the model in the report.

    Returns:
        `uniformity`, `effective_rank` and `feature_std` of the images; with texts also `uniformity_text` and so on,
        `alignment` of the pairs and `modality_gap`. They describe this set of rows and have no confidence interval.

    Raises:
        UserError: shapes do not match, an embedding is not finite or all zeros, or a side has only one row.

    Example:
        >>> report = geometry(np.eye(4), np.eye(4))
        >>> round(report["effective_rank"], 4), round(report["alignment"], 4)
        (4.0, 0.0)
    """
    image = unit_rows(image_emb, "image_emb")
    values = _of_rows(image, "image_emb", "")
    if text_emb is not None:
        text = unit_rows(text_emb, "text_emb")
        same_width(image, text, "image_emb and text_emb")
        row = _pairs(pairs, len(image), len(text))
        values |= _of_rows(text, "text_emb", "_text")
        values["alignment"] = float(sphere.alignment(image[row[:, 0]], text[row[:, 1]]))
        values["modality_gap"] = float(sphere.modality_gap(image, text))
    estimates = {name: statistics.exact(value, len(image)) for name, value in values.items()}
    return Report(metric_rows(EVALUATOR, data, model, estimates))


@needs(lambda task, has_text: None)
def evaluate_geometry(model: CachedModel, task: Task) -> Report:
    """Evaluates `geometry` of a source's images and, if the model and the source support texts, of their first captions.

    A single image has no geometry; it is left out with a note.
    """
    if len(task.source) < 2:
        return Report(notes=(f"{EVALUATOR}, {task.name}: not evaluated, because it compares pairs and there is one image.",))
    samples = [task.source[index] for index in range(len(task.source))]
    captioned = [index for index, sample in enumerate(samples) if sample.captions]
    image_emb = model.images(task.source)
    if not model.model.has_text or len(captioned) < 2:
        return geometry(image_emb, data=task.name, model=model.name)
    text_emb = model.encode_text([samples[index].captions[0] for index in captioned])
    pairs = np.stack([captioned, np.arange(len(captioned))], axis=1)
    return geometry(image_emb, text_emb, pairs=pairs, data=task.name, model=model.name)


def _of_rows(x_ND: torch.Tensor, name: str, suffix: str) -> dict[str, float]:
    if len(x_ND) < 2:
        raise UserError(f"{name} has one row, and geometry is about pairs; give 2 rows or more")
    zeros = (~x_ND.any(dim=1)).nonzero().flatten()
    if len(zeros):
        raise UserError(f"{name} has {len(zeros)} rows of zeros, which lie nowhere on the sphere, first row {int(zeros[0])}")
    drawn = x_ND if len(x_ND) <= ROWS else x_ND[permutation(len(x_ND), 0)[:ROWS]]
    return {
        f"uniformity{suffix}": float(sphere.uniformity(drawn)),
        f"effective_rank{suffix}": float(sphere.effective_rank(x_ND)),
        f"feature_std{suffix}": float(sphere.feature_std(x_ND)),
    }


def _pairs(pairs: Sequence[tuple[int, int]] | np.ndarray | None, images: int, texts: int) -> torch.Tensor:
    if pairs is None and images != texts:
        raise UserError(f"{images} images and {texts} texts: say by `pairs` which rows belong together")
    row = torch.arange(images)[:, None].expand(-1, 2) if pairs is None else as_tensor(pairs, "pairs")
    if row.ndim != 2 or row.shape[1] != 2 or row.is_floating_point() or len(row) == 0:
        raise UserError(f"pairs must be integers [P, 2] with P >= 1, not {row.dtype} {list(row.shape)}")
    if bool((row < 0).any()) or bool((row >= torch.tensor([images, texts])).any()):
        raise UserError(f"pairs names a row that does not exist: there are {images} images and {texts} texts")
    return row
