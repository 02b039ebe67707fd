"""Contract suite for evaluators: the properties of every entry of `mmcl.evaluate.EVALUATORS`, and of your own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS, CachedModel, Metric, Report, Task
from mmcl.evaluate.measures.outcomes import Outcomes
from mmcl.testing.patterns import PatternModel, PatternSource
from mmcl.testing.require import require, small_args

_STATISTICS: dict[str, Callable[[Outcomes], float]] = {
    "mean": lambda outcomes: float(outcomes.values.mean(dtype=np.float64)),
    "median": lambda outcomes: float(np.median(outcomes.values)),
    "class_mean": lambda outcomes: _mean_of_classes(outcomes.values, outcomes.labels),
}


def _mean_of_classes(values: np.ndarray, labels: np.ndarray | None) -> float:
    assert labels is not None
    return float(np.mean([values[labels == label].mean() for label in np.unique(labels)]))


Run = Callable[[CachedModel, Task], Report]


def check_evaluator(evaluator: str | Callable[..., Report], args: Mapping[str, Any] | None = None) -> None:
    """Runs every check on an evaluator, with a model that knows the samples of a source (`mmcl.testing.patterns`).

    Args:
        evaluator: a name in `EVALUATORS`, or the function.
        args: its arguments; by default its `test_args`.

    Raises:
        AssertionError: a check failed; the message says what is broken.
        UserError: the evaluator is unknown, or does not accept the arguments.

    Example:
        >>> check_evaluator("geometry")
    """
    function = EVALUATORS[evaluator] if isinstance(evaluator, str) else evaluator
    settings = small_args(function, args)

    def run(model: CachedModel, task: Task) -> Report:
        report: Report = function(model, task, **settings)
        return report

    for check in EVALUATOR_CHECKS.values():
        check(run)


def check_metrics(run: Run) -> None:
    """A report has metrics or figures; a metric is of this task, of at least one row, and within its interval."""
    report = run(CachedModel(PatternModel()), _task())
    require(bool(report.metrics or report.figures), "the report is empty")
    require(len({metric.evaluator for metric in report.metrics}) <= 1, "metrics are of several evaluators")
    require(len({metric.key for metric in report.metrics}) == len(report.metrics), "two metrics have one key")
    for metric in report.metrics:
        require(metric.data == "patterns", f"{metric.metric} is of {metric.data!r}, not of the task")
        require(metric.n >= 1, f"{metric.metric} is of {metric.n} rows")
        require(metric.value is None or math.isfinite(metric.value), f"{metric.metric} is {metric.value}")
        within = None in (metric.low, metric.value, metric.high) or metric.low <= metric.value <= metric.high  # type: ignore[operator]
        require(within, f"{metric.metric}: {metric.value} is not within {metric.low} and {metric.high}")


def check_columns(run: Run) -> None:
    """Without baselines there is the column of the model alone, and its name is in that of every figure."""
    report = run(CachedModel(PatternModel(), "mine"), replace(_task(), baselines=False, figures=False))
    others = {metric.model for metric in report.metrics} - {"mine"}
    require(not others, f"without baselines there are columns of {sorted(others)}")
    require(all("mine" in figure for figure in report.figures), f"the figures {sorted(report.figures)} do not name the model")


def check_outcomes(run: Run) -> None:
    """Where a metric carries the outcomes of its rows, it is their statistic, or they say how it depends on each of them."""
    for metric in run(CachedModel(PatternModel()), _task()).metrics:
        if metric.outcomes is not None:
            _check_statistic(metric, metric.outcomes)


def _check_statistic(metric: Metric, outcomes: Outcomes) -> None:
    if outcomes.influence is not None:
        total, size = (
            float(np.sum(part, dtype=np.float64)) for part in (outcomes.influence.row_N, abs(outcomes.influence.row_N))
        )
        require(abs(total) <= 1e-5 * size, f"the influences of the rows on {metric.metric} sum to {total:g}, not to 0")
        require(
            outcomes.influence.value == metric.value, f"{metric.metric} is {metric.value}, with influences on another value"
        )
        return
    require(len(outcomes) == metric.n, f"{metric.metric} is of {metric.n} rows and carries {len(outcomes)}")
    value = _STATISTICS[outcomes.statistic](outcomes)
    close = metric.value is not None and math.isclose(value, metric.value, rel_tol=1e-6)
    require(close, f"{metric.metric} is {metric.value}, and the {outcomes.statistic} of its rows {value}")


def check_repetition(run: Run) -> None:
    """Checks that two runs give the same numbers."""
    first, second = (run(CachedModel(PatternModel()), _task()).metrics for _ in range(2))
    require(first == second, "two runs give other numbers")


def check_other_data(run: Run) -> None:
    """Data without labels, captions or scores, and a model without texts, are evaluated or refused with a UserError."""
    bare = PatternSource(12, seed=0, labels=False, captions=False, scores=False)
    for model, source in ((PatternModel(), bare), (PatternModel(has_text=False), PatternSource(12, seed=0))):
        try:
            run(CachedModel(model), Task("patterns", source, bare))
        except UserError:
            continue


EVALUATOR_CHECKS: dict[str, Callable[[Run], None]] = {
    "metrics": check_metrics,
    "columns": check_columns,
    "outcomes": check_outcomes,
    "repetition": check_repetition,
    "other data": check_other_data,
}
"""The checks of `check_evaluator`, by name."""


def _task() -> Task:
    return Task("patterns", PatternSource(36, seed=0), PatternSource(60, seed=1))
