"""Over W processes with different data: the loss and every gradient are those of one process with the whole batch."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from mmcl.core.gather import gather_rows
from mmcl.methods import METHODS
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings
from tests.distributed.harness import run_processes
from tests.methods.toy import toy_batch, toy_method

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


def loss_and_gradients(method: Method, batch: Batch, rank: int, world: int) -> dict[str, Tensor]:
    """This process's rows of the batch; gradients summed over the processes, as the engine has them summed."""
    share = len(batch.ids) // world
    part = slice(rank * share, (rank + 1) * share)
    local = Batch({name: view[part] for name, view in batch.views.items()}, batch.ids[part], batch.index[part])  # type: ignore[index]
    rows = method.encode(local.views)
    everything = {name: gather_rows(x) for name, x in rows.items()}
    embeddings = Embeddings(rows, everything, local.ids, gather_rows(local.ids), rank * share)
    loss = method.loss(embeddings, local).loss
    loss.backward()
    result = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in method.named_parameters()}
    result["loss"] = loss.detach()
    if world > 1:
        for tensor in result.values():
            torch.distributed.all_reduce(tensor)
    return result


def work(rank: int, world: int, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    return loss_and_gradients(toy_method(name, dtype), toy_batch(name, 12, dtype), rank, world)


@functools.cache
def alone(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    return loss_and_gradients(toy_method(name, dtype), toy_batch(name, 12, dtype), 0, 1)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("name", METHODS)
def test_gradients_equal_those_of_one_process(name: str, world: int, dtype: torch.dtype) -> None:
    expected = alone(name, dtype)
    assert any("log_scale" in key for key in expected) == (name == "clip")
    for result in run_processes(world, work, name, dtype):
        for key, value in expected.items():
            error = (result[key] - value).norm() / value.norm().clamp(min=1e-30)
            assert error <= TOLERANCE[dtype], f"{key}: relative error {error:.1e}"


def weighted_squares(rank: int, world: int, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3, dtype=dtype))
    data = torch.arange(4 * world, dtype=dtype).view(world, 4)[rank : rank + 1]
    rows = gather_rows(data @ weight)
    (rows.square().sum() * (rank + 1)).backward()
    assert weight.grad is not None
    return weight.grad


def test_every_rank_contributes_to_the_gradient_of_a_row() -> None:
    """Rank r weighs the sum of squares by r + 1; a row's gradient must carry the weights of all ranks."""
    world, dtype = 3, torch.float64
    torch.manual_seed(0)
    weight = torch.randn(4, 3, dtype=dtype)
    data = torch.arange(4 * world, dtype=dtype).view(world, 4)
    for rank, gradient in enumerate(run_processes(world, weighted_squares, dtype)):
        row = data[rank : rank + 1]
        expected = row.T @ (2 * row @ weight) * sum(range(1, world + 1))
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)
