"""Numbers of a step, which all processes sum on their devices and know on the host a step later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmcl.engine.host_copy import HostCopy, to_device
from mmcl.types import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator


class StepSums:
    """Sum everything that the processes must agree on in a step with a single collective.

    Args:
        accelerator: device and processes.
        shares: this process's shares of the metrics: name -> scalar on the device, with "loss" and "gradient_norm".
        flags: numbers that the host knows, by name.
        scale: a scalar that is equal in all processes, or None; it comes to the host with the sums.

    Attributes:
        is_bad: bool scalar on the device: the loss or the norm of its gradient is not finite.
    """

    def __init__(
        self, accelerator: Accelerator, shares: Mapping[str, Tensor], flags: Mapping[str, float], scale: Tensor | None
    ):
        self._shares, self._flags = tuple(shares), tuple(flags)
        device = accelerator.device
        own = torch.stack([share.detach().float() for share in shares.values()])
        sums: Tensor = accelerator.reduce(torch.cat([own, to_device([*map(float, flags.values())], device)]), "sum")
        loss, norm = (sums[self._shares.index(name)] for name in ("loss", "gradient_norm"))
        self.is_bad = ~(loss.isfinite() & norm.isfinite())
        scales = {} if scale is None else {"scale": scale.to(device, non_blocking=True)}
        self._copy = HostCopy({"sums": sums, **scales})

    def read(self) -> tuple[dict[str, float], dict[str, float], float | None]:
        """Return the summed metrics, the summed flags, and the scale; wait until the device has computed them."""
        copy = self._copy.read()
        numbers = iter(copy["sums"].tolist())
        metrics, flags = ({name: next(numbers) for name in names} for names in (self._shares, self._flags))
        return metrics, flags, float(copy["scale"]) if "scale" in copy else None


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step that the device may still be computing, with all that the host needs once its numbers are known.

    Attributes:
        step: its number.
        batch: its batch, without the views.
        sums: its numbers.
        rows: rows for `CollapseMonitor` if the step is logged.
        known: what the log shows and the host knows already.
        has_texts: whether the batch has texts.
    """

    step: int
    batch: Batch
    sums: StepSums
    rows: HostCopy | None
    known: Mapping[str, Any]
    has_texts: bool
