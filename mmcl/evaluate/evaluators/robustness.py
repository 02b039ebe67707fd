"""Robustness to distribution shifts, such as another camera, style or year."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mmcl.errors import UserError
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.reporting.metric import metric_rows
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.validation import Array

EVALUATOR = "robustness"


def robustness(right: Mapping[str, Array | Sequence[float]], *, reference: str, model: str = "trained") -> Report:
    """Computes the accuracy on each dataset, and how much lower it is than on the reference.

    Args:
        right: for each dataset, an outcome per sample: 1 or true if the model is right, else 0.
        reference: the dataset that the others are compared with.
        model: name of the model in the report.

    Returns:
        For each dataset `accuracy` and `accuracy_gap`, the accuracy on the reference minus that on the dataset. The interval of
        the gap combines those of the two, see `statistics.difference`.

    Raises:
        UserError: the reference is not among the datasets, or outcomes are missing or not finite.

    Example:
        >>> report = robustness({"photos": [1, 1, 1, 0], "sketches": [1, 0, 0, 0]}, reference="photos")
        >>> report["accuracy_gap"]
        0.5
    """
    if reference not in right:
        raise UserError(f"robustness: reference {reference!r} is not among the datasets: {', '.join(right) or 'none'}")
    outcomes = {name: _outcomes(name, values) for name, values in right.items()}
    report = Report()
    for name, own in outcomes.items():
        estimates = {"accuracy": statistics.mean(own)}
        if name != reference:
            estimates["accuracy_gap"] = statistics.difference(outcomes[reference], own)
        report += Report(metric_rows(EVALUATOR, name, model, estimates))
    return report


def effective_robustness(accuracy: float, shifted_accuracy: float, baselines: Sequence[tuple[float, float]]) -> float:
    """Returns the accuracy under a shift minus that expected of standard models with the same accuracy on the reference.

    The expected accuracy is a line fitted to the baselines' logits, as in Taori et al., "Measuring robustness to natural
    distribution shifts in image classification", 2020, section 2.

    Args:
        accuracy, shifted_accuracy: accuracy of the model on the reference and under the shift, above 0 and below 1.
        baselines: the same two numbers for two or more standard models.

    Raises:
        UserError: a number is not between 0 and 1 (exclusive), or the baselines do not determine a line.

    Example:
        >>> baselines = [(0.6, 0.4), (0.8, 0.6)]
        >>> round(effective_robustness(0.8, 0.7, baselines), 4)
        0.1
    """
    points = np.array([*baselines, (accuracy, shifted_accuracy)], np.float64)
    if not ((points > 0) & (points < 1)).all():
        raise UserError("effective_robustness: accuracies must be above 0 and below 1")
    if len(np.unique(points[:-1, 0])) < 2:
        raise UserError("effective_robustness: give two or more baselines with different accuracies on the reference")
    logits = np.log(points / (1 - points))
    slope, intercept = np.polyfit(logits[:-1, 0], logits[:-1, 1], 1)
    return float(shifted_accuracy - 1 / (1 + np.exp(-(slope * logits[-1, 0] + intercept))))


def _outcomes(name: str, values: Array | Sequence[float]) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise UserError(f"robustness: the outcomes of {name} must be one or more finite numbers")
    return array
