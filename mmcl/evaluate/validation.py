"""Validation of the arrays and tensors passed to evaluators, so that bad values raise errors and never affect a score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmcl.errors import UserError, first_line

Array = np.ndarray | Tensor
Values = np.ndarray | Tensor | Sequence[int] | Sequence[str]

_PART = 4096


def features(rows: Array, name: str) -> Tensor:
    """Checks rows of features: float32 [N, D] on their device. Raises UserError unless they are 2-D, not empty and finite."""
    feature_ND = as_tensor(rows, name).detach()
    if feature_ND.is_complex():
        raise UserError(f"{name} must be real numbers, not {feature_ND.dtype}")
    if feature_ND.ndim != 2 or 0 in feature_ND.shape:
        raise UserError(f"{name} must be [N, D] with N, D >= 1, not {list(feature_ND.shape)}")
    feature_ND = feature_ND.float()
    # In parts, because checking all rows at once would take twice their memory.
    bad = torch.cat([~part.isfinite().all(dim=1) for part in feature_ND.split(_PART)]).nonzero().flatten()
    if len(bad):
        raise UserError(
            f"{name} has {len(bad)} rows that are not finite, first row {int(bad[0])}; fix the model, not the score"
        )
    return feature_ND


def unit_rows(rows: Array, name: str) -> Tensor:
    """Checks rows like `features` and scales them to unit length; a zero row stays zero and has cosine 0 with every row."""
    return torch.cat([_at_unit_length(part) for part in features(rows, name).split(_PART)])


def _at_unit_length(row_ND: Tensor) -> Tensor:
    """Whatever their scale: the squares of long rows leave float32, and `normalize` leaves rows below 1e-12 short. Scaling by a
    power of two rounds nothing, so that rows of ordinary length get the very bits of `normalize`."""
    exponent_N1 = torch.frexp(row_ND.abs().amax(dim=1, keepdim=True)).exponent.clamp(-126, 126)
    return torch.nn.functional.normalize(torch.ldexp(row_ND, -exponent_N1), dim=1)


def integers(values: Values, name: str, length: int) -> Tensor:
    """Checks ids or labels: int64 [length]. Raises UserError for another length or for numbers with a fraction."""
    vector = as_tensor(values, name)
    if vector.shape != (length,):
        raise UserError(f"{name} must be [{length}], one for each row, not {list(vector.shape)}")
    if vector.is_floating_point() or vector.is_complex():
        raise UserError(f"{name} must be integers, not {vector.dtype}; convert them if they are whole numbers")
    return vector.long()


def cluster_numbers(values: Values | None, length: int) -> np.ndarray | None:
    """Checks clusters, integers or strings: int64 [length]. None without any. Raises UserError as `integers` does."""
    if values is not None and is_text(values):
        values = np.unique(np.asarray(values).astype(str), return_inverse=True)[1]
    return None if values is None else integers(values, "clusters", length).cpu().numpy()


def labels_or_ids(first: Values, second: Values, names: tuple[str, str], lengths: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Checks the labels or ids of two sides and returns them as integers; equal strings get equal numbers on both sides.

    Raises:
        UserError: a side has neither integers nor strings, a length is wrong, or one side has integers and the other strings.
    """
    texts = [is_text(values) for values in (first, second)]
    if texts[0] != texts[1]:
        raise UserError(f"{names[0]} and {names[1]} must both be integers or both be texts")
    if not texts[0]:
        return integers(first, names[0], lengths[0]), integers(second, names[1], lengths[1])
    sides = [np.asarray(values).astype(str) for values in (first, second)]
    if any(side.ndim != 1 for side in sides):
        raise UserError(f"{names[0]} and {names[1]} must be one text for each row")
    number = np.unique(np.concatenate(sides), return_inverse=True)[1]
    codes = np.split(number, [len(sides[0])])
    return integers(codes[0], names[0], lengths[0]), integers(codes[1], names[1], lengths[1])


def is_text(values: Values) -> bool:
    """Whether values are strings."""
    if isinstance(values, Tensor):
        return False
    return np.asarray(values).dtype.kind in "US" or (all(isinstance(value, str) for value in values) and len(values) > 0)


def as_tensor(values: object, name: str) -> Tensor:
    """Returns an array as a tensor that shares its memory; reversed, read-only or byte-swapped arrays are copied.

    Raises:
        UserError: the array is not numeric, or torch does not support its type.
    """
    try:
        if isinstance(values, np.ndarray):
            values = np.require(values, values.dtype.newbyteorder("="), "W")
            values = values.copy() if min(values.strides, default=0) < 0 else values
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{name} must be an array of numbers ({' '.join(first_line(error).split())})") from None


def same_width(first: Tensor, second: Tensor, names: str) -> None:
    """Raises UserError unless both have the same number of columns."""
    if first.shape[1] != second.shape[1]:
        raise UserError(f"{names} must have the same width, not {first.shape[1]} and {second.shape[1]}")


def cutoffs(ks: Sequence[int], name: str = "ks") -> tuple[int, ...]:
    """Checks a list of cut-offs k, each at least 1; returns the distinct values in ascending order."""
    try:
        given = [(int(k), k) for k in ks]
    except (TypeError, ValueError, OverflowError):  # not a list, or not of numbers
        given = []
    if not given or any(number != k or number < 1 for number, k in given):
        raise UserError(f"{name} must be a list of one or more integers of at least 1, not {ks!r}")
    return tuple(sorted({number for number, _ in given}))
