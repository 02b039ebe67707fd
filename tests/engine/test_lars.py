"""LARS against timm, and on parameters that are sharded over processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.optim import Lars as TimmLars
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from mmcl.engine.lars import Lars
from tests.distributed.harness import run_processes

SHAPES = [(5, 7), (1, 1), (2, 9), (6, 4, 3, 3), (8,)]
SCALES = [0.0, 1e-6, 1.0, 1e3]
"""Of the gradient; rows of a parameter grow, so that shares have other norms than the whole."""
DECAYS = [0.0, 1e-6, 0.3]


def start_and_gradient(shape: tuple[int, ...], scale: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    growing = torch.arange(1.0, shape[0] + 1).view(-1, *[1] * (len(shape) - 1))
    return start * growing**2, gradient * scale


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("weight_decay", DECAYS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("adapted", [True, False])
def test_it_moves_as_timms_does(
    shape: tuple[int, ...], scale: float, weight_decay: float, momentum: float, adapted: bool
) -> None:
    """Without what it adds to the gradient's norm. What is not adapted moves as under torch's SGD."""
    start, gradient = start_and_gradient(shape, scale)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    options: dict[str, Any] = {"lr": 0.1, "momentum": momentum, "weight_decay": weight_decay}
    reference = TimmLars([theirs], **options, eps=0.0, always_adapt=True) if adapted else torch.optim.SGD([theirs], **options)
    for optimizer in (Lars([ours], **options, adapted=adapted), reference):
        for step in range(3):
            ours.grad, theirs.grad = gradient * (step + 1), gradient * (step + 1)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_zeros_and_what_has_no_gradient() -> None:
    """A parameter of zeros moves by its gradient as it is."""
    zeros, frozen = torch.zeros(3, 3, requires_grad=True), torch.ones(3, 3, requires_grad=True)
    zeros.grad = torch.ones(3, 3)
    Lars([zeros, frozen], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(zeros, torch.full((3, 3), -0.1))
    assert torch.equal(frozen, torch.ones(3, 3))


def of_shares(rank: int, world: int) -> list[Tensor]:
    mesh = init_device_mesh("cpu", (world,))
    found = []
    for shape in SHAPES:
        for scale in SCALES:
            for weight_decay in DECAYS:
                start, gradient = (distribute_tensor(x, mesh, [Shard(0)]) for x in start_and_gradient(shape, scale))
                moved = after_two_steps(start, gradient, weight_decay)
                assert isinstance(moved, DTensor)
                found.append(moved.full_tensor())
    return found


def after_two_steps(start: Tensor, gradient: Tensor, weight_decay: float) -> Tensor:
    parameter = start.clone().requires_grad_()
    optimizer = Lars([parameter], lr=0.1, weight_decay=weight_decay)
    for _ in range(2):
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_spread_parameter_moves_as_the_whole(world: int) -> None:
    expected = [
        after_two_steps(*start_and_gradient(shape, scale), decay) for shape in SHAPES for scale in SCALES for decay in DECAYS
    ]
    for found in run_processes(world, of_shares):
        for ours, whole in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, whole, rtol=1e-13, atol=0)
