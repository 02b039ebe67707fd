"""Paired tests of two models on the same queries. Pairing removes the shared difficulty, so far fewer queries are needed."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from mmcl.evaluate.measures import statistics
from mmcl.evaluate.measures.outcomes import Influence, Outcomes
from mmcl.evaluate.measures.statistics import SEED, TAIL, Estimate

SWAPS = 4999
MANY = 1000
_SUREST = 7.0
"""Largest number of standard deviations that is considered; the smallest p-value is therefore 2.6e-12."""


def paired_difference(first: Outcomes, second: Outcomes, *, tail: float = TAIL) -> Estimate:
    """Statistic of `second` minus that of `first`, with the interval of the difference.

    For 0/1 outcomes it is the score interval (Tango, "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design", 1998); for other means, that of the mean difference. Medians have no interval.
    For an AUROC and the like, the variance is that of the differences of the rows' influences, as of DeLong, DeLong and
    Clarke-Pearson ("Comparing the areas under two or more correlated ROC curves", 1988).

    Args:
        first, second: outcomes of the same queries in the same order, with the same statistic.
        tail: probability beyond each end.

    Raises:
        ValueError: the rows differ in number, statistic, classes or clusters.
    """
    a, b = _outcomes(first, second)
    if first.influence is not None and second.influence is not None:
        return _difference_by_influence(first.influence, second.influence, first.clusters, tail)
    if first.statistic == "median":
        return statistics.exact(float(np.median(b) - np.median(a)), len(a))
    change = b - a
    low, high = first.within or statistics.bounds(np.concatenate([a, b]))
    within = (low - high, high - low)
    if first.labels is not None:
        return statistics.class_mean(change, first.labels, clusters=first.clusters, within=within, tail=tail)
    if first.clusters is None and np.isin(change, (-1, 0, 1)).all() and within == (-1, 1):
        return paired_shares(int((change > 0).sum()), int((change < 0).sum()), len(change), tail=tail)
    return statistics.mean(change, clusters=first.clusters, within=within, tail=tail)


def _difference_by_influence(first: Influence, second: Influence, clusters: np.ndarray | None, tail: float) -> Estimate:
    change_N, draws = second.row_N.astype(np.float64) - first.row_N, min(first.draws, second.draws)
    of_clusters = change_N if clusters is None else np.bincount(np.unique(clusters, return_inverse=True)[1], change_N)
    spread = float((of_clusters**2).sum()) * draws
    return statistics.bounded(second.value - first.value, spread, draws, len(change_N), -1.0, 1.0, tail=tail)


def paired_test(first: Outcomes, second: Outcomes, *, seed: int = SEED) -> tuple[Estimate, float]:
    """Returns the difference with its interval, and the corresponding two-sided p-value.

    The p-value is twice the smallest tail whose interval excludes 0: it is below .05 exactly if the 95 % interval excludes 0.
    For 0/1 outcomes this is McNemar's test without continuity correction, (won - lost)^2 / (won + lost) against chi-squared,
    which Tango's interval inverts (Fagerland, Lydersen and Laake, "Recommended tests and confidence intervals for paired
    binomial proportions", 2014). Without an interval, the p-value is that of `swap_test`.

    Args, Raises: as for `paired_difference` and `swap_test`.
    """
    found = paired_difference(first, second)
    if found.low is None:
        return found, swap_test(first, second, seed=seed)
    assert found.value is not None
    sign = np.sign(found.value)

    def inner_end(deviations: float) -> float:
        """End of the interval on the side of 0, times the sign of the value; positive if the interval excludes 0."""
        one = paired_difference(first, second, tail=float(ndtr(-deviations)))
        assert one.low is not None
        assert one.high is not None
        return one.low if sign > 0 else -one.high

    if sign == 0 or inner_end(0) <= 0:
        return found, 1.0
    deviations = _SUREST if inner_end(_SUREST) > 0 else float(brentq(inner_end, 0, _SUREST, xtol=1e-12))
    return found, float(2 * ndtr(-deviations))


def paired_shares(won: int, lost: int, n: int, *, tail: float = TAIL) -> Estimate:
    """(won - lost) / n with Tango's score interval, which contains the differences that the data do not reject.

    Args:
        won, lost: numbers of queries, out of `n`, that only the second model and only the first model gets right.
        tail: probability beyond each end.
    """
    z, value = float(-ndtri(tail)), (won - lost) / n

    def score(difference: float) -> float:
        """Standard deviations by which the data exceed a difference, with the maximum-likelihood nuisance parameter."""
        b = (2 * n - won + lost) * difference - won - lost
        share = (np.sqrt(max(b**2 + 8 * n * lost * difference * (1 - difference), 0)) - b) / (4 * n)
        variance = n * (2 * share + difference * (1 - difference))
        # Exactly 0 at the value itself, which (won - lost - n * value) is not, so that either end is found for any tail.
        return float(n * (value - difference) / np.sqrt(max(variance, 1e-300)))

    low = brentq(lambda d: score(d) - z, -1, value, xtol=1e-12) if lost < n else -1.0
    high = brentq(lambda d: score(d) + z, value, 1, xtol=1e-12) if won < n else 1.0
    return Estimate(value, float(low), float(high), n)


def swap_test(first: Outcomes, second: Outcomes, *, seed: int = SEED) -> float:
    """Two-sided p-value of the difference under the hypothesis that the models' outcomes are exchangeable on every query.

    This is the sign-flip (Fisher-Pitman) permutation test: the probability of a difference at least as large when the outcomes
    of every query are swapped at random. Queries of a cluster are swapped together. For a mean of more than 1000 distinct
    differences the normal approximation is used; otherwise `SWAPS` swaps are drawn, and p = (1 + as large) / (1 + SWAPS).

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


def _outcomes(first: Outcomes, second: Outcomes) -> tuple[np.ndarray, np.ndarray]:
    if len(first) != len(second) or first.statistic != second.statistic:
        raise ValueError("the rows differ in number or statistic: they are not of the same queries")
    for ours, theirs in ((first.labels, second.labels), (first.clusters, second.clusters)):
        if ours is not theirs and not np.array_equal(ours, theirs):  # type: ignore[arg-type]
            raise ValueError("the rows differ in classes or clusters: they are not of the same queries")
    return first.values.astype(np.float64), second.values.astype(np.float64)


def _class_weights(labels: np.ndarray) -> np.ndarray:
    """Weight of every row in the mean over the classes."""
    present, place, count = np.unique(labels, return_inverse=True, return_counts=True)
    return 1 / (len(present) * count[place])


def _flipped_signs(part: np.ndarray, generator: np.random.Generator) -> float:
    """p-value of a sum under random signs. Among terms of equal size, the number that stay positive is binomial."""
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
    """Splits `SWAPS` draws into blocks of about 4 million numbers."""
    size = max(1, 2**22 // max(1, width))
    return [min(size, SWAPS - start) for start in range(0, SWAPS, size)]
