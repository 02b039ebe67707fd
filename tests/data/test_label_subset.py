"""Few-label subsets are stratified, nested, and depend only on the seed and the labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.data.derived.subset import label_subset

GOLDEN = [1, 6, 8, 11, 12, 14, 17, 35]

labels = st.lists(st.integers(-1, 4), min_size=1, max_size=60).map(np.array)


def classes(labels_N: np.ndarray) -> dict[int, int]:
    return {int(label): int((labels_N == label).sum()) for label in np.unique(labels_N[labels_N >= 0])}


@given(labels, st.floats(0.01, 1), st.integers(0, 99))
def test_every_class_keeps_its_share(labels_N: np.ndarray, share: float, seed: int) -> None:
    rows = label_subset(labels_N, share=share, seed=seed)
    assert classes(labels_N[rows]) == {label: max(1, round(share * n)) for label, n in classes(labels_N).items()}
    assert (labels_N[rows] >= 0).all()
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()


@given(labels, st.integers(1, 9), st.integers(0, 99))
def test_every_class_keeps_its_number(labels_N: np.ndarray, per_class: int, seed: int) -> None:
    rows = label_subset(labels_N, per_class=per_class, seed=seed)
    assert classes(labels_N[rows]) == {label: min(per_class, n) for label, n in classes(labels_N).items()}


@given(labels, st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_the_smaller_lies_within_the_larger(
    labels_N: np.ndarray, shares: tuple[float, float], numbers: tuple[int, int]
) -> None:
    small, large = (set(label_subset(labels_N, share=share, seed=3)) for share in sorted(shares))
    assert small <= large
    small, large = (set(label_subset(labels_N, per_class=number, seed=3)) for number in sorted(numbers))
    assert small <= large


def test_the_first_rows_never_change() -> None:
    labels_N = np.arange(40) % 4
    assert label_subset(labels_N, per_class=2, seed=0).tolist() == GOLDEN
    assert label_subset(labels_N, per_class=2, seed=1).tolist() != GOLDEN


def test_rows_are_drawn_evenly() -> None:
    drawn = [label_subset(np.zeros(20), per_class=5, seed=seed) for seed in range(400)]
    counts = np.bincount(np.concatenate(drawn), minlength=20)
    assert counts.sum() == 2000
    assert (np.abs(counts - 100) < 5 * np.sqrt(75)).all(), "within five deviations of the mean"


@pytest.mark.parametrize("size", [{}, {"share": 0.1, "per_class": 1}, {"share": 0.0}, {"share": 1.1}, {"per_class": 0}])
def test_invalid_sizes(size: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give"):
        label_subset(np.zeros(3), **size, seed=0)
