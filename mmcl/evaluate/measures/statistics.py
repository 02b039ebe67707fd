"""95 % confidence intervals. Rows are taken as independent draws; what varies is the test set, not the training.

An interval stands only where it holds: its coverage stays near 95 % down to 5 rows, at values near 0 and 1 too, where a
percentile bootstrap has width zero (`scripts/bench/interval_coverage.py` prints the table). Where none does, there is none.

share of 0/1 outcomes           mid-p binomial (Lancaster, "Significance tests in discrete distributions", 1961)
mean within known bounds        `within_bounds`; with classes the mean over them, with clusters that of correlated rows
mean without bounds             Hall's transformation of Student's t (1992), from `FEWEST_UNBOUNDED` rows
median                          order statistics (Woodruff, "Confidence intervals for medians", 1952)
difference of two samples       MOVER (Zou and Donner, "Construction of confidence limits about effect measures", 2008)
difference of paired shares     score interval (Tango, 1998), see paired.py
correlation                     Fisher's z, see `correlation`
several training runs           Student's t
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mmcl.evaluate.measures.outcomes import Rows

CONFIDENCE = 0.95
SEED = 0
FEWEST_UNBOUNDED = 50
"""Rows from which the mean of outcomes without bounds has an interval: of fewer, a long tail may not show."""
FEWEST_CORRELATED = 5
FEWEST_OF_MEDIAN = 5
_TAIL = (1 - CONFIDENCE) / 2
Z = 1.959963984540054
"""Of the normal distribution, between -Z and Z lie 95 %."""
Interval = tuple[float, float]
ANYTHING = (-np.inf, np.inf)


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
    """Share of `successes` among `n` rows, with the mid-p binomial interval: half of the observed count's probability counts.

    Its coverage is about 95 % on average over rates, and at least 91 % at any; towards the rates 0 and 1 it rises to 100 %.
    """
    return Estimate(successes / n, _mid_p_low(successes, n), 1 - _mid_p_low(n - successes, n), n)


def mean(outcomes: np.ndarray, *, clusters: np.ndarray | None = None, within: Interval | None = None) -> Estimate:
    """Mean of outcomes [N].

    Args:
        outcomes: finite numbers.
        clusters: integers [N], equal for rows that belong together, such as the captions of one image: the clusters are what
            was drawn, and their rows may be correlated.
        within: what an outcome can be at least and at most, perhaps infinite; by default [0, 1] if all lie there, else [-1, 1]
            if they do, else anything.
    """
    outcomes = np.asarray(outcomes, np.float64)
    clusters = _proper(clusters)
    low, high = within or bounds(outcomes)
    rows = Rows(np.asarray(outcomes, np.float32), clusters=clusters, within=(low, high))
    if clusters is None and (low, high) == (0, 1) and np.isin(outcomes, (0, 1)).all():
        return replace(proportion(int(outcomes.sum()), len(outcomes)), rows=rows)
    value, draws = float(outcomes.mean()), _cluster_values(outcomes, clusters)
    is_bounded = bool(np.isfinite(high - low))
    interval = within_bounds(value, float(draws.var()), len(draws), low, high) if is_bounded else _hall(draws)
    return _estimate(value, interval, len(outcomes), rows)


def class_mean(outcomes: np.ndarray, labels: np.ndarray, *, within: Interval | None = None) -> Estimate:
    """Mean over the classes of the mean outcome of their rows, such as balanced accuracy.

    The variance is that within the classes, each from its own rows (n - 1 in the divisor): where a class has one row only, it
    is not known, and there is no interval. Nor is there one for outcomes without bounds; `within` is as for `mean`.
    """
    outcomes, labels = np.asarray(outcomes, np.float64), np.asarray(labels, np.int64)
    _, place, count = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.bincount(place, outcomes) / count
    value = float(means.mean())
    low, high = within or bounds(outcomes)
    rows = Rows(np.asarray(outcomes, np.float32), "class_mean", labels, within=(low, high))
    if count.min() < 2 or not np.isfinite(high - low):
        return Estimate(value, None, None, len(outcomes), rows)
    variances = np.bincount(place, (outcomes - means[place]) ** 2) / (count - 1) / count
    effective = len(count) ** 2 / float((1 / count).sum())
    variance = float(variances.sum()) / len(count) ** 2
    return _estimate(value, within_bounds(value, variance * effective, effective, low, high), len(outcomes), rows)


def median(outcomes: np.ndarray, *, clusters: np.ndarray | None = None) -> Estimate:
    """Median of outcomes [N], with an interval between order statistics: whatever the distribution, from 5 rows.

    The share of draws below the median is 1/2; the interval of that share, read off the sorted rows, is the median's.
    """
    outcomes = np.asarray(outcomes, np.float64)
    clusters = _proper(clusters)
    rows, value = Rows(np.asarray(outcomes, np.float32), "median", clusters=clusters), float(np.median(outcomes))
    below = _cluster_values((outcomes < value) + (outcomes == value) / 2, clusters)
    n = len(below) if clusters is None else min(len(outcomes), 0.25 / max(float(below.var()) / len(below), 1e-12))
    if n < FEWEST_OF_MEDIAN:
        return Estimate(value, None, None, len(outcomes), rows)
    low, high = np.quantile(outcomes, within_bounds(0.5, 0.25, n), method="weibull")
    return _estimate(value, (float(low), float(high)), len(outcomes), rows)


def difference(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Mean of one sample minus the mean of another that was drawn apart, by the intervals of both (MOVER)."""
    a, b = mean(first), mean(second)
    return Estimate(*_mover(a, b), a.n + b.n)


def correlation(value: float, influence: np.ndarray) -> Estimate:
    """Spearman's rank correlation, with Fisher's z interval.

    Its variance is the larger of the normal model's, (1 + r^2 / 2) / (n - 3) (Bonett and Wright, "Sample size requirements for
    estimating Pearson, Kendall and Spearman correlations", 2000), and the rows' own, which holds where the spread of one side
    changes with the other.

    Args:
        value: r, from -1 to 1.
        influence: float64 [N], what each row adds to it, with mean 0.
    """
    n = len(influence)
    if n < FEWEST_CORRELATED:
        return exact(value, n)
    # r = 1 has no z: half a step below it, of all the values that n rows without ties can have.
    inner = float(np.clip(value, *np.array([-1, 1]) * (1 - 6 / (n**3 - n))))
    own = float((influence**2).mean()) / (n - 1) / (1 - inner**2) ** 2
    half = Z * np.sqrt(max((1 + inner**2 / 2) / (n - 3), own))
    low, high = np.tanh(np.arctanh(inner) + np.array([-half, half]))
    return _estimate(value, (float(low), float(high)), n)


def over_runs(values: Sequence[float], n: int) -> Estimate:
    """Mean of the results of several runs on the same `n` rows, with Student's interval over the runs.

    There is none of one run, nor where all runs gave the same.
    """
    from scipy.special import stdtrit

    array = np.asarray(values, np.float64)
    runs, value = len(array), float(np.mean(array))
    if np.ptp(array) == 0:
        return exact(value, n)
    half = float(stdtrit(runs - 1, 1 - _TAIL) * array.std(ddof=1) / np.sqrt(runs))
    return Estimate(value, value - half, value + half, n)


def exact(value: float | None, n: int) -> Estimate:
    """A number without an interval: the expectation of chance, or a statistic that has none that holds."""
    return Estimate(value, None, None, n)


def within_bounds(value: float, variance: float, n: float, low: float = 0.0, high: float = 1.0) -> Interval:
    """The interval of a mean of `n` draws, each from `low` to `high`: Jeffreys' interval with a variance of its own.

    A Bayesian bootstrap (Rubin, "The Bayesian bootstrap", 1981) of the draws and of half a draw at either bound, for what has
    not been seen, matched by the beta distribution of the same mean and variance. Of 0/1 outcomes that is exactly Jeffreys'
    interval (Brown, Cai and DasGupta, "Interval estimation for a binomial proportion", 2001). Like it, it ends at a bound
    where all draws lie there.

    Args:
        value: the mean.
        variance: of one draw, so that variance / n is the variance of the mean.
        n: number of draws; of weighted ones the effective number, (sum of weights)^2 / sum of squared weights.
    """
    from scipy.special import betaincinv

    v, s = (value - low) / (high - low), variance / (high - low) ** 2
    m = (n * v + 0.5) / (n + 1)
    squares = n * (s + (v - m) ** 2) + 0.5 * m**2 + 0.5 * (1 - m) ** 2
    size = m * (1 - m) * (n + 1) * (n + 2) / squares - 1
    ends = betaincinv(m * size, (1 - m) * size, [_TAIL, 1 - _TAIL]) * (high - low) + low
    return (low if v < 1e-9 else float(ends[0])), (high if v > 1 - 1e-9 else float(ends[1]))


def bounds(outcomes: np.ndarray) -> Interval:
    """[0, 1] or [-1, 1], the first that holds all outcomes; infinite where neither does."""
    least, most = float(outcomes.min()), float(outcomes.max())
    if most > 1 or least < -1:
        return ANYTHING
    return (0.0, 1.0) if least >= 0 else (-1.0, 1.0)


def _mid_p_low(k: int, n: int) -> float:
    """The rate at which k or more of n, k itself counted half, has the probability of the tail."""
    from scipy.optimize import brentq
    from scipy.special import betainc

    if k == 0:
        return 0.0

    def excess(rate: float) -> float:
        more = betainc(k + 1, n - k, rate) if k < n else 0.0
        return float(betainc(k, n - k + 1, rate) + more) / 2 - _TAIL

    return float(brentq(excess, 0, 1, xtol=1e-14))


def _hall(draws: np.ndarray) -> Interval | None:
    """Student's interval with its skewness taken out (Hall, "On the removal of skewness by transformation", 1992)."""
    from scipy.special import stdtrit

    n, value, deviation = len(draws), draws.mean(), draws.std(ddof=1) if len(draws) > 1 else 0.0
    if n < FEWEST_UNBOUNDED or deviation <= 1e-12 * abs(value):
        return None
    a = max(abs(skew := float(((draws - value) ** 3).mean() / deviation**3) / np.sqrt(n)), 1e-9) * (1 if skew >= 0 else -1)
    quantile = stdtrit(n - 1, 1 - _TAIL) * np.array([1, -1])
    ends = value - deviation / np.sqrt(n) * 3 / a * (np.cbrt(1 + a * (quantile - a / 6)) - 1)
    return float(ends[0]), float(ends[1])


def _proper(clusters: np.ndarray | None) -> np.ndarray | None:
    """None where every row is a cluster of its own."""
    if clusters is None or len(np.unique(clusters)) == len(clusters):
        return None
    return np.asarray(clusters, np.int64)


def _cluster_values(outcomes: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
    """One number for each cluster, whose mean is that of the rows, and whose variance is that of a ratio of sums."""
    if clusters is None:
        return outcomes
    _, place, count = np.unique(clusters, return_inverse=True, return_counts=True)
    value = outcomes.mean()
    return np.asarray(value + np.bincount(place, outcomes - value) / count.mean())


def _mover(a: Estimate, b: Estimate) -> tuple[float, float | None, float | None]:
    assert a.value is not None
    assert b.value is not None
    value = a.value - b.value
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return value, None, None
    low = value - float(np.hypot(a.value - a.low, b.high - b.value))
    high = value + float(np.hypot(a.high - a.value, b.value - b.low))
    return value, low, high


def _estimate(value: float, interval: Interval | None, n: int, rows: Rows | None = None) -> Estimate:
    """The interval holds the value: where a bound of it was moved by what has not been seen, too."""
    if interval is None:
        return Estimate(value, None, None, n, rows)
    return Estimate(value, min(interval[0], value), max(interval[1], value), n, rows)
