"""How often each interval of a report holds the truth, by simulation: one table over every statistic that has one.

Test sets are drawn from populations whose value is known, small and large, easy and hard, and evaluated as a report does it. A
95 % interval holds the truth in .95 of them. What counts rows can only come near: the coverage of a share goes up and down with
the rate, and towards the rates 0 and 1 it rises to 1, as any interval's does. So each line has the mean over the populations
and the lowest of them; "given" is the share of the test sets that have an interval at all.

python scripts/bench/interval_coverage.py --draws 2000 --json interval_coverage.json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from scipy.stats import norm
from side_by_side import Row, write_json

from mmcl.evaluate.evaluators.rejection import KEPT, auroc, false_positive_rate
from mmcl.evaluate.evaluators.sts import spearman
from mmcl.evaluate.evaluators.zero_shot import macro_f1
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.measures.outcomes import Rows
from mmcl.evaluate.measures.paired_tests import paired_difference
from mmcl.evaluate.measures.statistics import Estimate

Generator = np.random.Generator
SIZES = (5, 10, 20, 50, 200, 1000)
RATES = (0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0)
KEYS = 100
POPULATION = 100_000


@dataclass(frozen=True)
class Population:
    """What test sets are drawn from.

    Attributes:
        name: how it differs from the others of the statistic.
        draw: a generator and a number of rows to the estimate of one test set.
        truth: what the estimates are of.
    """

    name: str
    draw: Callable[[Generator, int], Estimate]
    truth: float


def shares() -> Iterator[Population]:
    for rate in RATES:
        yield Population(f"{rate}", lambda rng, n, p=rate: statistics.mean(rng.random(n) < p), rate)


def paired_shares() -> Iterator[Population]:
    for differ in (0.0, 0.01, 0.1, 0.5, 1.0):
        for won in (0.5, 0.9, 1.0):
            yield Population(f"{differ} differ, {won} won", partial(_paired_shares, differ, won), differ * (2 * won - 1))


def _paired_shares(differ: float, won: float, rng: Generator, n: int) -> Estimate:
    draw, right = rng.random(n), rng.random(n) < 0.5
    b = np.where(draw < differ, draw < differ * won, right)
    a = np.where(draw < differ, draw >= differ * won, right)
    return paired_difference(_rows(a), _rows(b))


def reciprocal_ranks() -> Iterator[Population]:
    return _ranked(lambda rank: np.where(rank <= 10, 1 / rank, 0.0), statistics.mean)


def average_precisions() -> Iterator[Population]:
    for name, a, b in (("low", 0.3, 3.0), ("U-shaped", 0.5, 0.5), ("uniform", 1.0, 1.0), ("high", 4.0, 0.5)):
        yield Population(name, lambda rng, n, a=a, b=b: statistics.mean(rng.beta(a, b, n)), a / (a + b))


def several_captions() -> Iterator[Population]:
    """Recall over the captions of images, five of each: n images, alike within an image."""
    for rate in (0.1, 0.5, 0.9, 0.98):
        for alike in (0.5, 3.0):
            yield Population(f"{rate}, {alike}", partial(_captions, rate, alike), rate)


def _captions(rate: float, alike: float, rng: Generator, n: int) -> Estimate:
    own = rng.beta(alike * rate, alike * (1 - rate), n)
    return statistics.mean((rng.random((n, 5)) < own[:, None]).ravel(), clusters=np.repeat(np.arange(n), 5))


def paired_reciprocal_ranks() -> Iterator[Population]:
    for easy, gain in ((0.0, 0.0), (1.5, 0.5), (3.0, -0.5)):
        big = _both_ranks(easy, gain, np.random.default_rng(0), POPULATION)
        yield Population(f"{easy}, {gain}", partial(_paired_ranks, easy, gain), float((1 / big[1] - 1 / big[0]).mean()))


def _paired_ranks(easy: float, gain: float, rng: Generator, n: int) -> Estimate:
    a, b = _both_ranks(easy, gain, rng, n)
    return paired_difference(_rows(1 / a), _rows(1 / b))


def mean_ranks() -> Iterator[Population]:
    return _ranked(lambda rank: rank, partial(statistics.mean, within=statistics.ANYTHING))


def median_ranks() -> Iterator[Population]:
    for easy in (-1.0, 0.0, 0.5):
        truth = float(np.median(_ranks(easy, np.random.default_rng(0), POPULATION + 1)))
        yield Population(f"{easy}", lambda rng, n, e=easy: statistics.median(_ranks(e, rng, n)), truth)


def class_means() -> Iterator[Population]:
    """Balanced accuracy: classes of 2 rows and more, up to all that n allows."""
    for classes in (2, 5, 20):
        for rate in (0.5, 0.8, 0.95):
            rates = np.linspace(2 * rate - 1, 1, classes) if rate > 0.5 else np.full(classes, rate)
            yield Population(f"{classes}, {rate}", partial(_class_mean, rates), float(rates.mean()))


def _class_mean(rates: np.ndarray, rng: Generator, n: int) -> Estimate:
    labels = np.arange(n) % len(rates)
    return statistics.class_mean((rng.random(n) < rates[labels]).astype(float), labels)


def macro_f1s() -> Iterator[Population]:
    for classes in (2, 5):
        for rate in (0.5, 0.8, 0.95):
            big = _predicted(classes, rate, np.random.default_rng(0), POPULATION)
            truth = macro_f1(*big, classes).value
            assert truth is not None
            draw = lambda rng, n, c=classes, r=rate: macro_f1(*_predicted(c, r, rng, n), c)  # noqa: E731
            yield Population(f"{classes}, {rate}", draw, truth)


def _predicted(classes: int, rate: float, rng: Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(classes, size=n)
    return labels, np.where(rng.random(n) < rate, labels, (labels + rng.integers(1, classes, n)) % classes)


def gaps() -> Iterator[Population]:
    for a, b in ((0.5, 0.5), (0.9, 0.7), (0.98, 0.9), (1.0, 0.1), (1.0, 1.0)):
        draw = lambda rng, n, a=a, b=b: statistics.difference(rng.random(n) < a, rng.random(n) < b)  # noqa: E731
        yield Population(f"{a} - {b}", draw, a - b)


def correlations() -> Iterator[Population]:
    for r in (0.0, 0.5, 0.9, 0.98):
        for kind in ("normal", "five levels", "uneven"):
            truth = spearman(*_pairs(r, kind, np.random.default_rng(0), POPULATION)).value
            assert truth is not None
            yield Population(f"{r} {kind}", lambda rng, n, r=r, k=kind: spearman(*_pairs(r, k, rng, n)), truth)


def _pairs(r: float, kind: str, rng: Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    x, noise = rng.normal(size=n), np.sqrt(1 - r**2) * rng.normal(size=n)
    if kind == "uneven":
        return x, r * x + noise * (0.3 + np.abs(x))
    y = r * x + noise
    return x, np.clip(np.round(y), -2, 2) if kind == "five levels" else y


def aurocs() -> Iterator[Population]:
    for apart in (0.0, 1.0, 2.0, 3.0):
        for spread in (1.0, 2.0):
            truth = float(norm.cdf(apart / np.hypot(1, spread)))
            yield Population(f"{apart}, {spread}", partial(_two_samples, auroc, apart, spread), truth)


def false_positive_rates() -> Iterator[Population]:
    for apart in (1.0, 2.0, 3.0):
        truth = float(norm.sf(apart + norm.ppf(1 - KEPT)))
        yield Population(f"{apart}", partial(_two_samples, false_positive_rate, apart, 1.0), truth)


def _two_samples(
    statistic: Callable[[np.ndarray, np.ndarray], Estimate], apart: float, spread: float, rng: Generator, n: int
) -> Estimate:
    return statistic(apart + spread * rng.normal(size=n), rng.normal(size=n))


def losses() -> Iterator[Population]:
    """Negative log-likelihoods of two classes: no bounds, and a long tail where the model is sure."""
    for sure in (0.0, 2.0, 4.0):
        own = partial(_losses, sure)
        truth = float(own(np.random.default_rng(0), POPULATION).mean())
        draw = lambda rng, n, own=own: statistics.mean(own(rng, n), within=statistics.ANYTHING)  # noqa: E731
        yield Population(f"{sure}", draw, truth)


def _losses(sure: float, rng: Generator, n: int) -> np.ndarray:
    return np.log1p(np.exp(-(sure + 2 * rng.normal(size=n))))


def runs() -> Iterator[Population]:
    yield Population("normal", lambda rng, n: statistics.over_runs(rng.normal(0.7, 0.02, n).tolist(), 100), 0.7)


def _ranked(metric: Callable[[np.ndarray], np.ndarray], estimate: Callable[[np.ndarray], Estimate]) -> Iterator[Population]:
    for easy in (0.0, 1.0, 2.0, 3.0):
        truth = float(metric(_ranks(easy, np.random.default_rng(0), POPULATION)).mean())
        yield Population(f"{easy}", lambda rng, n, e=easy: estimate(metric(_ranks(e, rng, n))), truth)


def _ranks(easy: float, rng: Generator, n: int) -> np.ndarray:
    """Of the positive among keys whose scores are normal, as its own is, shifted by `easy`."""
    return 1.0 + rng.binomial(KEYS, norm.sf(easy + rng.normal(size=n)))


def _both_ranks(easy: float, gain: float, rng: Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    shared = rng.normal(size=n)
    own = (0.8 * shared + 0.6 * rng.normal(size=n) for _ in range(2))
    a, b = (1.0 + rng.binomial(KEYS, norm.sf(shift + score)) for shift, score in zip((easy, easy + gain), own, strict=True))
    return a, b


def _rows(values: np.ndarray) -> Rows:
    return Rows(values.astype(np.float32), within=(0.0, 1.0))


STATISTICS: dict[str, Callable[[], Iterator[Population]]] = {
    "share (mid-p)": shares,
    "difference of paired shares (score)": paired_shares,
    "difference of two shares (MOVER)": gaps,
    "mean reciprocal rank (bounded)": reciprocal_ranks,
    "mean average precision (bounded)": average_precisions,
    "share, rows in clusters (bounded)": several_captions,
    "difference of paired means (bounded)": paired_reciprocal_ranks,
    "class mean (bounded)": class_means,
    "macro F1 (bounded)": macro_f1s,
    "AUROC (bounded)": aurocs,
    "FPR at 95 % (MOVER)": false_positive_rates,
    "mean rank (Hall)": mean_ranks,
    "mean log-likelihood (Hall)": losses,
    "median rank (order statistics)": median_ranks,
    "rank correlation (Fisher's z)": correlations,
    "runs (Student)": runs,
}


@cache
def populations(statistic: str) -> tuple[Population, ...]:
    return tuple(STATISTICS[statistic]())


def coverage(population: Population, n: int, draws: int, seed: int = 0) -> tuple[float | None, float]:
    """The share of the intervals that hold the truth, None where none was given; and the share that were given."""
    rng = np.random.default_rng((seed, n))
    found = [population.draw(rng, n) for _ in range(draws)]
    given = [one for one in found if one.low is not None and one.high is not None]
    # A truth that is the mean of a simulated population is known to about a thousandth of its spread.
    held = [one.low <= population.truth + 1e-9 and population.truth - 1e-9 <= one.high for one in given]  # type: ignore[operator]
    return (float(np.mean(held)) if held else None), len(given) / draws


def measure(statistic: str, n: int, draws: int) -> Row:
    """One line of the table. Populations of which fewer than half of the test sets have an interval are not counted."""
    found = [coverage(population, n, draws) for population in populations(statistic)]
    held = [share for share, given in found if share is not None and given >= 0.5]
    edges = {"mean": float(np.mean(held)), "min": min(held), "max": max(held)} if held else {}
    return {"statistic": statistic, "n": n, "given": float(np.mean([given for _, given in found])), **edges}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000, help="test sets of each population and size")
    parser.add_argument("--json", type=Path, help="file to write the table to")
    arguments = parser.parse_args()
    rows = []
    print(f"{'':<38}{'n':>5}{'mean':>8}{'min':>8}{'max':>8}{'given':>8}")
    for statistic in STATISTICS:
        for n in SIZES:
            rows.append(line := measure(statistic, n, arguments.draws))
            edges = "".join(f"{line[name]:>8.3f}" if name in line else f"{'-':>8}" for name in ("mean", "min", "max"))
            print(f"{statistic:<38}{n:>5}{edges}{line['given']:>8.2f}", flush=True)
    write_json(arguments.json, "interval_coverage", rows)


if __name__ == "__main__":
    main()
