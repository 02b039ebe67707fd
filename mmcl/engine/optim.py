"""Optimisers: AdamW, SGD or LARS with weight decay on matrices and embedding tables, and optionally Muon for matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mmcl.config import OptimConfig
from mmcl.encoders.parameter_roles import parameter_roles
from mmcl.engine.lars import Lars


def build_optimiser(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimiser for the parameters that require a gradient, in two groups, with and without weight decay.

    - AdamW (Loshchilov & Hutter, 2019). With `muon_lr`, parameters that map features to features (weights of linear layers,
      convolution kernels as out x rest) form a third group that is trained by Muon; tables stay with AdamW.
    - SGD with momentum; weight decay is added to the gradient.
    - LARS (You et al., "Large Batch Training of Convolutional Networks", 2017, trust coefficient 0.001): SGD in which each
      matrix is updated in proportion to its norm. Biases and norms are excluded, as in SimCLR, for any weight decay.

    Every group stores its peak learning rate as "initial_lr".
    """
    trained = [(parameter, role) for _, parameter, role in parameter_roles(module) if parameter.requires_grad]
    by_muon = {"matrix"} if config.muon_lr is not None else set()
    decayed = _by_layout(
        [p for p, role in trained if role != "other" and role not in by_muon],
        weight_decay=config.weight_decay,
    )
    spared = _by_layout(
        [p for p, role in trained if role == "other"],
        weight_decay=0.0,
        lr=config.lr if config.bias_lr is None else config.bias_lr,
    )
    optimiser = _build(decayed, spared, config, trained[0][0].device.type)
    if config.muon_lr is not None:
        from mmcl.engine.muon import Muon

        matrices = _by_layout([p for p, role in trained if role in by_muon], weight_decay=config.weight_decay)
        optimiser = _Together(optimiser, Muon(matrices, lr=config.muon_lr))
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]
    return optimiser


def _by_layout(parameters: list[nn.Parameter], **options: Any) -> list[dict[str, Any]]:
    """Return a group of parameters; two groups if only some are sharded, because a fused step cannot mix the two kinds."""
    spread = [p for p in parameters if isinstance(p, DTensor)]
    whole = [p for p in parameters if not isinstance(p, DTensor)]
    return [{"params": part, **options} for part in (spread, whole) if part] or [{"params": [], **options}]


def _build(
    decayed: list[dict[str, Any]], spared: list[dict[str, Any]], config: OptimConfig, device: str
) -> torch.optim.Optimizer:
    if config.name == "lars":
        others = [{**group, "adapted": False} for group in spared]
        return Lars([*decayed, *others], lr=config.lr, momentum=config.momentum)
    if config.name == "sgd":
        return torch.optim.SGD([*decayed, *spared], lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(
        [*decayed, *spared], lr=config.lr, betas=config.betas, eps=config.eps, fused=device in ("cpu", "cuda")
    )


class _Together(torch.optim.Optimizer):
    """Combine optimisers of different parameters into one with a shared state. (The AdamW within Muon is not fused: slower.)"""

    def __init__(self, *optimisers: torch.optim.Optimizer):
        self.optimisers = optimisers
        super().__init__([group for optimiser in optimisers for group in optimiser.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Share this optimiser's groups and state with the parts: one learning rate to set, one state to save."""
        groups = iter(self.param_groups)
        for optimiser in self.optimisers:
            optimiser.param_groups = [next(groups) for _ in optimiser.param_groups]
            optimiser.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for optimiser in self.optimisers:
            optimiser.step(closure)
