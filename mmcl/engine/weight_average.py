"""Moving average of the weights of a run, which it evaluates and exports in place of the last ones (`train.ema`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmcl.core.precision import statistics_dtype
from mmcl.engine.weight_layout import own_part


class WeightAverage:
    r"""Exponential moving average of what a network learns (Polyak & Juditsky, "Acceleration of Stochastic Approximation by
    Averaging", 1992): $\bar\theta \leftarrow m_t \bar\theta + (1 - m_t)\,\theta$.

    With $m_t = \min(m, (1 + t) / (10 + t))$ after t updates, a short run is not dominated by its initial weights. Averages are
    float32 or better.

    Trained parameters and the running statistics of batch norms are averaged: the latter are those of the weights of the last
    few steps, so that their average belongs to the averaged weights. All else, such as frozen weights and queues, is shared
    with the network.

    Args:
        module: the network; sharded weights have sharded averages.
        momentum: m, in (0, 1).

    Attributes:
        tensors: the averages by the names of parameters and buffers.
        updates: t, the number of updates so far.
    """

    def __init__(self, module: nn.Module, momentum: float):
        self.momentum, self.updates = momentum, 0
        self._current = averaged_tensors(module)
        self.tensors: Mapping[str, Tensor] = {
            name: tensor.detach().to(statistics_dtype(tensor), copy=True) for name, tensor in self._current.items()
        }

    @torch.no_grad()
    def update(self, is_bad: Tensor | None = None) -> None:
        """Move the averages towards the weights of the network. Called once after every optimizer step.

        Args:
            is_bad: bool scalar on the device: true leaves the averages as they are, and `undo` must be called later.
        """
        momentum = min(self.momentum, (1 + self.updates) / (10 + self.updates))
        averages = [own_part(average) for average in self.tensors.values()]
        current = [own_part(tensor).to(average.dtype) for tensor, average in zip(self._current.values(), averages, strict=True)]
        if is_bad is None:
            torch._foreach_lerp_(averages, current, 1 - momentum)
        else:
            shares = {dtype: (~is_bad).to(dtype) * (1 - momentum) for dtype in {average.dtype for average in averages}}
            torch._foreach_lerp_(averages, current, [shares[average.dtype] for average in averages])
        self.updates += 1

    def undo(self) -> None:
        """Count one update less: the last one left the averages as they were."""
        self.updates -= 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Context in which the network has the averaged weights. It must not be trained in it."""
        kept = [own_part(tensor).clone() for tensor in self._current.values()]
        for tensor, average in zip(self._current.values(), self.tensors.values(), strict=True):
            own_part(tensor).copy_(own_part(average))
        try:
            yield
        finally:
            for tensor, before in zip(self._current.values(), kept, strict=True):
                own_part(tensor).copy_(before)


def averaged_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network that `WeightAverage` averages."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    norms = ((path, norm) for path, norm in module.named_modules() if getattr(norm, "track_running_stats", False))
    statistics = {
        f"{path}.{name}".removeprefix("."): buffer
        for path, norm in norms
        for name, buffer in norm.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }
    return {**trained, **statistics}
