"""The learning rate as a pure function of the step: nothing to save, the same on any number of processes."""

from __future__ import annotations

import math
from collections.abc import Sequence


def warmup_steps(total: int, warmup: float) -> int:
    """The steps that rise: `warmup` is their share of `total`."""
    return round(warmup * total)


def learning_rate(
    step: int, *, total: int, peak: float, warmup: float, final: float = 0.0, milestones: Sequence[float] = ()
) -> float:
    """Linear warm-up, then half a cosine, or steps down by a factor of ten.

    Args:
        step: from 0 to total - 1.
        total: steps of the run.
        peak: learning rate at the end of the warm-up.
        warmup: share of the steps that rise; the first of them is already above 0.
        final: learning rate at the end of the cosine, as a share of the peak.
        milestones: shares of all steps at which the rate falls tenfold; where there are any, there is no cosine.
    """
    rising = warmup_steps(total, warmup)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    if milestones:
        return peak * 0.1 ** sum(step >= share * total for share in milestones)
    progress = (step - rising) / max(1, total - rising)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
