"""P x K batches: a step has K samples of each of P classes, a round all classes, and a lap all samples of a class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.data.batches.class_order import ClassOrder
from mmcl.errors import UserError
from tests.data.test_loader import TWO, Toy, batches, rows

Case = tuple[np.ndarray, ClassOrder]

GOLDEN = [[18, 28, 16, 26, 9, 29], [5, 20, 22, 27, 28, 18], [11, 1, 3, 23, 19, 14], [0, 25, 7, 12, 16, 26]]


@st.composite
def orders(draw: st.DrawFn) -> Case:
    """Labels, some of them missing, and an order that fits their classes."""
    labels_N = np.array(draw(st.lists(st.integers(-1, 5), min_size=1, max_size=40).filter(lambda x: max(x) >= 0)))
    classes = len(np.unique(labels_N[labels_N >= 0]))
    samples = draw(st.integers(1, 5))
    return labels_N, ClassOrder(labels_N, draw(st.integers(1, classes)) * samples, samples, draw(st.integers(0, 99)))


@given(orders(), st.integers(0, 10**6))
def test_a_step_has_k_samples_of_each_of_p_classes(case: Case, step: int) -> None:
    labels_N, order = case
    shown = labels_N[order.rows(step)[1]].reshape(order.classes_per_step, order.samples_per_class)
    assert (shown >= 0).all()
    assert (shown == shown[:, :1]).all()
    assert len(np.unique(shown[:, 0])) == order.classes_per_step


@given(orders(), st.integers(0, 1000))
def test_a_round_shows_every_class(case: Case, number: int) -> None:
    labels_N, order = case
    classes = np.unique(labels_N[labels_N >= 0])
    steps = -(-len(classes) // order.classes_per_step)
    shown = np.concatenate([labels_N[order.rows(number * steps + step)[1]] for step in range(steps)])
    assert set(shown) == set(classes)


@given(orders())
def test_nothing_is_drawn_twice_and_every_lap_shows_a_whole_class(case: Case) -> None:
    labels_N, order = case
    shown = [pair for step in range(60) for pair in zip(*(part.tolist() for part in order.rows(step)), strict=True)]
    assert len(set(shown)) == len(shown), "equal pairs of epoch and sample would get equal draws"
    for label in np.unique(labels_N[labels_N >= 0]):
        members = set(np.flatnonzero(labels_N == label))
        own = [(epoch, index) for epoch, index in shown if index in members and epoch % 2 == 0]
        for lap in range(0, max(epoch for epoch, _ in own), 2):
            assert {index for epoch, index in own if epoch == lap} == members


@given(orders(), st.integers(0, 10**6), st.data())
def test_ranks_one_after_the_other_are_the_global_batch(case: Case, step: int, data: st.DataObject) -> None:
    _, order = case
    world = data.draw(st.sampled_from([w for w in range(1, order.batch_size + 1) if order.batch_size % w == 0]))
    shares = [order.rows(step, rank, world) for rank in range(world)]
    for part in (0, 1):
        assert np.concatenate([share[part] for share in shares]).tolist() == order.rows(step)[part].tolist()


def test_the_first_rows_never_change() -> None:
    order = ClassOrder(np.arange(30) % 5, 6, 2, seed=7)
    assert [order.rows(step)[1].tolist() for step in range(4)] == GOLDEN


def test_a_small_class_is_shown_several_times_in_a_step_with_other_draws() -> None:
    epoch, index = ClassOrder(np.array([0, 1, 1, 1]), 6, 3, seed=0).rows(0)
    assert sorted(index) == [0, 0, 0, 1, 2, 3]
    assert sorted(epoch[index == 0]) == [0, 2, 4]


def test_batches_are_the_same_for_any_number_of_processes() -> None:
    labels = [i % 4 for i in range(40)]
    source = Toy(labels=labels)
    order = ClassOrder(np.array(labels), 12, 4, seed=3)
    whole = batches(source, views=TWO, order=order)
    for world in (2, 3, 4):
        ranks = [batches(source, views=TWO, order=order, rank=rank, world=world) for rank in range(world)]
        for step in range(4):
            assert [row for part in ranks for row in rows(part[step])] == rows(whole[step])


@pytest.mark.parametrize(("batch_size", "samples"), [(10, 4), (24, 4), (4, 8)])
def test_batches_that_do_not_fit(batch_size: int, samples: int) -> None:
    with pytest.raises(UserError, match=rf"choose a multiple of it, up to {5 * samples} for 5 classes"):
        ClassOrder(np.arange(30) % 5, batch_size, samples, seed=0)
