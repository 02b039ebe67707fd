"""Optimizers: AdamW, SGD or LARS with weight decay on matrices and embedding tables, and optionally Muon for matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmcl.config import OptimConfig
from mmcl.engine.lars import Lars
from mmcl.engine.parameter_groups import ParameterGroup, as_options, group_parameters

FUSED = ("cpu", "cuda")
"""Types of devices for which AdamW and SGD are fused, which is faster and follows `update_unless`."""


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer for the parameters that require a gradient, in the groups of `group_parameters`.

    - AdamW (Loshchilov & Hutter, 2019). With `muon_lr`, parameters that map features to features (weights of linear layers,
      convolution kernels as out x rest) are trained by Muon; tables stay with AdamW.
    - SGD with momentum; weight decay is added to the gradient.
    - LARS (You et al., "Large Batch Training of Convolutional Networks", 2017, trust coefficient 0.001): SGD in which each
      matrix is updated in proportion to its norm. Biases and norms are excluded, as in SimCLR, for any weight decay.

    Every group stores its peak learning rate as "initial_lr", and the share of the run that it waits as "start".

    Raises:
        UserError: as `group_parameters` does.
    """
    groups = group_parameters(module, config)
    others = [options for group in groups if group.kind != "muon" for options in _by_layout(group, config)]
    matrices = [options for group in groups if group.kind == "muon" for options in _by_layout(group, config)]
    optimizers = [_build(others, config)] if others else []
    if matrices:
        from mmcl.engine.muon import Muon

        optimizers.append(Muon(matrices, lr=config.lr))
    optimizer = optimizers[0] if len(optimizers) == 1 else _Together(*optimizers)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _by_layout(group: ParameterGroup, config: OptimConfig) -> list[dict[str, Any]]:
    """Return the options of a group; of two groups if only some are sharded, because a fused step cannot mix the two kinds."""
    options = {**as_options(group), "start": group.start}
    if config.name == "lars":
        options["adapted"] = group.kind in ("decayed", "muon")
    spread = [p for p in group.parameters if isinstance(p, DTensor)]
    whole = [p for p in group.parameters if not isinstance(p, DTensor)]
    return [{**options, "params": part} for part in (spread, whole) if part]


def _build(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    if config.name == "lars":
        return Lars(groups, lr=config.lr, momentum=config.momentum)
    if config.name == "sgd":
        return _sgd(groups, config)
    device = groups[0]["params"][0].device.type
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=device in FUSED)


def _sgd(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """Build torch's fused SGD, or, where it does not work, LARS without individual rates, which is the same."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    if any(isinstance(p, DTensor) or p.device.type not in FUSED for p in parameters):
        return Lars([{**group, "adapted": False} for group in groups], lr=config.lr, momentum=config.momentum)
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    # A first step that is undone would leave torch's own buffers without values.
    for parameter in parameters if config.momentum else ():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return optimizer


def update_unless(optimizer: torch.optim.Optimizer, is_bad: Tensor) -> None:
    """Make the next step of an optimizer of `build_optimizer` change nothing if `is_bad`, a bool scalar on the device.

    The name of the attribute is that of torch's loss scaler, which fused optimizers read on the device.
    """
    optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]


class _Together(torch.optim.Optimizer):
    """Combine optimizers of different parameters into one with a shared state."""

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Share this optimizer's groups and state with the parts: one learning rate to set, one state to save."""
        groups = iter(self.param_groups)
        for optimizer in self.optimizers:
            optimizer.param_groups = [next(groups) for _ in optimizer.param_groups]
            optimizer.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for optimizer in self.optimizers:
            optimizer.found_inf = getattr(self, "found_inf", None)  # type: ignore[attr-defined]
            optimizer.step(closure)
