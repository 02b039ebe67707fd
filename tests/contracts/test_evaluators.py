"""The contract suite passes for every registered evaluator, and each check detects a violation."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from mmcl.evaluate import EVALUATORS, CachedModel, Metric, Report, Task
from mmcl.evaluate.measures.outcomes import Influence, Outcomes
from mmcl.testing import check_evaluator


@pytest.mark.parametrize("name", EVALUATORS)
def test_contract(name: str) -> None:
    check_evaluator(name)


def spread(model: CachedModel, task: Task, *, value: float | None = None, column: str | None = None, **changes: Any) -> Report:
    """Keeps all rules, but for the arguments."""
    found = float(model.images(task.source).std(0).mean()) if value is None else value
    facts = {"data": task.name, "model": column or model.name, "low": None, "high": None, "n": len(task.source), **changes}
    return Report(metrics=(Metric(evaluator="spread", metric="spread", value=found, **facts),))


def influenced(value: float, row_N: list[float]) -> Outcomes:
    rows = np.array(row_N, np.float32)
    return Outcomes(np.ones_like(rows), "influence", influence=Influence(value, rows, 2.0))


def test_one_that_keeps_all_rules_passes() -> None:
    check_evaluator(spread)
    check_evaluator(spread, {"value": None})


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"data": "other"}, "is of 'other', not of the task"),
        ({"column": "trained"}, r"there are columns of \['trained'\]"),
        ({"low": 0.5, "high": 0.6, "value": 0.7}, "0.7 is not within 0.5 and 0.6"),
        ({"value": float("nan")}, "spread is nan"),
        ({"n": 0}, "is of 0 rows"),
        (
            {"value": 0.5, "n": 2, "outcomes": Outcomes(np.ones(2, np.float32), "mean", names=("a", "b"))},
            "the mean of its rows 1.0",
        ),
        (
            {"value": 1.0, "n": 3, "outcomes": Outcomes(np.ones(2, np.float32), "mean", names=("a", "b"))},
            "of 3 rows and carries 2",
        ),
        ({"value": 0.5, "outcomes": influenced(0.5, [0.5, 0.25])}, "sum to 0.75, not to 0"),
        ({"value": 0.5, "outcomes": influenced(0.6, [0.5, -0.5])}, "influences on another value"),
    ],
)
def test_one_that_breaks_a_rule_is_found(args: dict[str, Any], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_evaluator(spread, args)


def test_an_empty_report_other_numbers_and_bugs_are_found() -> None:
    with pytest.raises(AssertionError, match="the report is empty"):
        check_evaluator(lambda model, task: Report())
    with pytest.raises(AssertionError, match="two runs give other numbers"):
        check_evaluator(lambda model, task: spread(model, task, value=random.random()))
    with pytest.raises(TypeError):
        check_evaluator(lambda model, task: spread(model, task, value=float(task.source.labels[0])))
