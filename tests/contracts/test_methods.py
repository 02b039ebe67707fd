"""What must hold for every registered method."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from mmcl.methods import METHODS
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings
from tests.methods.toy import toy_batch, toy_method

pytestmark = pytest.mark.parametrize("name", METHODS)


def embed(method: Method, batch: Batch) -> Embeddings:
    rows = method.encode(batch.views)
    return Embeddings(rows, rows, batch.ids, batch.ids)


def loss_of(method: Method, batch: Batch) -> Tensor:
    return method.loss(embed(method, batch), batch).loss


def permuted(batch: Batch, order: Tensor) -> Batch:
    return Batch({name: view[order] for name, view in batch.views.items()}, batch.ids[order], batch.index[order])  # type: ignore[index]


def test_declares_its_views_and_what_it_exports(name: str) -> None:
    method = toy_method(name)
    assert set(method.views.values()) == set(method.towers)
    assert method.embedding in ("projection", "features")


def test_rows_are_of_unit_length(name: str) -> None:
    for rows in toy_method(name).encode(toy_batch(name, 6).views).values():
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(6, dtype=rows.dtype))


def test_loss_is_pure(name: str) -> None:
    method, batch = toy_method(name), toy_batch(name, 6)
    before = copy.deepcopy(method.state_dict())
    first, second = loss_of(method, batch), loss_of(method, batch)
    assert torch.equal(first, second)
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())


def test_permuting_the_batch_changes_nothing(name: str) -> None:
    method, batch = toy_method(name), toy_batch(name, 9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(loss_of(method, permuted(batch, order)), loss_of(method, batch), rtol=1e-12, atol=0)


def test_swapping_the_views_changes_nothing(name: str) -> None:
    """The same embeddings under swapped names: every method here is symmetric."""
    method, batch = toy_method(name), toy_batch(name, 6)
    straight = embed(method, batch)
    names = list(straight.local)
    rows = {a: straight.local[b] for a, b in zip(names, reversed(names), strict=True)}
    swapped = Embeddings(rows, rows, batch.ids, batch.ids)
    torch.testing.assert_close(method.loss(swapped, batch).loss, method.loss(straight, batch).loss, rtol=1e-12, atol=0)


def test_a_batch_of_one_and_ragged_batches_are_finite(name: str) -> None:
    method = toy_method(name)
    for rows in (1, 2, 7):
        loss = loss_of(method, toy_batch(name, rows))
        loss.backward()
        assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_every_parameter_learns(name: str) -> None:
    method = toy_method(name)
    loss_of(method, toy_batch(name, 8)).backward()
    assert [key for key, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_training_lowers_the_loss(name: str) -> None:
    method, batch = toy_method(name), toy_batch(name, 8)
    optimiser = torch.optim.AdamW(method.parameters(), lr=1e-2)
    losses = []
    for _ in range(50):
        embeddings = embed(method, batch)
        loss = method.loss(embeddings, batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.commit(embeddings, batch)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
