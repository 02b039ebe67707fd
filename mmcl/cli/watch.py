"""`mmcl watch`: the curves of a run in the terminal, while it trains and afterwards."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcl.cli.output import redraw, say
from mmcl.errors import unknown_name
from mmcl.interop.suggestions import unknown_run
from mmcl.terminal import printable_line

_SECONDS = 1.0
"""Time between two looks at a run."""

Row = Mapping[str, Any]


def watch(run: Path, /, *, metrics: tuple[str, ...] = (), once: bool = False) -> None:
    """Draw the curves of a run in the terminal, and follow it.

    Examples:
        mmcl watch runs/clip_emoji

    Ctrl-C ends the watching and leaves the run alone. If the output is not a terminal, the curves are printed at the end.

    Args:
        run: A run directory.
        metrics: Which numbers of metrics.jsonl to draw. Default: the loss, and the score that is evaluated during training.
        once: Draw what there is now, and do not follow.
    """
    if not (run / "config.yaml").is_file():
        raise unknown_run(run)
    from mmcl.engine.run_lock import is_locked

    drawn = 0
    try:
        while not once and is_locked(run):
            if sys.stdout.isatty():
                drawn = redraw(_lines(run, metrics), over=drawn)
            time.sleep(_SECONDS)
        redraw(_lines(run, metrics), over=drawn)
    except KeyboardInterrupt:
        return
    if not is_locked(run):
        _print_end(run)


def _state(run: Path, step: int, total: int | None) -> str:
    from mmcl.engine.run_lock import is_locked

    if is_locked(run):
        return "evaluating" if step == total else "training"
    return "finished" if (run / "model").is_dir() else "stopped"


def _lines(run: Path, metrics: Sequence[str]) -> list[str]:
    """The charts, below a line that says how far the run is; they fit the terminal."""
    from mmcl.cli.chart import line_chart
    from mmcl.engine.log import read_log

    rows = read_log(run / "metrics.jsonl")
    if not rows:
        return [f"{run}: no step is logged yet"]
    columns, screen = shutil.get_terminal_size()
    step = rows[-1]["step"]
    total = next((row["total_steps"] for row in reversed(rows) if isinstance(row.get("total_steps"), int)), None)
    lines = [f"{run}: step {step:,}" + (f" of {total:,}" if total else "") + f", {_state(run, step, total)}"]
    names = metrics or _usual(rows)
    height = max(3, (screen - 2) // max(1, len(names)) - 3)
    encoding = sys.stdout.encoding or "utf-8"
    for name in names:
        x, y = _curve(rows, name)
        lines.append(f"{name} {y[-1]:.4g}")
        lines += line_chart(x, y, width=min(columns, 120) - 1, height=min(height, 12), encoding=encoding)
    return [printable_line(line)[: columns - 1] for line in lines]


def _usual(rows: Sequence[Row]) -> list[str]:
    """The loss, and the score that was evaluated first."""
    from mmcl.engine.log import EVALUATION

    scores = [name for row in rows if EVALUATION in row for name in row if name not in ("step", EVALUATION)]
    return [*(["loss"] if any("loss" in row for row in rows) else []), *scores[:1]]


def _curve(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a number. Raises UserError if no row has it."""
    points = [(row["step"], row[name]) for row in rows if _is_number(row.get(name))]
    if not points:
        known = {key for row in rows for key, value in row.items() if key != "step" and _is_number(value)}
        raise unknown_name("metric", name, known, where="--metrics")
    steps, values = zip(*points, strict=True)
    return list(steps), list(values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _print_end(run: Path) -> None:
    """Where the result is; its tables would scroll the curves away."""
    if not (run / "model").is_dir():
        say("stopped before its end: continue it with --resume")
        return
    say(f"finished: the model is in {run}/model")
    if (run / "report" / "report.html").is_file():
        say(f"report   {run}/report/report.html")
