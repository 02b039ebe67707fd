"""The sample order is a pure function of (seed, step), for any number of processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.data.batches.order import Order
from mmcl.errors import UserError

GOLDEN = json.loads((Path(__file__).parent / "golden_order.json").read_text())


def _splitmix(*parts: int) -> int:
    """The hash in Python's unbounded integers, from the published constants."""
    mask, state = 2**64 - 1, 0
    for part in parts:
        state = ((state ^ part) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state


def test_the_first_ids_never_change() -> None:
    order = Order(GOLDEN["size"], GOLDEN["batch_size"], GOLDEN["seed"])
    epoch, index = (np.concatenate(part) for part in zip(*(order.rows(step) for step in range(8)), strict=True))
    assert index[:64].tolist() == GOLDEN["index"]
    assert epoch[:64].tolist() == GOLDEN["epoch"]


def test_the_golden_ids_are_a_sort_by_hash() -> None:
    size, seed = GOLDEN["size"], GOLDEN["seed"]
    expected = [i for epoch in range(3) for i in sorted(range(size), key=lambda i: _splitmix(seed, epoch, i))]
    assert expected[:64] == GOLDEN["index"]


@given(size=st.integers(1, 40), data=st.data())
def test_ranks_one_after_the_other_are_the_global_batch(size: int, data: st.DataObject) -> None:
    batch_size = data.draw(st.integers(1, size))
    world = data.draw(st.sampled_from([w for w in range(1, batch_size + 1) if batch_size % w == 0]))
    step, seed = data.draw(st.integers(0, 10**6)), data.draw(st.integers(0, 2**31))
    order = Order(size, batch_size, seed)
    shares = [order.rows(step, rank, world) for rank in range(world)]
    for part in (0, 1):
        assert np.concatenate([share[part] for share in shares]).tolist() == order.rows(step)[part].tolist()


@given(size=st.integers(1, 40), data=st.data())
def test_every_epoch_shows_every_sample_once(size: int, data: st.DataObject) -> None:
    order = Order(size, data.draw(st.integers(1, size)), data.draw(st.integers(0, 100)))
    steps = order.steps(3)
    assert (steps - 1) * order.batch_size < 3 * size <= steps * order.batch_size
    epoch, index = (np.concatenate(part) for part in zip(*(order.rows(step) for step in range(steps)), strict=True))
    assert epoch[: 3 * size].tolist() == np.repeat([0, 1, 2], size).tolist()
    for number in range(3):
        assert sorted(index[epoch == number]) == list(range(size)), "no sample is dropped or shown twice"


def test_epochs_and_seeds_differ() -> None:
    order, other = Order(100, 100, 0), Order(100, 100, 1)
    assert order.rows(0)[1].tolist() != order.rows(1)[1].tolist()
    assert order.rows(0)[1].tolist() != other.rows(0)[1].tolist()


@pytest.mark.parametrize(
    ("size", "batch_size", "message"), [(0, 1, "empty"), (10, 11, "choose 1 to 10"), (10, 0, "choose 1 to")]
)
def test_impossible_batches(size: int, batch_size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Order(size, batch_size, 0)


def test_a_batch_that_cannot_be_shared() -> None:
    with pytest.raises(UserError, match="multiple of 3"):
        Order(10, 8, 0).rows(0, 0, 3)
