"""What evaluators accept: NumPy arrays or tensors, checked once, so that a bad number is an error and never a score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmcl.errors import UserError

Array = np.ndarray | Tensor

_PART = 4096


def features(rows: Array, name: str) -> Tensor:
    """Checks rows of features: float32 [N, D] on the device they came on. Raises UserError unless 2-D, not empty and finite."""
    feature_ND = torch.as_tensor(rows).detach()
    if feature_ND.ndim != 2 or 0 in feature_ND.shape:
        raise UserError(f"{name} must be [N, D] with N, D >= 1, not {list(feature_ND.shape)}")
    feature_ND = feature_ND.float()
    # In parts: the check would take twice the memory of the rows.
    bad = torch.cat([~part.isfinite().all(dim=1) for part in feature_ND.split(_PART)]).nonzero().flatten()
    if len(bad):
        raise UserError(
            f"{name} has {len(bad)} rows that are not finite, first row {int(bad[0])}; mend the model, not the score"
        )
    return feature_ND


def unit_rows(rows: Array, name: str) -> Tensor:
    """`features`, each row scaled to unit length; a row of zeros stays zero and has cosine 0 with everything."""
    return torch.nn.functional.normalize(features(rows, name), dim=1)


def integers(values: Array | Sequence[int], name: str, length: int) -> Tensor:
    """Checks ids or labels: int64 [length]. Raises UserError for another length or for numbers with a fraction."""
    vector = torch.as_tensor(values)
    if vector.shape != (length,):
        raise UserError(f"{name} must be [{length}], one for each row, not {list(vector.shape)}")
    if vector.is_floating_point() or vector.is_complex():
        raise UserError(f"{name} must be integers, not {vector.dtype}")
    return vector.long()


def same_width(first: Tensor, second: Tensor, names: str) -> None:
    """Raises UserError unless both have the same number of columns."""
    if first.shape[1] != second.shape[1]:
        raise UserError(f"{names} must have the same width, not {first.shape[1]} and {second.shape[1]}")


def cutoffs(ks: Sequence[int], name: str = "ks") -> tuple[int, ...]:
    """Checks a list of cut-offs k: each at least 1; returns them in ascending order without repetition."""
    if not ks or any(int(k) != k or k < 1 for k in ks):
        raise UserError(f"{name} must be one or more integers of at least 1, not {tuple(ks)}")
    return tuple(sorted({int(k) for k in ks}))
