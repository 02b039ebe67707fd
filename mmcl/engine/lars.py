"""LARS: SGD in which each matrix is updated in proportion to its norm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

TRUST = 0.001


class Lars(torch.optim.Optimizer):
    """SGD with momentum and an individual learning rate for every parameter of the groups that are `adapted`.

    You et al., "Large Batch Training of Convolutional Networks", 2017, equation 6: the decayed gradient g + b w is multiplied
    by 0.001 |w| / (|g| + b |w|), and is unchanged if w or g is zero. Norms are computed over whole parameters, even if these
    are sharded over processes; timm's `Lars` computes different norms in that case on torch 2.10.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        momentum: momentum factor, in [0, 1).
        weight_decay: b.
        adapted: whether the parameters of a group have individual learning rates.
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
        if not state:
            state["momentum_buffer"] = torch.zeros_like(step)
        momentum = state["momentum_buffer"]
        step.add_(momentum, alpha=group["momentum"])
        momentum.copy_(kept_if_bad(self, momentum, step))
        parameter.add_(kept_if_bad(self, torch.zeros_like(step), step), alpha=-group["lr"])


def kept_if_bad(optimizer: torch.optim.Optimizer, before: Tensor, after: Tensor) -> Tensor:
    """Return `before` if the step of an optimizer must change nothing, see `update_unless` in optim.py; else `after`."""
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    return after if found_inf is None else torch.where(found_inf > 0, before, after)


def _trust_ratio(parameter: Tensor, gradient: Tensor, weight_decay: float) -> Tensor:
    weight, slope = _norm(parameter), _norm(gradient)
    ratio = TRUST * weight / (slope + weight_decay * weight)
    return torch.where((weight > 0) & (slope > 0), ratio, 1.0)


def _norm(tensor: Tensor) -> Tensor:
    """Return the norm of the whole tensor, a scalar that is the same in every process."""
    norm = torch.linalg.vector_norm(tensor)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
