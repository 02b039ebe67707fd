"""Best score of a run so far, for keeping its checkpoint and for early stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmcl.config import TrainConfig
from mmcl.engine.checkpoint import checkpoint_of_step
from mmcl.errors import UserError
from mmcl.evaluate.reporting.metric import lower_is_better
from mmcl.logging import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class BestState:
    """State of `BestScore` in a checkpoint."""

    metric: str | None = None
    value: float | None = None
    step: int | None = None
    waiting: int = 0

    def __post_init__(self) -> None:
        if (self.value is None) != (self.step is None) or self.waiting < 0 or (self.step or 0) < 0:
            raise UserError("state.best is not the score of a step")


class BestScore:
    """Track the score that `train.keep_best` names.

    Attributes:
        value, step: the best score and its step; None until there is a finite score.
        waiting: number of evaluations since then.
    """

    def __init__(self, train: TrainConfig):
        self.metric, self.patience = train.keep_best, train.patience
        self.sign = {"max": 1, "min": -1}[train.best_is or ("min" if lower_is_better(self.metric or "") else "max")]
        self.value: float | None = None
        self.step: int | None = None
        self.waiting = 0

    def update(self, step: int, scores: Mapping[str, float]) -> None:
        """Record an evaluation; evaluations without the score are not counted."""
        if self.metric is None or self.metric not in scores:
            return
        value = scores[self.metric]
        # The first score is the best one unless it is not finite.
        if math.isfinite(value) and (self.value is None or self.sign * (value - self.value) > 0):
            self.value, self.step, self.waiting = value, step, 0
        else:
            self.waiting += 1

    @property
    def is_over(self) -> bool:
        """True if patience has run out."""
        return self.patience is not None and self.waiting >= self.patience

    @property
    def state(self) -> BestState:
        """Return the state to save in a checkpoint."""
        return BestState(metric=self.metric, value=self.value, step=self.step, waiting=self.waiting)

    def restore(self, state: BestState, checkpoints: Path) -> None:
        """Restore `state` if it is of the same score; if its checkpoint is damaged, warn and start without a best score."""
        if state.metric != self.metric or state.step is None:
            return
        try:
            checkpoint_of_step(checkpoints, state.step)
        except UserError as error:
            logger.warning(f"{error}; the best {self.metric} before this step is forgotten")
            return
        self.value, self.step, self.waiting = state.value, state.step, state.waiting
