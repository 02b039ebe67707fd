"""95 % confidence intervals. Rows are treated as independent draws; intervals cover the test set, not the training.

An interval is given only where its coverage is 93 to 97 %, starting at the smallest number of rows with one. Coverage is
higher, up to 100 %, at the edge (`EDGE`): if fewer than about three rows are expected to differ from the rest, unseen outcomes
dominate, and a valid interval is wide. With few rows, counts are discrete and coverage varies with the rate: it may be 91 % at
a single rate, and only the mean over a few rates is in the range (Brown, Cai and DasGupta, 2001).
`scripts/bench/interval_coverage.py` prints the coverage table and checks it.

share of 0/1 outcomes           mid-p binomial (Lancaster, "Significance tests in discrete distributions", 1961)
mean within known bounds        `within_bounds`; with classes, the mean over the classes
mean of rows in clusters        `within_bounds` with the jackknife variance over clusters and their effective number; likewise
                                the mean over the classes
mean without bounds             Hall's transformation of Student's t (1992), from `FEWEST_UNBOUNDED` rows
median                          interpolated order statistics (Hettmansperger and Sheather, 1986)
difference of two samples       MOVER (Zou and Donner, "Construction of confidence limits about effect measures", 2008)
difference of paired shares     score interval (Tango, 1998), see the paired comparison
difference of paired AUROCs     `within_bounds` with the variance by DeLong's method, likewise average precision, F1 and means
                                of them, see detection.py
rank correlation                Fisher's z with the rows' own variance, from `FEWEST_CORRELATED` rows, see `correlation`
several training runs           Student's t, kept within the range of the results
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mmcl.evaluate.measures.outcomes import Outcomes

CONFIDENCE = 0.95
SEED = 0
FEWEST_DRAWS = 5
"""Smallest number of rows, or of effective clusters, for an interval of a mean within bounds or of a median."""
FEWEST_CLUSTERS = 10
"""Smallest effective number of clusters for an interval; clusters of unequal sizes count as fewer equal ones (Kish)."""
FEWEST_WITHIN_CLASSES = 15
"""Smallest number of rows, or of effective clusters, beyond the first of each class for an interval of the mean over the
classes."""
FEWEST_UNBOUNDED = 200
"""Smallest number of rows for an interval of the mean of unbounded outcomes; fewer may not show a long tail."""
FEWEST_CORRELATED = 20
"""Smallest number of rows for an interval of a rank correlation."""
EDGE = 3
"""If n times the variance, in units of the range, is below this, coverage is between 93 and 100 % (the rule of three)."""
TAIL = (1 - CONFIDENCE) / 2
"""Probability beyond each end of an interval."""
Interval = tuple[float, float]
ANYTHING = (-np.inf, np.inf)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, its interval and the number of rows that it was computed from. Value and interval may be None.

    `outcomes` are set if the value is a simple statistic of the outcomes of these rows; equality ignores them.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    outcomes: Outcomes | None = field(default=None, compare=False, repr=False)


def proportion(successes: int, n: int, *, tail: float = TAIL) -> Estimate:
    """Share of `successes` among `n` rows with the mid-p binomial interval, which includes half the probability of the count.

    Its coverage is about 95 % on average over rates and at least 91 % at every rate; it rises to 100 % at the rates 0 and 1.
    """
    return Estimate(successes / n, _mid_p_low(successes, n, tail), 1 - _mid_p_low(n - successes, n, tail), n)


def mean(
    outcomes: np.ndarray, *, clusters: np.ndarray | None = None, within: Interval | None = None, tail: float = TAIL
) -> Estimate:
    """Mean of outcomes [N].

    Args:
        outcomes: finite numbers.
        clusters: integers [N], equal for rows that belong together, such as the captions of one image: clusters are independent
            draws, and their rows may be correlated.
        within: lower and upper bound of an outcome, possibly infinite; by default [0, 1] or [-1, 1] if these contain all
            outcomes, else unbounded. Unbounded outcomes in clusters have no interval.
        tail: probability beyond each end.
    """
    outcomes = np.asarray(outcomes, np.float64)
    clusters = proper_clusters(clusters)
    low, high = within or bounds(outcomes)
    per_row = Outcomes(np.asarray(outcomes, np.float32), clusters=clusters, within=(low, high))
    if clusters is None and (low, high) == (0, 1) and np.isin(outcomes, (0, 1)).all():
        return replace(proportion(int(outcomes.sum()), len(outcomes), tail=tail), outcomes=per_row)
    if not np.isfinite(high - low):
        interval = _hall(outcomes, tail) if clusters is None else None
        return _estimate(float(outcomes.mean()), interval, len(outcomes), per_row)
    value, variance, draws = _draws(outcomes, clusters)
    if clusters is not None and draws < FEWEST_CLUSTERS:
        return Estimate(value, None, None, len(outcomes), per_row)
    return replace(bounded(value, variance, draws, len(outcomes), low, high, tail=tail), outcomes=per_row)


def class_mean(
    outcomes: np.ndarray,
    labels: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    within: Interval | None = None,
    tail: float = TAIL,
) -> Estimate:
    """Mean over the classes of the mean outcome of their rows, such as balanced accuracy.

    The variance is estimated within each class, with divisor n - 1; for rows in clusters, it is that of the jackknife. There is
    no interval if a class has a single row or cluster, if there are fewer than `FEWEST_WITHIN_CLASSES` rows or effective
    clusters beyond the first of each class, or for unbounded outcomes. `clusters`, `within` and `tail` are as for `mean`.
    """
    outcomes, labels = np.asarray(outcomes, np.float64), np.asarray(labels, np.int64)
    _, place, count = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.bincount(place, outcomes) / count
    value = float(means.mean())
    low, high = within or bounds(outcomes)
    clusters = proper_clusters(clusters)
    per_row = Outcomes(np.asarray(outcomes, np.float32), "class_mean", labels, clusters=clusters, within=(low, high))
    spread = _class_spread(outcomes, place) if clusters is None else _clustered_class_spread(outcomes, place, clusters)
    if spread is None or not np.isfinite(high - low):
        return Estimate(value, None, None, len(outcomes), per_row)
    variance, effective = spread
    found = bounded(value, variance * effective, effective, len(outcomes), low, high, tail=tail)
    return replace(found, outcomes=per_row)


def _class_spread(outcomes: np.ndarray, place: np.ndarray) -> tuple[float, float] | None:
    """Variance of the mean over the classes, and the effective number of rows; None if there are too few."""
    count = np.bincount(place)
    if count.min() < 2 or len(outcomes) - len(count) < FEWEST_WITHIN_CLASSES:
        return None
    means = np.bincount(place, outcomes) / count
    variances = np.bincount(place, (outcomes - means[place]) ** 2) / (count - 1) / count
    return float(variances.sum()) / len(count) ** 2, len(count) ** 2 / float((1 / count).sum())


def _clustered_class_spread(outcomes: np.ndarray, place: np.ndarray, clusters: np.ndarray) -> tuple[float, float] | None:
    """Variance of the mean over the classes when one cluster after the other is left out, and the effective number of clusters.

    None if there are too few, in all or beyond the first of each class, or if a class would vanish with a cluster.
    """
    names, cluster = np.unique(clusters, return_inverse=True)
    # Only pairs of a class and a cluster that occur: all of them may be too many.
    pair, row = np.unique(place * len(names) + cluster, return_inverse=True)
    of_class, of_cluster = np.divmod(pair, len(names))
    count, total = np.bincount(place), np.bincount(place, outcomes)
    own_count, own_total = np.bincount(row), np.bincount(row, outcomes)
    left = count[of_class] - own_count
    weight = np.bincount(of_cluster, own_count / count[of_class]) / len(count)
    effective = 1 / float((weight**2).sum())
    of_classes = float((count**2 / np.bincount(of_class, own_count**2)).sum())
    if left.min() == 0 or effective < FEWEST_CLUSTERS or of_classes - len(count) < FEWEST_WITHIN_CLASSES:
        return None
    change = (total[of_class] - own_total) / left - (total / count)[of_class]
    changes = np.bincount(of_cluster, change) / len(count)
    return float((changes**2).sum()) * (1 - 1 / len(names)), effective


def median(outcomes: np.ndarray, *, clusters: np.ndarray | None = None) -> Estimate:
    """Median of outcomes [N], with an interval between order statistics that is valid for any distribution, from 5 rows.

    Equal outcomes, such as ranks, widen the interval, because an end cannot lie between them; coverage is then 93 to 100 %.
    """
    outcomes = np.asarray(outcomes, np.float64)
    clusters = proper_clusters(clusters)
    per_row, value = Outcomes(np.asarray(outcomes, np.float32), "median", clusters=clusters), float(np.median(outcomes))
    _, variance, draws = _draws((outcomes < value) + (outcomes == value) / 2, clusters)
    # The number of independent rows with the same precision for the share below the median; rows of a cluster are correlated.
    n = len(outcomes) if clusters is None else min(len(outcomes), draws * 0.25 / max(variance, 1e-12))
    if n < FEWEST_DRAWS or (clusters is not None and draws < FEWEST_CLUSTERS):
        return Estimate(value, None, None, len(outcomes), per_row)
    low = _median_place(n) / (n + 1)
    ends = np.quantile(outcomes, (low, 1 - low), method="weibull")
    return _estimate(value, (float(ends[0]), float(ends[1])), len(outcomes), per_row)


def difference(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Difference of the means of two independent samples, with an interval from both of theirs (MOVER)."""
    return subtract(mean(first), mean(second))


def subtract(a: Estimate, b: Estimate) -> Estimate:
    """Difference of two values, a - b, with an interval from those of both if both have one (MOVER).

    It holds for independent samples; for two results on the same rows, which agree on easy and on hard ones, it is too wide.
    """
    assert a.value is not None
    assert b.value is not None
    value, n = a.value - b.value, a.n + b.n
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Estimate(value, None, None, n)
    low = value - float(np.hypot(a.value - a.low, b.high - b.value))
    high = value + float(np.hypot(a.high - a.value, b.value - b.low))
    return Estimate(value, low, high, n)


def correlation(value: float, influence: np.ndarray) -> Estimate:
    """Rank correlation with Fisher's z interval, from `FEWEST_CORRELATED` rows.

    The variance is estimated from the rows (the delta method), so it also holds with ties and if the spread of one side depends
    on the other. Student's t with n - 2 degrees of freedom accounts for the estimated variance.

    Args:
        value: r, from -1 to 1.
        influence: float64 [N], the influence of each row on r, with mean 0.
    """
    from scipy.special import stdtrit

    n = len(influence)
    # For r = 1, z is infinite and the variance is 0.
    if n < FEWEST_CORRELATED or abs(value) > 1 - 6 / (n**3 - n):
        return exact(value, n)
    own = float((influence**2).mean()) / (n - 3) / (1 - value**2) ** 2
    half = float(stdtrit(n - 2, 1 - TAIL)) * np.sqrt(own)
    low, high = np.tanh(np.arctanh(value) + np.array([-half, half]))
    return _estimate(value, (float(low), float(high)), n)


def over_runs(values: Sequence[float], n: int, *, within: Interval = (0.0, 1.0)) -> Estimate:
    """Mean of the results of several runs on the same `n` rows, with Student's interval over the runs.

    The results are assumed to be about normal, which a few runs cannot verify: if their spread is as large as their distance
    from 0 or 1, coverage is only 89 %. A single run, or runs with equal results, have no interval.

    Args:
        values: the results.
        n: rows of the test set.
        within: lower and upper bound of a result, which limit the interval.
    """
    from scipy.special import stdtrit

    array = np.asarray(values, np.float64)
    runs, value = len(array), float(np.mean(array))
    if np.ptp(array) == 0:
        return exact(value, n)
    half = float(stdtrit(runs - 1, 1 - TAIL) * array.std(ddof=1) / np.sqrt(runs))
    return Estimate(value, max(value - half, within[0]), min(value + half, within[1]), n)


def exact(value: float | None, n: int) -> Estimate:
    """A number without an interval: the expectation of chance, or a statistic without a valid interval."""
    return Estimate(value, None, None, n)


def bounded(
    value: float, variance: float, draws: float, n: int, low: float = 0.0, high: float = 1.0, *, tail: float = TAIL
) -> Estimate:
    """Estimate from `n` rows with the interval of `within_bounds`."""
    return _estimate(value, within_bounds(value, variance, draws, low, high, tail=tail), n)


def within_bounds(
    value: float, variance: float, n: float, low: float = 0.0, high: float = 1.0, *, tail: float = TAIL
) -> Interval | None:
    """Interval of a mean of `n` draws, each from `low` to `high`: Jeffreys' interval, generalized to any variance.

    It is a Bayesian bootstrap (Rubin, "The Bayesian bootstrap", 1981) of the draws and of half a draw at either bound, for
    unseen outcomes, approximated by the beta distribution with the same mean and variance. For 0/1 outcomes it is exactly
    Jeffreys' interval, modified at the bounds as in Brown, Cai and DasGupta ("Interval estimation for a binomial proportion",
    2001, section 4.1.1): if the sum is at most one draw away from a bound, the interval ends at the bound; if all draws equal a
    bound, the other end is that of Clopper and Pearson.

    Args:
        value: the mean.
        variance: variance of one draw, so that variance / n is the variance of the mean.
        n: number of draws; for weighted draws the effective number, (sum of weights)^2 / sum of squared weights.
        low, high: the bounds.
        tail: probability beyond each end.

    Returns:
        The interval; None for fewer than `FEWEST_DRAWS` draws.
    """
    if n < FEWEST_DRAWS * (1 - 1e-9):
        return None
    v, s = (value - low) / (high - low), variance / (high - low) ** 2
    return low + (high - low) * _unit_low(v, s, n, tail), high - (high - low) * _unit_low(1 - v, s, n, tail)


def _unit_low(v: float, s: float, n: float, tail: float) -> float:
    """Lower end of `within_bounds` for the bounds 0 and 1."""
    from scipy.special import betaincinv

    if n * v <= 1 + 1e-9:
        return 0.0
    m = (n * v + 0.5) / (n + 1)
    squares = n * (s + (v - m) ** 2) + 0.5 * m**2 + 0.5 * (1 - m) ** 2
    size = m * (1 - m) * (n + 1) * (n + 2) / squares - 1
    end = float(betaincinv(m * size, (1 - m) * size, tail))
    return min(end, tail ** (1 / n)) if v > 1 - 1e-9 else end


def bounds(outcomes: np.ndarray) -> Interval:
    """Returns the first of [0, 1] and [-1, 1] that contains all outcomes; infinite bounds if neither does."""
    least, most = float(outcomes.min()), float(outcomes.max())
    if most > 1 or least < -1:
        return ANYTHING
    return (0.0, 1.0) if least >= 0 else (-1.0, 1.0)


def _mid_p_low(k: int, n: int, tail: float) -> float:
    """Rate at which P(more than k of n) + P(k of n) / 2 equals the tail probability."""
    from scipy.optimize import brentq
    from scipy.special import betainc

    if k == 0:
        return 0.0

    def excess(rate: float) -> float:
        more = betainc(k + 1, n - k, rate) if k < n else 0.0
        return float(betainc(k, n - k + 1, rate) + more) / 2 - tail

    return float(brentq(excess, 0, 1, xtol=1e-14))


def _hall(draws: np.ndarray, tail: float) -> Interval | None:
    """Student's interval, corrected for skewness (Hall, "On the removal of skewness by transformation", 1992)."""
    from scipy.special import stdtrit

    n, value, deviation = len(draws), draws.mean(), draws.std(ddof=1) if len(draws) > 1 else 0.0
    if n < FEWEST_UNBOUNDED or deviation <= 1e-12 * abs(value):
        return None
    a = max(abs(skew := float(((draws - value) ** 3).mean() / deviation**3) / np.sqrt(n)), 1e-9) * (1 if skew >= 0 else -1)
    quantile = stdtrit(n - 1, tail) * np.array([-1, 1])
    ends = value - deviation / np.sqrt(n) * 3 / a * (np.cbrt(1 + a * (quantile - a / 6)) - 1)
    return float(ends[0]), float(ends[1])


def effective_clusters(clusters: np.ndarray) -> float:
    """The number of clusters of equal size that are worth as much: (sum of sizes)^2 / sum of squared sizes (Kish, 1965)."""
    count = np.unique(clusters, return_counts=True)[1]
    return float(count.sum()) ** 2 / float((count**2).sum())


def proper_clusters(clusters: np.ndarray | None) -> np.ndarray | None:
    """Returns the clusters, int64 [N], or None if every row is its own cluster."""
    if clusters is None or len(np.unique(clusters)) == len(clusters):
        return None
    return np.asarray(clusters, np.int64)


def _draws(outcomes: np.ndarray, clusters: np.ndarray | None) -> tuple[float, float, float]:
    """Returns the mean, the variance of one draw, and the number of draws.

    A draw is a row, or a cluster. For clusters, the variance is that of the jackknife, which is valid for unequal sizes
    (MacKinnon, Nielsen and Webb, "Cluster-robust inference: a guide to empirical practice", 2023), and the number of draws is
    the effective one, see `effective_clusters`.
    """
    value = float(outcomes.mean())
    if clusters is None:
        return value, float(outcomes.var()), float(len(outcomes))
    _, place, count = np.unique(clusters, return_inverse=True, return_counts=True)
    effective = effective_clusters(clusters)
    if len(count) < 2:
        return value, 0.0, effective
    change = np.bincount(place, outcomes - value) / (len(outcomes) - count) * (1 - 1 / len(count))
    return value, float((change**2).sum()) * effective, effective


def _median_place(n: float) -> float:
    """Position, from 1, of the median's lower end among `n` sorted rows; for 5 rows, the smallest row.

    Hettmansperger and Sheather, "Confidence intervals based on interpolated order statistics", 1986, equation 2.1.
    """
    from scipy.special import betainc

    def missed(rank: int) -> float:
        """Probability that the median is outside the rows of this rank, counted from below and from above."""
        return 2 * float(betainc(n - rank + 1, rank, 0.5))

    rank, left_out = 1, 2 * TAIL
    while missed(rank + 1) <= left_out:
        rank += 1
    if missed(rank) > left_out:
        return 1.0
    part = (left_out - missed(rank)) / (missed(rank + 1) - missed(rank))
    return rank + (n - rank) * part / (rank + (n - 2 * rank) * part)


def _estimate(value: float, interval: Interval | None, n: int, outcomes: Outcomes | None = None) -> Estimate:
    """Creates an estimate; widens the interval to contain the value, because unseen outcomes can shift both ends past it."""
    if interval is None:
        return Estimate(value, None, None, n, outcomes)
    return Estimate(value, min(interval[0], value), max(interval[1], value), n, outcomes)
