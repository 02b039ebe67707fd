"""Prefixes of rows, each an embedding of its own (Kusupati et al., "Matryoshka Representation Learning", 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

from torch import Tensor

from mmcl.core.precision import unit_rows
from mmcl.errors import UserError


def unit_prefix(row_ND: Tensor, dim: int) -> Tensor:
    """Returns the first `dim` columns of rows, scaled to unit length; the rows themselves if they are no wider."""
    return row_ND if row_ND.shape[-1] == dim else unit_rows(row_ND[..., :dim])


def checked_shares(dims: Sequence[int], weights: Sequence[float] | None, where: str = "") -> tuple[float, ...]:
    """Returns the share of each prefix, and last that of the whole rows, in a mean; they sum to 1.

    Args:
        dims: widths of the prefixes.
        weights: relative weights in that order; None for equal ones.
        where: what stands before the names in messages.

    Raises:
        UserError: a width is not a whole number of at least 2, or is repeated; a weight is not above 0, or their number is off.
    """
    if not isinstance(dims, Sequence) or not dims:
        raise UserError(f"{where}dims is {dims!r}: give a list of widths, such as [64, 128]")
    for dim in dims:
        if not isinstance(dim, Integral) or dim < 2:  # of one column only the sign is left
            raise UserError(f"{where}dims has {dim!r}: give whole numbers of 2 or more")
    if len(set(dims)) < len(dims):
        raise UserError(f"{where}dims repeats a width: {', '.join(map(str, dims))}; give each once")
    weights = [1.0] * (len(dims) + 1) if weights is None else weights
    if len(weights) != len(dims) + 1:
        raise UserError(
            f"{where}weights are {len(weights)}: give {len(dims) + 1}, one for each of dims, then that of the full width"
        )
    for weight in weights:
        if not isinstance(weight, Real) or not 0 < weight < math.inf:
            raise UserError(f"{where}weights has {weight!r}: give numbers above 0")
    total = sum(weights)
    return tuple(weight / total for weight in weights)


def check_narrower(dims: Sequence[int], dim: int, where: str = "") -> None:
    """Raises UserError for a prefix that is not narrower than rows of `dim` columns."""
    wide = [one for one in dims if one >= dim]
    if wide:
        why = "always counts" if wide[0] == dim else "is all there is"
        raise UserError(f"{where}dims has {wide[0]}, and the full width, {dim}, {why}: give smaller ones")
