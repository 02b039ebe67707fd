"""95 % confidence intervals. Rows are taken as independent draws; what varies is the test set, not the training.

Shares of 0/1 outcomes have the exact binomial interval (Clopper and Pearson, 1934), which is right at 0 and 1 too, where a
bootstrap has width zero. Everything else has the percentile bootstrap (Efron, 1979), seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mmcl.evaluate.rows import Rows

CONFIDENCE = 0.95
RESAMPLES = 1000
SEED = 0
MANY = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, its interval and the number of rows it was computed from. Interval and value are None where there is none.

    `rows` are these rows, where the value is a plain statistic of them; estimates are equal whatever their rows.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    rows: Rows | None = field(default=None, compare=False, repr=False)


def proportion(successes: int, n: int) -> Estimate:
    """Share of `successes` among `n` rows, with the exact binomial interval."""
    from scipy.special import betaincinv

    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes > 0 else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return Estimate(successes / n, low, high, n)


def mean(outcomes: np.ndarray, *, seed: int = SEED) -> Estimate:
    """Mean of outcomes [N]: a binomial interval if all are 0 or 1, else a bootstrap interval.

    The mean of more than 1000 different outcomes is normal, and has the interval of the normal distribution.
    """
    rows = Rows(np.asarray(outcomes, np.float32))
    if np.isin(outcomes, (0, 1)).all():
        return replace(proportion(int(outcomes.sum()), len(outcomes)), rows=rows)
    if len(np.unique(outcomes)) > MANY:
        return _normal(outcomes, rows)
    return _with_interval(float(outcomes.mean()), _resampled_means(outcomes, seed), len(outcomes), rows)


def median(outcomes: np.ndarray) -> Estimate:
    """Median of outcomes [N], with the interval that its bootstrap has over infinitely many resamples."""
    from scipy.special import betainc

    n, rows = len(outcomes), Rows(np.asarray(outcomes, np.float32), "median")
    values, counts = np.unique(outcomes, return_counts=True)
    share = counts.cumsum() / n
    tail = (1 - CONFIDENCE) / 2
    # At most v is the r-th smallest of n draws where at least r of them are: a tail of the binomial distribution.
    low, high = (
        float(values[(betainc(rank, n - rank + 1, share) >= level).argmax()])
        for rank, level in (((n - 1) // 2 + 1, tail), (n // 2 + 1, 1 - tail))
    )
    return Estimate(float(np.median(outcomes)), low, high, n, rows)


def class_mean(outcomes: np.ndarray, labels: np.ndarray, *, seed: int = SEED) -> Estimate:
    """Mean over the classes of the mean outcome of their rows; the bootstrap draws within each class."""
    groups = [outcomes[labels == label] for label in np.unique(labels)]
    resampled = np.mean([_resampled_means(group, (seed, number)) for number, group in enumerate(groups)], axis=0)
    rows = Rows(np.asarray(outcomes, np.float32), "class_mean", np.asarray(labels, np.int64))
    return _with_interval(float(np.mean([group.mean() for group in groups])), resampled, len(outcomes), rows)


def bootstrap(statistic: Callable[[np.ndarray], float], n: int, *, seed: int = SEED) -> Estimate:
    """Any statistic of `n` rows: `statistic` gets row numbers [n], once each, then resampled with replacement."""
    generator = np.random.default_rng(seed)
    resampled = np.array([statistic(generator.integers(n, size=n)) for _ in range(RESAMPLES)])
    return _with_interval(float(statistic(np.arange(n))), resampled, n)


def bootstrap_samples(statistic: Callable[..., float], samples: Sequence[np.ndarray], *, seed: int = SEED) -> Estimate:
    """Any statistic of several samples that were drawn apart: it gets each of them, and then each resampled within itself."""
    generator = np.random.default_rng(seed)
    resampled = [
        statistic(*(sample[generator.integers(len(sample), size=len(sample))] for sample in samples)) for _ in range(RESAMPLES)
    ]
    return _with_interval(float(statistic(*samples)), np.array(resampled), sum(map(len, samples)))


def over_runs(values: Sequence[float], n: int) -> Estimate:
    """Mean of the results of several runs on the same `n` rows, with Student's interval; of one run, without an interval."""
    from scipy.special import stdtrit

    array = np.asarray(values, np.float64)
    runs = len(array)
    if runs == 1:
        return exact(float(array[0]), n)
    half = float(stdtrit(runs - 1, (1 + CONFIDENCE) / 2)) * array.std(ddof=1) / np.sqrt(runs)
    return Estimate(float(array.mean()), float(array.mean() - half), float(array.mean() + half), n)


def exact(value: float | None, n: int) -> Estimate:
    """A number without sampling error, such as the expectation of chance."""
    return Estimate(value, None, None, n)


def _normal(outcomes: np.ndarray, rows: Rows) -> Estimate:
    from scipy.special import ndtri

    value, n = float(outcomes.mean()), len(outcomes)
    half = float(ndtri((1 + CONFIDENCE) / 2) * outcomes.std(ddof=1) / np.sqrt(n))
    return Estimate(value, value - half, value + half, n, rows)


def _resampled_means(outcomes: np.ndarray, seed: int | tuple[int, ...]) -> np.ndarray:
    values, counts = _resampled_counts(outcomes, seed)
    return counts @ values / len(outcomes)


def _resampled_counts(outcomes: np.ndarray, seed: int | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values [U] and how often each is drawn in each resample [RESAMPLES, U]: far less work than drawing rows."""
    values, counts = np.unique(outcomes, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(outcomes), counts / len(outcomes), size=RESAMPLES)
    return values, drawn


def _with_interval(value: float, resampled: np.ndarray, n: int, rows: Rows | None = None) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return Estimate(value, min(float(low), value), max(float(high), value), n, rows)
