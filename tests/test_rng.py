"""The hash is splitmix64, and draws depend only on its integers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmcl import rng


def splitmix64(state: int) -> int:
    """The published generator's next output, in Python integers."""
    mask = (1 << 64) - 1
    z = state = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4))
def test_hash_is_chained_splitmix64(parts: list[int]) -> None:
    state = 0
    for part in parts:
        state = splitmix64(state ^ (part % 2**64))
    assert int(rng.hash_integers(*parts)) == state


def test_golden_values() -> None:
    """These may never change: they decide the order and the augmentation of every run."""
    assert rng.permutation(8, 0, 0).tolist() == [0, 1, 6, 3, 5, 4, 2, 7]
    assert rng.sample_seed(1, 2, 3) == 7510213797696614745


@given(st.integers(1, 300), st.integers(0, 2**31), st.integers(0, 1000))
def test_permutation_is_one(n: int, seed: int, epoch: int) -> None:
    order = rng.permutation(n, seed, epoch)
    assert sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, rng.permutation(n, seed, epoch))


def test_a_permutation_of_several_blocks_is_a_sort_by_hash() -> None:
    n = 3 * rng._BLOCK + 5
    assert np.array_equal(rng.permutation(n, 3, 1), np.argsort(rng.hash_integers(3, 1, np.arange(n)), kind="stable"))


def test_seeds_and_epochs_differ() -> None:
    orders = {tuple(rng.permutation(50, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_uniform_is_uniform_and_elementwise() -> None:
    draws = rng.uniform(3, np.arange(200_000))
    assert draws.min() >= 0
    assert draws.max() < 1
    counts, _ = np.histogram(draws, bins=100, range=(0, 1))
    chi_square = float(((counts - 2000) ** 2 / 2000).sum())
    assert chi_square < 150  # 99 degrees of freedom: the 99.9th percentile is 148
    assert rng.uniform(3, np.array([7, 9])).tolist() == [float(rng.uniform(3, 7)), float(rng.uniform(3, 9))]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4), st.integers(0, 100))
def test_a_few_numbers_are_those_of_an_array(key: list[int], k: int) -> None:
    assert rng.few_uniform(*key)(k) == rng.uniform(*key, np.arange(101))[k]
