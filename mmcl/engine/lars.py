"""LARS: SGD in which each matrix moves in proportion to its norm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

TRUST = 0.001


class Lars(torch.optim.Optimizer):
    """SGD with momentum and a rate of its own for every parameter of the groups that are `adapted`.

    You et al., "Large Batch Training of Convolutional Networks", 2017, equation 6: the decayed gradient g + b w is multiplied
    by 0.001 |w| / (|g| + b |w|), and stays as it is where w or g is zero. The norms are those of whole parameters, also where
    these are spread over processes; timm's `Lars` takes other ones there on torch 2.10.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        momentum: of the sum of steps, in [0, 1).
        weight_decay: b.
        adapted: whether a group's parameters have rates of their own.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0, adapted: bool = True
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "adapted": adapted})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        step = gradient.add(parameter, alpha=group["weight_decay"])
        if group["adapted"]:
            step.mul_(_trust_ratio(parameter, gradient, group["weight_decay"]))
        state = self.state[parameter]
        if state:
            state["momentum_buffer"].mul_(group["momentum"]).add_(step)
        else:
            state["momentum_buffer"] = step
        parameter.add_(state["momentum_buffer"], alpha=-group["lr"])


def _trust_ratio(parameter: Tensor, gradient: Tensor, weight_decay: float) -> Tensor:
    weight, slope = _norm(parameter), _norm(gradient)
    ratio = TRUST * weight / (slope + weight_decay * weight)
    return torch.where((weight > 0) & (slope > 0), ratio, 1.0)


def _norm(tensor: Tensor) -> Tensor:
    """Of all of it, a scalar that every process holds."""
    norm = torch.linalg.vector_norm(tensor)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
