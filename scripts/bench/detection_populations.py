"""Populations of yes/no questions, by statistic, from which `interval_coverage.py` draws test sets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from interval_populations import POPULATION, Drawn, Generator, Population

from mmcl.evaluate.measures import detection, statistics
from mmcl.evaluate.measures.detection import Clusters, Detection
from mmcl.evaluate.measures.paired_tests import paired_difference

Asked = tuple[np.ndarray, np.ndarray, Clusters]
"""Scores and answers of a yes/no question, and which rows belong together."""
Detector = Callable[[np.ndarray, np.ndarray, Clusters], Detection]


def detections_in_clusters(statistic: Detector, *, mixed: bool = False) -> Iterator[Population]:
    """AUROC or average precision of one question over n clusters of 5 rows with like scores, all of one answer or not."""
    for apart, rate in itertools.product((0.0, 1.0, 2.0), (0.5, 0.1)):
        draw = partial(_asked, apart, rate, mixed)
        found = statistic(*draw(np.random.default_rng(0), POPULATION // 10))
        spread = float((found.influence_N**2).sum()) * found.draws
        yield Population(f"{apart}, {rate}", partial(_detection, statistic, draw, found.value), spread * rate)


def detections(statistic: Detector) -> Iterator[Population]:
    """The same, of independent rows."""
    for apart, rate in itertools.product((0.0, 1.0, 2.0), (0.5, 0.1)):
        draw = partial(_asked_once, apart, rate)
        found = statistic(*draw(np.random.default_rng(0), POPULATION))
        spread = float((found.influence_N**2).sum()) * found.draws
        yield Population(f"{apart}, {rate}", partial(_detection, statistic, draw, found.value), spread * rate)


def _detection(statistic: Detector, asked: Callable[[Generator, int], Asked], truth: float, rng: Generator, n: int) -> Drawn:
    score, target, rows = asked(rng, n)
    if not target.any() or target.all():
        return statistics.exact(None, len(target)), truth
    return statistic(score, target, rows).estimate(rows), truth


def paired_detections(statistic: Detector, *, rows_of_a_cluster: int = 1) -> Iterator[Population]:
    """The difference of two models' AUROCs or average precisions on the same rows, of which both find the same ones hard."""
    for (first, second), rate in itertools.product(((0.0, 0.0), (1.0, 1.0), (1.0, 1.5), (2.0, 2.5)), (0.5, 0.1)):
        draw = partial(_asked_twice, (first, second), rate, rows_of_a_cluster)
        a, b = (statistic(*asked) for asked in draw(np.random.default_rng(0), POPULATION // rows_of_a_cluster))
        clusters = draw(np.random.default_rng(0), POPULATION // rows_of_a_cluster)[0][2]
        spread = float((clusters.sums(b.influence_N - a.influence_N) ** 2).sum()) * a.draws / 4
        yield Population(f"{first} and {second}, {rate}", partial(_paired, statistic, draw, b.value - a.value), spread * rate)


def _paired(
    statistic: Detector, draw: Callable[[Generator, int], tuple[Asked, Asked]], truth: float, rng: Generator, n: int
) -> Drawn:
    both = []
    for score, target, rows in draw(rng, n):
        if not target.any() or target.all():
            return statistics.exact(None, len(target)), truth
        found = statistic(score, target, rows)
        both.append(detection.comparable(found.estimate(rows), found, target.astype(np.int64), rows).outcomes)
    first, second = both
    if first is None or second is None:
        return statistics.exact(None, len(target)), truth
    return paired_difference(first, second), truth


def _asked_twice(apart: tuple[float, float], rate: float, size: int, rng: Generator, n: int) -> tuple[Asked, Asked]:
    names = np.repeat(np.arange(n), size)
    target = (rng.random(n) < rate)[names]
    shared, rows = rng.normal(size=n)[names], Clusters.of(names, n * size)
    first, second = (one * target + 0.7 * shared + np.sqrt(0.51) * rng.normal(size=n * size) for one in apart)
    return (first, target, rows), (second, target, rows)


def _asked(apart: float, rate: float, mixed: bool, rng: Generator, n: int) -> Asked:
    names = np.repeat(np.arange(n), 5)
    own = rng.beta(4 * rate, 4 * (1 - rate), n) if mixed else (rng.random(n) < rate).astype(float)
    target = rng.random(len(names)) < own[names]
    score = apart * target + 0.7 * rng.normal(size=n)[names] + np.sqrt(0.51) * rng.normal(size=len(names))
    return score, target, Clusters.of(names, len(names))


def _asked_once(apart: float, rate: float, rng: Generator, n: int) -> Asked:
    target = rng.random(n) < rate
    return apart * target + rng.normal(size=n), target, Clusters.of(None, n)


DETECTIONS: dict[str, Callable[[], Iterator[Population]]] = {
    "AUROC, rows in clusters": partial(detections_in_clusters, detection.auroc),
    "AUROC, mixed clusters": partial(detections_in_clusters, detection.auroc, mixed=True),
    "average precision of a question (bounded)": partial(detections, detection.average_precision),
    "average precision of a question, clusters": partial(detections_in_clusters, detection.average_precision),
    "average precision of a question, mixed": partial(detections_in_clusters, detection.average_precision, mixed=True),
    "difference of paired AUROCs": partial(paired_detections, detection.auroc),
    "difference of paired AUROCs, clusters": partial(paired_detections, detection.auroc, rows_of_a_cluster=5),
    "difference of paired average precisions": partial(paired_detections, detection.average_precision),
    "difference, average precisions, clusters": partial(paired_detections, detection.average_precision, rows_of_a_cluster=5),
}
