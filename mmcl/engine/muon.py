"""Muon: momentum SGD in which the update of each matrix is orthogonalized."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim.muon import zeropower_via_newtonschulz
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from mmcl.engine.lars import kept_if_bad
from mmcl.engine.precision import is_faster_in_bf16

MOMENTUM = 0.95
COEFFICIENTS = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
"""Coefficients of the five Newton-Schulz steps (Cesista et al., "Squeezing 1-2% Efficiency Gains Out of Muon", 2025)."""


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024) with Nesterov's momentum and decoupled weight decay.

    The orthogonalized update is scaled by 0.2 sqrt(max(rows, columns)) times the learning rate, which matches the size of
    AdamW's updates (Liu et al., "Muon is Scalable for LLM Training", 2025, section 2.2). In contrast to timm's Muon, every
    parameter is orthogonalized, whatever its shape, and sharded parameters are orthogonalized as a whole.

    Args:
        params: matrices and convolution kernels, which are reshaped to out x rest; or groups of them.
        lr: learning rate.
        weight_decay: decoupled weight decay; each step subtracts this times the learning rate times the weight.

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
        momentum = state["momentum_buffer"]
        momentum.copy_(kept_if_bad(self, momentum, momentum.lerp(gradient, 1 - MOMENTUM)))
        direction = orthogonalized(gradient.lerp(momentum, MOMENTUM))
        rows, columns = len(parameter), parameter.numel() // len(parameter)
        size = 0.2 * max(rows, columns) ** 0.5
        moved = parameter.mul(1 - lr * weight_decay).add_(direction, alpha=-lr * size)
        parameter.copy_(kept_if_bad(self, parameter, moved))


def orthogonalized(matrix: Tensor) -> Tensor:
    """Return an approximation of the orthogonal polar factor of a matrix.

    It is computed in bfloat16, which suffices (Jordan et al., 2024), where the device has instructions for it, else in float32.
    A sharded matrix is gathered first: every process computes exactly the result of a single process and keeps its shard.
    (Iterating on shards would round sums in a different order.)

    Args:
        matrix: out x rest.

    Returns:
        A matrix of the same shape, in bfloat16 or float32, sharded as `matrix` is.
    """
    if isinstance(matrix, DTensor):
        whole = orthogonalized(matrix.full_tensor())
        return distribute_tensor(whole, matrix.device_mesh, matrix.placements, src_data_rank=None)
    dtype = torch.bfloat16 if is_faster_in_bf16(matrix.device) else torch.float32
    factor = zeropower_via_newtonschulz(matrix.flatten(1), len(COEFFICIENTS), COEFFICIENTS, dtype=dtype)
    return factor.reshape_as(matrix)
