"""Muon: each step of a matrix is its momentum with all singular values made about one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim.muon import zeropower_via_newtonschulz
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

MOMENTUM = 0.95
COEFFICIENTS = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
"""Of the five steps of the Newton-Schulz iteration (Cesista et al., "Squeezing 1-2% Efficiency Gains Out of Muon", 2025)."""


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024) with Nesterov's momentum and decoupled weight decay.

    A step is 0.2 sqrt(max(rows, columns)) times the learning rate, the size of AdamW's (Liu et al., "Muon is Scalable for LLM
    Training", 2025, section 2.2). Differs from timm's in that every parameter is orthogonalised, whatever its shape, and as a
    whole where it is spread over processes.

    Args:
        params: matrices, and kernels of convolutions, taken as out x rest; or groups of them.
        lr: learning rate.
        weight_decay: subtracted from a weight with each step, times the learning rate and the weight.

    Example:
        >>> weight = torch.zeros(4, 6, requires_grad=True)
        >>> weight.grad = torch.eye(4, 6)
        >>> Muon([weight], lr=0.1).step()
        >>> weight[0, 0].abs() > 10 * weight[0, 1].abs()
        tensor(True)
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], group["weight_decay"])

    def _move(self, parameter: Tensor, lr: float, weight_decay: float) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        direction = orthogonalised(gradient.lerp(momentum, MOMENTUM))
        rows, columns = len(parameter), parameter.numel() // len(parameter)
        size = 0.2 * max(rows, columns) ** 0.5
        parameter.mul_(1 - lr * weight_decay).add_(direction, alpha=-lr * size)


def orthogonalised(matrix: Tensor) -> Tensor:
    """The orthogonal factor of a matrix (its polar decomposition), approximately and in bfloat16.

    One that is spread over processes is put together first: every process computes the same bits as a process alone, and keeps
    its share of them. (The iteration on shares would round sums in bfloat16 in another order.)

    Args:
        matrix: out x rest.

    Returns:
        Of the same shape, bfloat16, spread as `matrix` is.
    """
    if isinstance(matrix, DTensor):
        whole = orthogonalised(matrix.full_tensor())
        return distribute_tensor(whole, matrix.device_mesh, matrix.placements, src_data_rank=None)
    return zeropower_via_newtonschulz(matrix.flatten(1), len(COEFFICIENTS), COEFFICIENTS).reshape_as(matrix)
