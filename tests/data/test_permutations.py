"""Permutations of many elements are computed by element: bijections that look random and need no memory."""

from __future__ import annotations

import numpy as np
import pytest

from mmcl.data.batches import permutations
from mmcl.data.batches.mixed_order import MixedOrder
from mmcl.data.batches.order import Order
from mmcl.data.batches.permutations import Permutations

LARGE = 2**20 + 1
GOLDEN = [17413045, 67290488, 93050818]


def whole(size: int, number: int = 0, *key: int) -> np.ndarray:
    return Permutations(size, *key).at(np.full(size, number), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 63, 64, 65, 1000, 4097, 10_007])
def test_every_element_comes_once(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutations, "_LARGEST_LIST", 0)
    assert np.array_equal(np.sort(whole(size, 3, 1)), np.arange(size))


def test_both_sides_of_the_threshold_are_permutations() -> None:
    for size in (LARGE - 1, LARGE):
        assert np.bincount(whole(size, 1, 2)).tolist() == [1] * size


def test_an_element_does_not_depend_on_those_that_are_asked_with_it() -> None:
    numbers, places = np.array([5, 0, 7, 5]), np.array([LARGE - 1, 0, 12, 3])
    together = Permutations(LARGE, 8).at(numbers, places)
    alone = [Permutations(LARGE, 8).at(numbers[[row]], places[[row]]).item() for row in (3, 2, 1, 0)]
    assert together.tolist() == alone[::-1]


def test_elements_look_random() -> None:
    """Uniform, without correlation to their places, their neighbors, another epoch or another seed; 4 standard deviations."""
    size, count = 10**8, 40_000
    places, numbers = np.arange(count), np.zeros(count, np.int64)
    found = Permutations(size, 1).at(numbers, places)
    in_tenths = np.bincount(found * 10 // size, minlength=10)
    assert abs(in_tenths - count / 10).max() < 4 * (count * 0.09) ** 0.5
    others = {
        "places": places,
        "neighbors": np.roll(found, 1),
        "epoch": Permutations(size, 1).at(numbers + 1, places),
        "seed": Permutations(size, 2).at(numbers, places),
    }
    for name, other in others.items():
        assert abs(np.corrcoef(found, other)[0, 1]) < 4 / count**0.5, name


def test_the_values_never_change() -> None:
    """A run of years ago must continue with the same order."""
    assert Permutations(10**8, 0).at(np.zeros(3, np.int64), np.arange(3)).tolist() == GOLDEN


@pytest.mark.parametrize("world", [1, 2, 3])
def test_orders_of_many_samples_are_those_of_any_number_of_processes(world: int) -> None:
    mixed = MixedOrder({"a": LARGE, "b": 40}, {"a": LARGE, "b": 80}, batch_size=12, seed=4)
    for order in (Order(LARGE, 12, 4), mixed):
        step = LARGE // 12  # the batch in which the second epoch begins
        epochs, rows = order.rows(step)
        shares = [order.rows(step, rank, world) for rank in range(world)]
        assert np.concatenate([share for _, share in shares]).tolist() == rows.tolist()
        assert isinstance(order, MixedOrder) or set(epochs.tolist()) == {0, 1}
