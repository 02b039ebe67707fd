"""Memory of a training that does not grow with the batch, counted from its tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from mmcl.encoders.adapters import adapters
from mmcl.engine.anchors import anchored_towers, anchored_weights
from mmcl.engine.weight_average import averaged_tensors
from mmcl.runs.plan import Plan

_STATES = {"adamw": 2, "sgd": 1, "lars": 1}
"""Tensors that an optimizer keeps for each parameter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes in one process.

    Attributes:
        weights: all weights, the frozen and the adapters included.
        training: gradients and optimizer state, which only trained weights have.
        adapters: adapters with their gradients and optimizer state, a part of the two above.
        average: moving average of the weights (`train.ema`).
        anchors: copies of the start (`train.anchor`), without what is frozen and shared.
    """

    weights: int
    training: int
    adapters: int
    average: int
    anchors: int

    @property
    def added(self) -> int:
        """What training adds to the weights."""
        return self.training + self.average + self.anchors


def count_memory(plan: Plan) -> Memory:
    """Count the bytes in one process; sharded tensors (`train.fsdp`) are shared equally."""
    config, method = plan.config, plan.method
    parts = plan.processes if config.train.fsdp else 1
    states = 1 if config.optim.muon_lr is not None else _STATES[config.optim.name]
    anchors = _bytes(weight for _, weight in anchored_weights(method)) if config.train.anchor.l2_sp else 0
    if config.train.anchor.features:
        anchors += sum(
            _bytes(p for p in method.towers[name].parameters() if p.requires_grad) for name in anchored_towers(method)
        )
    return Memory(
        weights=_bytes(method.parameters()) // parts,
        training=(1 + states) * _bytes(p for p in method.parameters() if p.requires_grad) // parts,
        adapters=(2 + states) * _bytes(p for _, adapter in adapters(method) for p in adapter.parameters()) // parts,
        average=_bytes(averaged_tensors(method).values()) // parts if config.train.ema is not None else 0,
        anchors=anchors // parts,
    )


def format_size(count: int) -> str:
    """Format a number of bytes: 1234567 -> "1.2 MB"."""
    value, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 1000 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.3g} {unit}"


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
