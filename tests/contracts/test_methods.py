"""What must hold for every registered method."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from mmcl.methods import METHODS
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, RunFacts
from tests.methods.toy import embed, toy_batch, toy_method, train_step

pytestmark = pytest.mark.parametrize("name", METHODS)

FACTS = RunFacts(global_batch=8, total_steps=6, steps_per_epoch=2)


def loss_of(method: Method, batch: Batch) -> Tensor:
    return method.loss(embed(method, batch), batch).loss


def permuted(batch: Batch, order: Tensor) -> Batch:
    assert batch.labels is not None
    views = {name: view[order] for name, view in batch.views.items()}
    return Batch(views, batch.ids[order], batch.index[order], labels=batch.labels[order])


def test_declares_its_views_and_what_it_exports(name: str) -> None:
    method = toy_method(name)
    assert set(method.views.values()) == set(method.towers)
    assert method.embedding in ("projection", "features")
    assert method.positives in ("ids", "labels")


def test_rows_are_of_unit_length_where_the_loss_is_one_of_cosines(name: str) -> None:
    method = toy_method(name)
    lengths = torch.cat([rows.norm(dim=1) for rows in method.encode(toy_batch(method, 6).views).values()])
    assert torch.allclose(lengths, torch.ones_like(lengths)) == method.unit_rows


def test_loss_is_pure(name: str) -> None:
    method = toy_method(name)
    batch = toy_batch(method, 6)
    before = copy.deepcopy(method.state_dict())
    first, second = loss_of(method, batch), loss_of(method, batch)
    assert torch.equal(first, second)
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())


def test_commit_moves_no_tower_and_needs_no_optimiser_state(name: str) -> None:
    """What moves is a buffer, a teacher, or a parameter of the loss that is kept in its range."""
    method = toy_method(name)
    batch = toy_batch(method, 6)
    before = copy.deepcopy(method.state_dict())
    method.commit(embed(method, batch), batch)
    moved = {key for key, value in method.state_dict().items() if not torch.equal(before[key], value)}
    of_loss = {key for key, p in method.named_parameters() if any(p is q for q in method.loss_parameters)}
    learned = {key for key, p in method.named_parameters() if p.requires_grad}
    assert not moved & (learned - of_loss)


def test_permuting_the_batch_changes_nothing(name: str) -> None:
    method = toy_method(name)
    batch = toy_batch(method, 9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(loss_of(method, permuted(batch, order)), loss_of(method, batch), rtol=1e-12, atol=0)


def test_swapping_the_first_two_views_changes_nothing(name: str) -> None:
    """The same embeddings under swapped names, for all methods that make the same rows of both views."""
    method = toy_method(name)
    batch = toy_batch(method, 6)
    straight = embed(method, batch)
    rows = {_swapped(key, list(method.views)[:2]): value for key, value in straight.local.items()}
    if len(method.views) < 2 or rows.keys() != straight.local.keys():
        pytest.skip("asymmetric: the first two views do not make the same rows")
    swapped = Embeddings(rows, rows, straight.ids, straight.ids)
    torch.testing.assert_close(method.loss(swapped, batch).loss, method.loss(straight, batch).loss, rtol=1e-12, atol=0)


def _swapped(key: str, views: list[str]) -> str:
    """ "a" for "b" and "teacher_a" for "teacher_b"."""
    kind, _, view = key.rpartition("_")
    return "_".join(filter(None, (kind, dict(zip(views, reversed(views), strict=True)).get(view, view))))


def test_a_batch_of_one_and_ragged_batches_are_finite(name: str) -> None:
    method = toy_method(name)
    for rows in (1, 2, 7):
        loss = loss_of(method, toy_batch(method, rows))
        loss.backward()
        assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_every_parameter_learns_but_those_of_a_teacher(name: str) -> None:
    method = toy_method(name)
    loss_of(method, toy_batch(method, 8)).backward()
    idle = [key for key, p in method.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == [key for key, p in method.named_parameters() if not p.requires_grad]
    assert all("teacher" in key for key in idle)


def test_training_lowers_the_loss(name: str) -> None:
    method = toy_method(name)
    batch = toy_batch(method, 8)
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    losses = [train_step(method, optimiser, batch) for _ in range(100)]
    assert min(losses) < 0.5 * max(losses[:5])


def test_a_run_that_stops_and_goes_on_is_one_run(name: str) -> None:
    """Queues, teachers and counters are part of the state: six steps are three, a new process, and three more."""

    def started() -> tuple[Method, torch.optim.Optimizer]:
        method = toy_method(name)
        method.configure(FACTS)
        return method, torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)

    whole, optimiser = started()
    for _ in range(3):
        train_step(whole, optimiser, toy_batch(whole, 8))
    resumed, resumed_optimiser = started()
    resumed.load_state_dict(whole.state_dict())
    resumed_optimiser.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for _ in range(3):
        loss = train_step(whole, optimiser, toy_batch(whole, 8))
        assert torch.equal(train_step(resumed, resumed_optimiser, toy_batch(resumed, 8)), loss)
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())
