"""Paired tests of two models on the same queries. Pairing removes the shared difficulty, so far fewer queries are needed."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from mmcl.evaluate.measures import statistics
from mmcl.evaluate.measures.outcomes import Rows
from mmcl.evaluate.measures.statistics import SEED, TAIL, Estimate

SWAPS = 4999
MANY = 1000
_SUREST = 7.0
"""Standard deviations beyond which no smaller p-value is looked for: 2.6e-12."""


def paired_difference(first: Rows, second: Rows, *, tail: float = TAIL) -> Estimate:
    """The statistic of `second` minus that of `first`, with the interval of the difference.

    Of 0/1 outcomes it is the score interval (Tango, "Equivalence test and confidence interval for the difference in proportions
    for the paired-sample design", 1998); of other means that of the mean of the differences. That of medians has none.

    Args:
        first, second: outcomes of the same queries in the same order, with the same statistic.
        tail: the probability that is left out beyond each end.

    Raises:
        ValueError: the rows differ in number, statistic, classes or clusters.
    """
    a, b = _outcomes(first, second)
    if first.statistic == "median":
        return statistics.exact(float(np.median(b) - np.median(a)), len(a))
    change = b - a
    low, high = first.within or statistics.bounds(np.concatenate([a, b]))
    within = (low - high, high - low)
    if first.labels is not None:
        return statistics.class_mean(change, first.labels, within=within, tail=tail)
    if first.clusters is None and np.isin(change, (-1, 0, 1)).all() and within == (-1, 1):
        return paired_shares(int((change > 0).sum()), int((change < 0).sum()), len(change), tail=tail)
    return statistics.mean(change, clusters=first.clusters, within=within, tail=tail)


def paired_test(first: Rows, second: Rows, *, seed: int = SEED) -> tuple[Estimate, float]:
    """The difference with its interval, and the two-sided p-value that belongs to it.

    The p-value is twice the smallest tail whose interval leaves out 0: it is below .05 exactly where the 95 % interval does. Of
    0/1 outcomes that is McNemar's test without a correction, (won - lost)^2 / (won + lost) against chi-squared, which Tango's
    interval inverts (Fagerland, Lydersen and Laake, "Recommended tests and confidence intervals for paired binomial
    proportions", 2014). Without an interval, the p-value is that of `swap_test`.

    Args, Raises: as for `paired_difference` and `swap_test`.
    """
    found = paired_difference(first, second)
    if found.low is None:
        return found, swap_test(first, second, seed=seed)
    assert found.value is not None
    sign = np.sign(found.value)

    def inner_end(deviations: float) -> float:
        """The end of the interval between the value and 0, above 0 where it leaves 0 out."""
        one = paired_difference(first, second, tail=float(ndtr(-deviations)))
        assert one.low is not None
        assert one.high is not None
        return one.low if sign > 0 else -one.high

    if sign == 0 or inner_end(0) <= 0:
        return found, 1.0
    deviations = _SUREST if inner_end(_SUREST) > 0 else float(brentq(inner_end, 0, _SUREST, xtol=1e-12))
    return found, float(2 * ndtr(-deviations))


def paired_shares(won: int, lost: int, n: int, *, tail: float = TAIL) -> Estimate:
    """(won - lost) / n with Tango's score interval: the differences that the data do not reject.

    Args:
        won, lost: of `n` queries, those that only the second model gets right, and only the first.
        tail: the probability that is left out beyond each end.
    """
    z = float(-ndtri(tail))

    def score(difference: float) -> float:
        """How many standard deviations the data are above a difference; its other parameter is the likeliest one."""
        b = (2 * n - won + lost) * difference - won - lost
        share = (np.sqrt(max(b**2 + 8 * n * lost * difference * (1 - difference), 0)) - b) / (4 * n)
        variance = n * (2 * share + difference * (1 - difference))
        return float((won - lost - n * difference) / np.sqrt(max(variance, 1e-300)))

    value = (won - lost) / n
    low = brentq(lambda d: score(d) - z, -1, value, xtol=1e-12) if lost < n else -1.0
    high = brentq(lambda d: score(d) + z, value, 1, xtol=1e-12) if won < n else 1.0
    return Estimate(value, float(low), float(high), n)


def swap_test(first: Rows, second: Rows, *, seed: int = SEED) -> float:
    """Two-sided p-value of the difference, if on every query it were chance which model had which of the two outcomes.

    The sign-flip (Fisher-Pitman) permutation test: how often is the difference at least as large when the two outcomes of every
    query are swapped at random? Queries of one cluster are swapped together. For a mean of more than 1000 different differences
    it is normal; else `SWAPS` draws are made, and p = (1 + as large) / (1 + SWAPS).

    Args, Raises: as for `paired_difference`.
    """
    a, b = _outcomes(first, second)
    generator = np.random.default_rng(seed)
    if first.statistic == "median":
        return _swapped_medians(a, b, first.clusters, generator)
    weight = np.full(len(a), 1 / len(a)) if first.labels is None else _class_weights(first.labels)
    change = b - a
    part = weight * change
    if first.clusters is not None:
        part = np.bincount(np.unique(first.clusters, return_inverse=True)[1], part)
    return _flipped_signs(part, generator)


def _outcomes(first: Rows, second: Rows) -> tuple[np.ndarray, np.ndarray]:
    if len(first) != len(second) or first.statistic != second.statistic:
        raise ValueError("the rows differ in number or statistic: they are not of the same queries")
    for ours, theirs in ((first.labels, second.labels), (first.clusters, second.clusters)):
        if ours is not theirs and not np.array_equal(ours, theirs):  # type: ignore[arg-type]
            raise ValueError("the rows differ in classes or clusters: they are not of the same queries")
    return first.values.astype(np.float64), second.values.astype(np.float64)


def _class_weights(labels: np.ndarray) -> np.ndarray:
    """The weight of every row in the mean over the classes."""
    present, place, count = np.unique(labels, return_inverse=True, return_counts=True)
    return 1 / (len(present) * count[place])


def _flipped_signs(part: np.ndarray, generator: np.random.Generator) -> float:
    """Of a sum of parts. Parts of equal size are flipped together: how many of them stay positive is binomial."""
    size, count = np.unique(np.abs(part[part != 0]), return_counts=True)
    if len(size) > MANY:
        return float(2 * ndtr(-abs(part.sum()) / np.sqrt(part @ part)))
    as_large = 0
    observed = abs(part.sum()) * (1 - 1e-9)
    for draws in _blocks(len(size)):
        positive = generator.binomial(count, 0.5, size=(draws, len(size)))
        as_large += int((np.abs((2 * positive - count) @ size) >= observed).sum())
    return (1 + as_large) / (1 + SWAPS)


def _swapped_medians(a: np.ndarray, b: np.ndarray, clusters: np.ndarray | None, generator: np.random.Generator) -> float:
    observed, as_large = abs(np.median(b) - np.median(a)), 0
    place = np.arange(len(a)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    for draws in _blocks(len(a)):
        swap = (generator.random((draws, int(place.max()) + 1)) < 0.5)[:, place]
        difference = np.median(np.where(swap, a, b), axis=1) - np.median(np.where(swap, b, a), axis=1)
        as_large += int((np.abs(difference) >= observed).sum())
    return (1 + as_large) / (1 + SWAPS)


def _blocks(width: int) -> list[int]:
    """`SWAPS` draws in parts of about 4 million numbers."""
    size = max(1, 2**22 // max(1, width))
    return [min(size, SWAPS - start) for start in range(0, SWAPS, size)]
