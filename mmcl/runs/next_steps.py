"""Commands to run after a training, an evaluation or a suite, with the user's own paths; reports end with them."""

from __future__ import annotations

import shlex
from pathlib import Path

from mmcl.evaluate import Report
from mmcl.evaluate.reporting.metric import BASELINES


def after_training(report: Report, run_dir: Path) -> tuple[str, ...]:
    """The comparison with the first baseline, and the evaluation again with all metrics."""
    return (*against_baseline(report, run_dir), shlex.join(["mmcl", "eval", str(run_dir), "--all"]))


def against_baseline(report: Report, folder: Path) -> tuple[str, ...]:
    """The comparison of two columns of a report, query by query: of two models, else of a model and its first baseline."""
    paired: dict[str, set[tuple[str, str, str]]] = {}
    for metric in report.metrics:
        if metric.outcomes is not None and not metric.metric.endswith("_tied"):
            paired.setdefault(metric.model, set()).add(metric.key[:3])
    first, *others = sorted(paired, key=lambda model: model in BASELINES) or [""]
    other = next((model for model in others if paired[model] & paired[first]), None)
    if other is None:
        return ()
    columns = (first, other) if other not in BASELINES else (other, first)
    return (shlex.join(["mmcl", "compare", str(folder), str(folder), "--models", *columns]),)
