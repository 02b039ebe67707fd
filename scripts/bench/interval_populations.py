"""Populations with known values, by statistic, from which `interval_coverage.py` draws test sets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import norm

from mmcl.evaluate.evaluators.rejection import KEPT, auroc, false_positive_rate
from mmcl.evaluate.evaluators.sts import spearman
from mmcl.evaluate.evaluators.zero_shot import macro_f1
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.measures.outcomes import Outcomes
from mmcl.evaluate.measures.paired_tests import paired_difference
from mmcl.evaluate.measures.statistics import Estimate

Generator = np.random.Generator
Drawn = tuple[Estimate, float]
"""The estimate of one test set, and the truth."""
RATES = (0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0)
KEYS = 100
POPULATION = 200_000


@dataclass(frozen=True)
class Population:
    """What test sets are drawn from.

    Attributes:
        name: how it differs from the others of the statistic.
        draw: a generator and a number of rows to the estimate of one test set and the truth.
        spread: of one row, variance / range^2; infinite for an interval of unbounded outcomes.
        has_ties: many rows are equal.
    """

    name: str
    draw: Callable[[Generator, int], Drawn]
    spread: float = np.inf
    has_ties: bool = False

    def is_at_edge(self, n: int) -> bool:
        return self.has_ties or n * self.spread < statistics.EDGE


def near(rate: float, rng: Generator, n: int) -> float:
    """A rate within one count of `rate`; 0 and 1 themselves."""
    width = min(1 / n, rate, 1 - rate)
    return rate + float(rng.uniform(-width, width))


def of(
    name: str, estimate: Callable[[np.ndarray], Estimate], rows: Callable[[Generator, int], np.ndarray], size: float = 1.0
) -> Population:
    """Of a mean of rows within bounds that are `size` apart, or infinitely far; its value is that of a large sample."""
    large = rows(np.random.default_rng(0), 2 * POPULATION)
    truth, spread = float(large.mean()), float(large.var()) / size**2 if np.isfinite(size) else np.inf
    return Population(name, lambda rng, n: (estimate(rows(rng, n)), truth), spread)


def shares() -> Iterator[Population]:
    def draw(rate: float, rng: Generator, n: int) -> Drawn:
        rate = near(rate, rng, n)
        return statistics.mean(rng.random(n) < rate), rate

    for rate in RATES:
        yield Population(f"{rate}", partial(draw, rate), rate * (1 - rate))


def gaps() -> Iterator[Population]:
    def draw(a: float, b: float, more: int, rng: Generator, n: int) -> Drawn:
        a, b = near(a, rng, n), near(b, rng, more * n)
        return statistics.difference(rng.random(n) < a, rng.random(more * n) < b), a - b

    for a, b, more in ((0.5, 0.5, 1), (0.9, 0.7, 1), (0.9, 0.7, 10), (0.98, 0.9, 1), (1.0, 0.1, 1), (1.0, 1.0, 1)):
        yield Population(f"{a} - {b}, {more}", partial(draw, a, b, more), min(a * (1 - a), b * (1 - b)))


def paired_shares() -> Iterator[Population]:
    for differ in (0.0, 0.01, 0.1, 0.5, 1.0):
        for won in (0.5, 0.9, 1.0) if differ else (0.5,):
            spread = (differ - differ**2 * (2 * won - 1) ** 2) / 4
            yield Population(f"{differ} differ, {won} won", partial(_paired_shares, differ, won), spread)


def _paired_shares(differ: float, won: float, rng: Generator, n: int) -> Drawn:
    differ, won = near(differ, rng, n), near(won, rng, n)
    change = np.where(rng.random(n) < differ, np.where(rng.random(n) < won, 1, -1), 0)
    other = rng.integers(2, size=n)
    a, b = np.where(change == 0, other, change < 0), np.where(change == 0, other, change > 0)
    return paired_difference(_outcomes(a), _outcomes(b)), differ * (2 * won - 1)


def reciprocal_ranks() -> Iterator[Population]:
    for easy in (-1.0, 0.0, 1.0, 2.0, 3.0, 4.0):
        yield of(f"{easy}", statistics.mean, partial(_reciprocal_ranks, easy))


def _reciprocal_ranks(easy: float, rng: Generator, n: int) -> np.ndarray:
    rank = _ranks(easy, rng, n)
    return np.where(rank <= 10, 1 / rank, 0.0)


def average_precisions() -> Iterator[Population]:
    named = {"low": (0.3, 3.0), "U-shaped": (0.5, 0.5), "uniform": (1.0, 1.0), "high": (4.0, 0.5), "narrow": (50.0, 50.0)}
    for name, (a, b) in named.items():
        yield of(name, statistics.mean, partial(_average_precisions, a, b))


def _average_precisions(a: float, b: float, rng: Generator, n: int) -> np.ndarray:
    return rng.beta(a, b, n)


def recalls() -> Iterator[Population]:
    """Of 1 to 5 positives, found together or one by one."""
    for rate in (0.02, 0.5, 0.9):
        for alike in (0.5, 10.0):
            yield of(f"{rate}, {alike}", statistics.mean, partial(_recalls, rate, alike))


def _recalls(rate: float, alike: float, rng: Generator, n: int) -> np.ndarray:
    positives = rng.integers(1, 6, n)
    return rng.binomial(positives, rng.beta(alike * rate, alike * (1 - rate), n)) / positives


def clusters() -> Iterator[Population]:
    """Shares over n clusters of rows, such as the captions of images; the rows of a cluster are alike, the less the higher."""
    for sizes in ("5", "1-100", "2 or 100"):
        for rate in (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 1.0):
            for alike in (0.5, 10.0) if 0 < rate < 1 else (1.0,):
                outcomes, names = _clusters(sizes, rate, alike, np.random.default_rng(0), POPULATION // 10)
                _, variance, draws = statistics._draws(outcomes.astype(float), names)
                spread = variance * draws / (POPULATION // 10)
                yield Population(f"{sizes}, {rate}, {alike}", partial(_clustered, sizes, rate, alike), spread)
    yield Population("large ones are harder", lambda rng, n: (_mean_in_clusters(*_harder_if_large(rng, n)), LARGE_AND_SMALL))


LARGE_AND_SMALL = (0.2 * 20 * 0.4 + 0.8 * 4 * 0.8) / (0.2 * 20 + 0.8 * 4)


def _harder_if_large(rng: Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    large = rng.random(n) < 0.2
    own, names = rng.beta(np.where(large, 4, 8), np.where(large, 6, 2)), np.repeat(np.arange(n), np.where(large, 20, 4))
    return rng.random(len(names)) < own[names], names


def _mean_in_clusters(outcomes: np.ndarray, names: np.ndarray) -> Estimate:
    return statistics.mean(outcomes, clusters=names)


def _clustered(sizes: str, rate: float, alike: float, rng: Generator, n: int) -> Drawn:
    rate = near(rate, rng, n)
    outcomes, names = _clusters(sizes, rate, alike, rng, n)
    return statistics.mean(outcomes, clusters=names), rate


def _clusters(sizes: str, rate: float, alike: float, rng: Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    own = rng.beta(alike * rate, alike * (1 - rate), n) if 0 < rate < 1 else np.full(n, rate)
    uneven = {"1-100": np.exp(rng.uniform(0, np.log(101), n)).astype(int), "2 or 100": np.where(rng.random(n) < 0.1, 100, 2)}
    names = np.repeat(np.arange(n), uneven.get(sizes, np.full(n, 5)))
    return rng.random(len(names)) < own[names], names


def paired_reciprocal_ranks() -> Iterator[Population]:
    for easy, gain in ((0.0, 0.0), (1.5, 0.0), (1.5, 0.5), (3.0, -0.5)):
        both = partial(_both_ranks, easy, gain)
        large = _difference(*both(np.random.default_rng(0), 2 * POPULATION))
        truth = float(large.mean()) if gain else 0.0
        yield Population(f"{easy}, {gain}", partial(_paired_ranks, both, truth), float(large.var()) / 4)


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return 1 / b - 1 / a


def _paired_ranks(
    both: Callable[[Generator, int], tuple[np.ndarray, np.ndarray]], truth: float, rng: Generator, n: int
) -> Drawn:
    a, b = both(rng, n)
    return paired_difference(_outcomes(1 / a), _outcomes(1 / b)), truth


def paired_clusters() -> Iterator[Population]:
    """Differences of shares over clusters of 5 rows that are alike."""
    for rates in ((0.5, 0.5), (0.8, 0.6), (0.98, 0.98)):
        spread = sum(rate * (1 - rate) for rate in rates) * (1 / 4 + 3 / 4 / 5) / 4
        yield Population(f"{rates[0]}, {rates[1]}", partial(_paired_clusters, rates), spread)


def _paired_clusters(rates: tuple[float, float], rng: Generator, n: int) -> Drawn:
    own = [near(rate, rng, n) for rate in rates]
    both = [_clusters("5", rate, 3.0, rng, n) for rate in own]
    a, b = (Outcomes(outcomes.astype(np.float32), clusters=names, within=(0.0, 1.0)) for outcomes, names in both)
    return paired_difference(a, b), own[1] - own[0]


def mean_ranks() -> Iterator[Population]:
    for easy in (0.0, 1.0, 2.0, 3.0):
        estimate = partial(statistics.mean, within=(1.0, KEYS + 1.0))
        yield of(f"{easy}", estimate, partial(_ranks, easy), KEYS)


def medians() -> Iterator[Population]:
    for easy in (-1.0, 0.0, 0.5):
        truth = float(np.median(_ranks(easy, np.random.default_rng(0), POPULATION + 1)))
        yield Population(f"{easy}", partial(_median_rank, easy, truth), has_ties=True)
    yield Population("long tail", lambda rng, n: (statistics.median(rng.lognormal(size=n)), 1.0))
    yield Population("normal", lambda rng, n: (statistics.median(rng.normal(size=n)), 0.0))


def _median_rank(easy: float, truth: float, rng: Generator, n: int) -> Drawn:
    return statistics.median(_ranks(easy, rng, n)), truth


def class_means() -> Iterator[Population]:
    """Balanced accuracy: classes of 2 rows and more, up to all that n allows."""
    for classes in (2, 5, 20):
        for rate in (0.0, 0.5, 0.8, 0.95, 1.0):
            rates = np.linspace(2 * rate - 1, 1, classes) if rate > 0.5 else np.full(classes, rate)
            yield Population(f"{classes}, {rate}", partial(_class_mean, rates), float((rates * (1 - rates)).mean()))


def _class_mean(rates: np.ndarray, rng: Generator, n: int) -> Drawn:
    labels, own = np.arange(n) % len(rates), np.array([near(rate, rng, -(-n // len(rates))) for rate in rates])
    return statistics.class_mean((rng.random(n) < own[labels]).astype(float), labels), float(own.mean())


def class_means_in_clusters() -> Iterator[Population]:
    """Balanced accuracy over n clusters of rows, each of one class or of all classes."""
    for mixed, sizes, classes, rate in itertools.product((False, True), ("5", "1-100"), (2, 5), (0.5, 0.9)):
        outcomes, labels, names = _labeled(mixed, sizes, classes, rate, np.random.default_rng(0), POPULATION // 10)
        found = statistics._clustered_class_spread(outcomes, labels, names)
        assert found is not None
        name = f"{sizes}, {classes} classes{' in each' if mixed else ''}, {rate}"
        draw = partial(_class_mean_in_clusters, mixed, sizes, classes, rate)
        yield Population(name, draw, found[0] * found[1] ** 2 / (POPULATION // 10))


def _class_mean_in_clusters(mixed: bool, sizes: str, classes: int, rate: float, rng: Generator, n: int) -> Drawn:
    outcomes, labels, names = _labeled(mixed, sizes, classes, rate, rng, n)
    return statistics.class_mean(outcomes, labels, clusters=names), rate


def _labeled(
    mixed: bool, sizes: str, classes: int, rate: float, rng: Generator, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    outcomes, names = _clusters(sizes, rate, 3.0, rng, n)
    return outcomes.astype(float), rng.integers(classes, size=len(names)) if mixed else names % classes, names


def macro_f1s_in_clusters() -> Iterator[Population]:
    """Macro F1 over n clusters of rows, each of one class or of all classes."""
    for mixed, classes, rate in itertools.product((False, True), (2, 5), (0.5, 0.9)):
        truth = _macro_f1_in_clusters(mixed, classes, rate, 0.0, np.random.default_rng(0), POPULATION)[0].value
        assert truth is not None
        draw = partial(_macro_f1_in_clusters, mixed, classes, rate, truth)
        yield Population(f"{classes} classes{' in each' if mixed else ''}, {rate}", draw, rate * (1 - rate) / 2)


def _macro_f1_in_clusters(mixed: bool, classes: int, rate: float, truth: float, rng: Generator, n: int) -> Drawn:
    right, labels, names = _labeled(mixed, "5", classes, rate, rng, n)
    predicted = np.where(right == 1, labels, (labels + rng.integers(1, classes, len(labels))) % classes)
    return macro_f1(labels, predicted, classes, names), truth


def macro_f1s() -> Iterator[Population]:
    for classes in (2, 5):
        for rate in (0.5, 0.8, 0.95):
            truth = macro_f1(*_predicted(classes, rate, np.random.default_rng(0), 5 * POPULATION), classes).value
            assert truth is not None
            draw = lambda rng, n, c=classes, r=rate, t=truth: (macro_f1(*_predicted(c, r, rng, n), c), t)  # noqa: E731
            yield Population(f"{classes}, {rate}", draw, rate * (1 - rate) / 2)


def _predicted(classes: int, rate: float, rng: Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(classes, size=n)
    return labels, np.where(rng.random(n) < rate, labels, (labels + rng.integers(1, classes, n)) % classes)


def correlations() -> Iterator[Population]:
    for r in (0.0, 0.5, 0.9, 0.98):
        for kind in ("normal", "five levels", "uneven"):
            truth = spearman(*_pairs(r, kind, np.random.default_rng(0), POPULATION)).value
            assert truth is not None
            yield Population(f"{r} {kind}", partial(_correlation, r, kind, truth))


def _correlation(r: float, kind: str, truth: float, rng: Generator, n: int) -> Drawn:
    return spearman(*_pairs(r, kind, rng, n)), truth


def _pairs(r: float, kind: str, rng: Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    x, noise = rng.normal(size=n), np.sqrt(1 - r**2) * rng.normal(size=n)
    if kind == "uneven":
        return x, r * x + noise * (0.3 + np.abs(x))
    y = r * x + noise
    return x, np.clip(np.round(y), -2, 2) if kind == "five levels" else y


def aurocs() -> Iterator[Population]:
    for apart in (0.0, 1.0, 2.0, 3.0):
        for spread, more in ((1.0, 1), (2.0, 1), (1.0, 10)):
            truth = float(norm.cdf(apart / np.hypot(1, spread)))
            score = np.random.default_rng(0).normal(size=POPULATION)
            below, above = norm.cdf(apart + spread * score).var(), norm.cdf((score - apart) / spread).var()
            draw = partial(_two_samples, auroc, apart, spread, more, truth)
            yield Population(f"{apart}, {spread}, {more}", draw, float(below + above / more))


def false_positive_rates() -> Iterator[Population]:
    for apart in (1.0, 2.0, 3.0):
        truth = float(norm.sf(apart + norm.ppf(1 - KEPT)))
        draw = partial(_two_samples, false_positive_rate, apart, 1.0, 1, truth)
        yield Population(f"{apart}", draw, truth * (1 - truth))


def _two_samples(
    statistic: Callable[[np.ndarray, np.ndarray], Estimate],
    apart: float,
    spread: float,
    more: int,
    truth: float,
    rng: Generator,
    n: int,
) -> Drawn:
    return statistic(apart + spread * rng.normal(size=n), rng.normal(size=more * n)), truth


def losses() -> Iterator[Population]:
    """Negative log-likelihoods of two classes: no bounds, and a long tail where the model is sure."""
    for sure in (0.0, 2.0, 4.0):
        yield of(f"{sure}", partial(statistics.mean, within=statistics.ANYTHING), partial(_losses, sure), np.inf)


def _losses(sure: float, rng: Generator, n: int) -> np.ndarray:
    return np.log1p(np.exp(-(sure + 2 * rng.normal(size=n))))


def runs() -> Iterator[Population]:
    """n runs, with results that are normal, that spread half as widely as they are far from 1, or that are of 20 test rows."""
    yield Population("normal", lambda rng, n: (_over_runs(rng.normal(0.7, 0.02, n)), 0.7))
    yield Population("near 1", lambda rng, n: (_over_runs(rng.beta(96, 4, n)), 0.96))
    yield Population("20 rows", lambda rng, n: (_over_runs(rng.binomial(20, 0.7, n) / 20), 0.7))


def _over_runs(results: np.ndarray) -> Estimate:
    return statistics.over_runs(results.tolist(), 20)


def _ranks(easy: float, rng: Generator, n: int) -> np.ndarray:
    """Of the positive among keys whose scores are normal, as its own is, shifted by `easy`."""
    rank: np.ndarray = 1.0 + rng.binomial(KEYS, norm.sf(easy + rng.normal(size=n)))
    return rank


def _both_ranks(easy: float, gain: float, rng: Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    shared = rng.normal(size=n)
    own = (0.8 * shared + 0.6 * rng.normal(size=n) for _ in range(2))
    a, b = (1.0 + rng.binomial(KEYS, norm.sf(shift + score)) for shift, score in zip((easy, easy + gain), own, strict=True))
    return a, b


def _outcomes(values: np.ndarray) -> Outcomes:
    return Outcomes(values.astype(np.float32), within=(0.0, 1.0))


STATISTICS: dict[str, Callable[[], Iterator[Population]]] = {
    "share (mid-p)": shares,
    "difference of two shares (MOVER)": gaps,
    "difference of paired shares (score)": paired_shares,
    "mean reciprocal rank (bounded)": reciprocal_ranks,
    "mean average precision (bounded)": average_precisions,
    "recall of several positives (bounded)": recalls,
    "mean rank (bounded)": mean_ranks,
    "difference of paired means (bounded)": paired_reciprocal_ranks,
    "share, rows in clusters (jackknife)": clusters,
    "difference, rows in clusters": paired_clusters,
    "class mean (bounded)": class_means,
    "class mean, rows in clusters": class_means_in_clusters,
    "macro F1 (bounded)": macro_f1s,
    "macro F1, rows in clusters": macro_f1s_in_clusters,
    "AUROC (bounded)": aurocs,
    "FPR at 95 % (MOVER)": false_positive_rates,
    "mean log-likelihood (Hall)": losses,
    "median (order statistics)": medians,
    "rank correlation (Fisher's z)": correlations,
    "runs (Student)": runs,
}
