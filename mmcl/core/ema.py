"""The momentum teacher: an exponential moving average of a network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmcl.core.host_count import HostCount
from mmcl.core.precision import statistics_dtype


class MomentumTeacher(nn.Module):
    r"""A copy that learns nothing by itself: $\theta' \leftarrow m \theta' + (1 - m) \theta$ (He et al., "MoCo", 2020, eq. 2).

    Averages are float32 or better. For weights of lower precision, which would round small updates away, the averages are
    stored as separate buffers. Only weights are averaged. The teacher computes its own batch-norm statistics from the batches
    that it sees in training mode, as in the published code of MoCo and BYOL.

    Args:
        student: the network to average; it is copied.
        momentum: m, in [0, 1]; with `cosine`, the value at the first update.
        cosine: increases m to 1 over the run, see `cosine_momentum`; requires `total_steps`, otherwise m is constant.

    Attributes:
        net: the copy, without gradients.
        total_steps: number of updates of the whole run, or None; not part of the state.
        step: int64 scalar, number of updates so far.
        steps: the same number, which the host knows.

    Raises:
        ValueError: the momentum is out of range.
    """

    step: Tensor

    def __init__(self, student: nn.Module, *, momentum: float, cosine: bool = False):
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum {momentum} must be in [0, 1]")
        self.net = copy.deepcopy(student).requires_grad_(False)
        self.start, self.cosine = momentum, cosine
        self.total_steps: int | None = None
        self.steps = HostCount(self, "step")
        self._keep_averages()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MomentumTeacher:
        """Keeps the dtype of the averages when that of the weights changes."""
        before = {name: value for name, value in self._buffers.items() if name.startswith("average_")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it without types
        for name, average in before.items():
            now = self._buffers[name]
            assert average is not None
            assert now is not None
            self._buffers[name] = now if now.dtype == average.dtype else average.to(now.device)
        self._keep_averages()
        return self

    def _keep_averages(self) -> None:
        for number, weight in enumerate(self.net.parameters()):
            if statistics_dtype(weight) != weight.dtype and f"average_{number}" not in self._buffers:
                self.register_buffer(f"average_{number}", weight.detach().to(statistics_dtype(weight)))

    @property
    def momentum(self) -> float:
        """Momentum m of the next update."""
        if not self.cosine or self.total_steps is None:
            return self.start
        return cosine_momentum(int(self.steps), self.total_steps, self.start)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Moves the weights towards those of the student; call it once after every optimizer step."""
        share = 1 - self.momentum
        for number, (ours, theirs) in enumerate(zip(self.net.parameters(), student.parameters(), strict=True)):
            average = self._buffers.get(f"average_{number}")
            average = ours if average is None else average
            average.lerp_(theirs.to(average.dtype), share)
            if average is not ours:
                ours.copy_(average)
        self.steps.add(1)


def cosine_momentum(step: int, total: int, start: float) -> float:
    r"""$1 - (1 - \tau_0)(\cos(\pi k / K) + 1) / 2$: `start` at step 0, 1 at `total` (Grill et al., "BYOL", 2020, 3.3)."""
    return 1 - (1 - start) * (math.cos(math.pi * min(step, total) / max(total, 1)) + 1) / 2
