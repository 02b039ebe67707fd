"""Widths and weights of prefixes, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmcl.core.prefixes import check_narrower, checked_shares, unit_prefix
from mmcl.errors import UserError


def test_a_prefix_is_cut_then_scaled_and_rows_of_this_width_stay_themselves(rng: torch.Generator) -> None:
    rows = torch.randn(5, 7, generator=rng, dtype=torch.float64)
    rows[2, :3] = 0
    for row, found in zip(rows.tolist(), unit_prefix(rows, 3).tolist(), strict=True):
        length = sum(value**2 for value in row[:3]) ** 0.5
        assert found == pytest.approx([value / length if length else 0 for value in row[:3]], rel=1e-12)
    assert unit_prefix(rows, 7) is rows
    assert unit_prefix(rows.bfloat16(), 3).dtype == torch.float32


def test_shares_are_relative() -> None:
    assert checked_shares([2, 3, 4], None) == (0.25, 0.25, 0.25, 0.25)
    of_numpy: Any = (np.int64(8),)
    assert checked_shares(of_numpy, [1, 3]) == (0.25, 0.75)


BAD: dict[str, tuple[Any, Any, str]] = {
    "none": ([], None, r"in\.dims is \[\]: give a list of widths"),
    "a number": (64, None, r"in\.dims is 64: give a list of widths"),
    "a fraction": ([64.0], None, r"in\.dims has 64\.0: give whole numbers of 2 or more"),
    "a sign only": ([4, 1], None, r"in\.dims has 1: give whole numbers of 2 or more"),
    "negative": ([-4], None, r"in\.dims has -4: give whole"),
    "twice": ([4, 8, 4], None, r"in\.dims repeats a width: 4, 8, 4; give each once"),
    "a weight for each of dims alone": (
        [4, 8],
        [1, 1],
        r"in\.weights are 2: give 3, one for each of dims, then that of the full",
    ),
    "no weight": ([4, 8], [1, 0, 1], r"in\.weights has 0: give numbers above 0"),
    "no number": ([4, 8], [1, 1, "x"], r"in\.weights has 'x': give numbers above 0"),
    "infinite": ([4, 8], [1, 1, float("inf")], r"in\.weights has inf: give numbers above 0"),
    "NaN": ([4, 8], [1, 1, float("nan")], r"in\.weights has nan: give numbers above 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_other_widths_and_weights_are_named(case: str) -> None:
    dims, weights, message = BAD[case]
    with pytest.raises(UserError, match=message):
        checked_shares(dims, weights, "in.")


@pytest.mark.parametrize(("dim", "why"), [(8, "always counts"), (6, "is all there is")])
def test_a_prefix_is_narrower_than_the_rows(dim: int, why: str) -> None:
    with pytest.raises(UserError, match=f"dims has 8, and the full width, {dim}, {why}: give smaller ones"):
        check_narrower([4, 8], dim)
    check_narrower([4, 8], 9)


def test_zero_rows_have_a_finite_gradient() -> None:
    rows: Tensor = torch.zeros(2, 4, requires_grad=True)
    unit_prefix(rows, 2).sum().backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()
