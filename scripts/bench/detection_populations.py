"""Populations of yes/no questions, by statistic, from which `interval_coverage.py` draws test sets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from interval_populations import POPULATION, Drawn, Generator, Population

from mmcl.evaluate.measures import detection, statistics
from mmcl.evaluate.measures.detection import Clusters, Detection

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
}
