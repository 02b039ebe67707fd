"""Notes on what the intervals of a report are over: rows that were drawn together count as one draw."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mmcl.evaluate.measures import statistics
from mmcl.evaluate.reporting.report import Report
from mmcl.terminal import counted


def clusters_note(
    evaluator: str, data: str, clusters: np.ndarray | None, *, unit: str = "group", linked: str = ""
) -> tuple[str, ...]:
    """A note on the clusters of an evaluator's rows, and on whether there are enough; none if every row is its own cluster.

    Args:
        evaluator, data: names in the report.
        clusters: integers [N], as for `statistics.mean`.
        unit: what a cluster is.
        linked: which clusters count as one, if any.

    Example:
        >>> clusters_note("knn", "scans", np.arange(14).repeat(3))
        ('knn, scans: intervals by group (14 groups).',)
    """
    if (clusters := statistics.proper_clusters(clusters)) is None:
        return ()
    number = len(np.unique(clusters))
    place, found = ", ".join(filter(None, (evaluator, data))), f"{counted(number, unit)}{linked and f'; {linked}'}"
    effective = statistics.effective_clusters(clusters)
    if effective >= statistics.FEWEST_CLUSTERS:
        return (f"{place}: intervals by {unit} ({found}).",)
    worth = "" if effective > number - 0.05 else f", worth {effective:.1f} of equal size"
    return (f"{place}: no interval by {unit} ({found}{worth}); it needs {statistics.FEWEST_CLUSTERS}.",)


def without_intervals(report: Report, clusters: np.ndarray | None) -> Report:
    """A report without intervals if rows are in clusters, for statistics whose intervals take all rows as independent."""
    if statistics.proper_clusters(clusters) is None:
        return report
    places = dict.fromkeys(", ".join(filter(None, (one.evaluator, one.data))) for one in report.metrics)
    notes = tuple(f"{place}: no interval, as there is none of this statistic by group." for place in places)
    metrics = tuple(replace(one, low=None, high=None) for one in report.metrics)
    return replace(report, metrics=metrics, notes=(*report.notes, *notes))
