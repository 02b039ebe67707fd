"""State of a run other than its weights, as saved in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from mmcl.config import from_dict
from mmcl.engine.best_checkpoint import BestState
from mmcl.engine.checkpoint import AVERAGE, MANIFEST, Checkpoint
from mmcl.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalerState:
    """State of torch's `GradScaler`, with the same names."""

    scale: float
    growth_factor: float
    backoff_factor: float
    growth_interval: int
    _growth_tracker: int

    def __post_init__(self) -> None:
        scales = self.scale > 0 and self.growth_factor > 1 > self.backoff_factor > 0
        if not (scales and 0 <= self._growth_tracker <= self.growth_interval < 2**31):
            raise UserError("state.scaler has values that no loss scaler can have")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """State of `mmcl.engine.trainer.Trainer`.

    Attributes:
        bad, seen, bad_run: see `BadSampleBudget`.
        skipped: number of skipped steps.
        scaler: state of the loss scaler under fp16; None otherwise.
        best: see `BestScore`.
        averaged: number of updates of the moving average of the weights.
    """

    bad: int
    seen: int
    bad_run: int
    skipped: int
    scaler: ScalerState | None
    best: BestState
    averaged: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.bad_run <= self.bad <= self.seen or self.skipped < 0 or self.averaged < 0:
            raise UserError("state has impossible counts of samples or steps")


def read_run_state(checkpoint: Checkpoint) -> RunState:
    """Read the state of a run. Raises UserError when the manifest does not contain it, or not the average that it counts."""
    try:
        state = from_dict(RunState, checkpoint.manifest.get("state"), "state")  # type: ignore[arg-type]
        if state.averaged and not checkpoint.files(AVERAGE):
            raise UserError(f"it lists no {AVERAGE}, and state.averaged is {state.averaged}")
        return state
    except UserError as error:
        raise UserError(
            f"{checkpoint.path / MANIFEST} is damaged: {error}; start without --resume, in another --run_dir"
        ) from None
