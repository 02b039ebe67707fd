"""Learning-rate schedule as a pure function of the step: stateless, and the same on any number of processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from mmcl.config import OptimConfig


def warmup_steps(total: int, warmup: float) -> int:
    """Return the number of warm-up steps, where `warmup` is their share of `total`."""
    return round(warmup * total)


def learning_rate(
    step: int,
    *,
    total: int,
    peak: float,
    warmup: float,
    final: float = 0.0,
    milestones: Sequence[float] = (),
    start: float = 0.0,
) -> float:
    """Return the learning rate: linear warm-up, then cosine decay or tenfold drops at milestones.

    Args:
        step: from 0 to total - 1.
        total: number of steps of the run.
        peak: learning rate at the end of the warm-up.
        warmup: share of steps in the warm-up; the learning rate of the first is already above 0.
        final: learning rate at the end of the cosine, as a share of the peak.
        milestones: shares of all steps at which the learning rate drops tenfold; if given, they replace the cosine.
        start: share of all steps before which the learning rate is 0; the whole schedule then runs in the remaining ones.
    """
    waiting = round(start * total)
    if step < waiting:
        return 0.0
    step, total = step - waiting, total - waiting
    rising = warmup_steps(total, warmup)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    if milestones:
        return peak * 0.1 ** sum(step >= share * total for share in milestones)
    progress = (step - rising) / max(1, total - rising)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_rates(groups: Sequence[dict[str, Any]], step: int, optim: OptimConfig, *, total: int) -> float:
    """Set the learning rate of every group of an optimizer for a step, from 1 to `total`. Returns that of `optim.lr`."""
    share = partial(
        learning_rate,
        step - 1,
        total=total,
        peak=1.0,
        warmup=optim.warmup,
        final=optim.final_lr,
        milestones=optim.milestones,
    )
    for group in groups:
        group["lr"] = share(start=group["start"]) * group["initial_lr"]
    return share() * optim.lr
