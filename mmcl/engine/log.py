"""What a run tells while it trains: a progress bar for people, metrics.jsonl for programs, trackers for teams."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mmcl.errors import UserError
from mmcl.safe import reason


class StepLog:
    """A file of JSON lines, each with its "step"; what a step writes is in it once, whatever happened in between."""

    def __init__(self, path: Path, *, resume_from: int = 0):
        """Opens the log; lines of steps after `resume_from` belong to a future that will be computed again, and go."""
        self.path = path
        if not path.exists():
            return
        lines = [json.dumps(row) + "\n" for row in read_log(path) if row["step"] <= resume_from]
        stage = path.with_name(f".tmp-{path.name}")
        stage.write_text("".join(lines), encoding="utf-8")
        stage.replace(path)

    def write(self, *rows: Mapping[str, Any]) -> None:
        """Appends lines; numbers that JSON does not have become null. Raises UserError where the disk is full."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({key: _plain(value) for key, value in row.items()}) + "\n" for row in rows)
        except OSError as error:
            raise UserError(f"{self.path} could not be written ({reason(error)}); the checkpoints are untouched") from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a line that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Progress:
    """A bar in samples, so that its rate is samples/s, with loss, temperature and the rank of the rows beside it."""

    def __init__(self, *, done: int, total: int, batch_size: int, enabled: bool):
        self.batch_size = batch_size
        self.shown: dict[str, str] = {}
        self.bar = tqdm(
            total=total * batch_size,
            initial=done * batch_size,
            unit=" samples",
            unit_scale=True,
            desc="training",
            disable=not enabled,
            dynamic_ncols=True,
            smoothing=0.1,
        )

    def advance(self, metrics: Mapping[str, Any]) -> None:
        shown = {name: value for name, value in metrics.items() if name.startswith(("loss", "temperature", "effective_rank"))}
        self.shown |= {name.replace("effective_rank", "rank"): f"{value:.3g}" for name, value in shown.items()}
        self.bar.set_postfix(self.shown, refresh=False)
        self.bar.update(self.batch_size)

    def close(self) -> None:
        self.bar.close()
