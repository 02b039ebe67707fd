"""Metrics by subgroup: an overall mean can hide groups on which a model performs badly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmcl.errors import UserError
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.reporting.metric import metric_rows
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.validation import Array

EVALUATOR = "groups"


def groups(
    outcomes: Array | Sequence[float],
    by: Sequence[object] | np.ndarray,
    *,
    metric: str = "accuracy",
    data: str = "",
    model: str = "trained",
) -> Report:
    """Computes the mean outcome of each group and of the worst group, and the largest gap between two groups.

    Args:
        outcomes: a finite number per sample, such as 1 if the model is right, else 0.
        by: the group of each sample: any values whose string forms differ.
        metric: name of the metric that the outcomes are of.
        data, model: names of the data and the model in the report.

    Returns:
        `accuracy_of_<group>` for every group, `accuracy_worst_group`, and `accuracy_largest_gap`, best minus worst. The last
        two have no interval, because which group is worst depends on chance too. Among small groups, the worst is low and the
        gap large by chance alone; look at the intervals of the groups.

    Raises:
        UserError: shapes do not match, an outcome is not finite, or there is only one group.

    Example:
        >>> report = groups([1, 1, 1, 0], by=["day", "day", "night", "night"])
        >>> report["accuracy_of_night"], report["accuracy_largest_gap"]
        (0.5, 0.5)
    """
    values, names = np.asarray(outcomes, np.float64), np.array([str(group) for group in by])
    if values.ndim != 1 or values.shape != names.shape or not np.isfinite(values).all():
        raise UserError(f"groups: outcomes must be {len(names)} finite numbers, one for each entry of `by`")
    samples = {name: values[names == name] for name in sorted(set(names.tolist()))}
    if len(samples) < 2:
        raise UserError("groups: all samples are of one group; give two groups or more to compare")
    means = [float(sample.mean()) for sample in samples.values()]
    overall = {
        f"{metric}_worst_group": statistics.exact(min(means), len(values)),
        f"{metric}_largest_gap": statistics.exact(max(means) - min(means), len(values)),
    }
    by_group = {f"{metric}_of_{name}": statistics.mean(sample) for name, sample in samples.items()}
    return Report(metric_rows(EVALUATOR, data, model, overall | by_group))
