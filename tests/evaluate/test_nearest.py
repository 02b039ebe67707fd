"""The exact nearest-neighbor kernel against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmcl.core.nearest import nearest
from tests.arithmetic import sum_tolerance
from tests.evaluate.toys import unit


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("chunk_size", [None, 1, 7])
def test_equals_a_full_sort(k: int, chunk_size: int | None) -> None:
    query, key = unit((23, 19), 0), unit((40, 19), 1)
    score, row = nearest(torch.from_numpy(query), torch.from_numpy(key), k, chunk_size=chunk_size)
    full = query.astype(np.float64) @ key.astype(np.float64).T
    expected = np.argsort(-full, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(row, expected)
    np.testing.assert_allclose(score, np.take_along_axis(full, expected, 1), atol=sum_tolerance(19))


@pytest.mark.parametrize("keys", [1087, 1088, 4000, 4031])
def test_many_keys_equal_a_full_sort(keys: int) -> None:
    """Enough of them to be sought by groups, with and without some that fill no group; runs of good keys side by side."""
    query, key = unit((40, 9), 0), np.sort(unit((keys, 9), 1), axis=0)
    score, row = nearest(torch.from_numpy(query), torch.from_numpy(key), 1)
    full = query.astype(np.float64) @ key.astype(np.float64).T
    np.testing.assert_array_equal(row[:, 0], full.argmax(1))
    score, row = nearest(torch.from_numpy(query), torch.from_numpy(key), 30)
    np.testing.assert_array_equal(row, np.argsort(-full, axis=1, kind="stable")[:, :30])
    np.testing.assert_allclose(score, -np.sort(-full, axis=1)[:, :30], atol=sum_tolerance(9))


def test_equal_keys_come_in_row_order_whatever_the_block() -> None:
    key = np.repeat(unit((30, 37), 2), 3, axis=0)[np.random.default_rng(0).permutation(90)]
    query = torch.from_numpy(unit((50, 37), 3))
    full = (query.double().numpy() @ key.astype(np.float64).T).astype(np.float32)
    expected = np.argsort(-full, axis=1, kind="stable")[:, :7]
    for chunk_size in (1, 13, 50):
        np.testing.assert_array_equal(nearest(query, torch.from_numpy(key), 7, chunk_size=chunk_size)[1], expected)


@pytest.mark.parametrize("k", [0, 4])
def test_impossible_k_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="from 1 to the number of keys, 3"):
        nearest(torch.ones(2, 2), torch.ones(3, 2), k)
