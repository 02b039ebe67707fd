"""Statistics of yes/no questions, each with the influence of every row, so that intervals hold for rows in clusters, too.

The influence of a row is the derivative of the statistic by the weight of the row (the infinitesimal jackknife); influences sum
to 0. Their squares, summed over the rows or over the sums of clusters, estimate the variance, and their mean over several
questions is the influence on the mean of the statistics, whose rows are shared.

Shape suffix: N rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
from scipy.stats import rankdata

from mmcl.evaluate.measures import statistics
from mmcl.evaluate.measures.outcomes import Influence, Outcomes
from mmcl.evaluate.measures.statistics import Estimate

FEWEST_POSITIVES = 30
"""Smallest number of positives, or of effective clusters of them, for an interval of the average precision."""
MOST_COMPARED = 20
"""Questions, at most, of which each can be compared: of more, the outcomes of all rows would fill a disk. Means always can."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """Which rows were drawn together.

    Attributes:
        number_N: int64 [N], from 0 without gaps.
        are_rows: whether every row is its own cluster.
    """

    number_N: np.ndarray
    are_rows: bool

    @classmethod
    def of(cls, clusters: np.ndarray | None, rows: int) -> Clusters:
        """From clusters as for `statistics.mean`; None if every row is its own."""
        proper = statistics.proper_clusters(clusters)
        if proper is None:
            return cls(np.arange(rows), True)
        return cls(np.unique(proper, return_inverse=True)[1], False)

    @property
    def fewest(self) -> int:
        """The smallest effective number of clusters with an interval."""
        return statistics.FEWEST_DRAWS if self.are_rows else statistics.FEWEST_CLUSTERS

    def sums(self, value_N: np.ndarray) -> np.ndarray:
        """Sums over the clusters, float64."""
        return np.bincount(self.number_N, value_N)

    def draws(self, weight_N: np.ndarray) -> float:
        """The effective number of clusters of weighted rows, see `statistics.effective_clusters`."""
        weight = self.sums(weight_N)
        return float(weight.sum() ** 2 / (weight**2).sum())

    def without_bias(self, influence_N: np.ndarray, member_N: np.ndarray) -> np.ndarray:
        """Influences of a sample, scaled as by the divisor n - 1 of a variance, where n clusters have rows of the sample."""
        n = int(np.count_nonzero(self.sums(member_N)))
        scaled: np.ndarray = influence_N * np.sqrt(n / max(n - 1, 1))
        return scaled


@dataclass(frozen=True, slots=True)
class Detection:
    """A statistic of a yes/no question.

    Attributes:
        value: from 0 to 1.
        influence_N: float64 [N]; 0 for rows that the question was not asked of.
        outcome_N: float64 [N], from 0 to 1: how good the answer for each row is, to name the rows on which two models differ.
        draws: effective number of clusters, which decides whether there is an interval, and its shape.
        rows: number of rows that it was computed from.
        fewest: draws with an interval, if more than for a mean of rows.
    """

    value: float
    influence_N: np.ndarray
    outcome_N: np.ndarray
    draws: float
    rows: int
    fewest: int = 0

    def estimate(self, clusters: Clusters) -> Estimate:
        """The value with its interval."""
        if self.draws < max(clusters.fewest, self.fewest) * (1 - 1e-9):
            return statistics.exact(self.value, self.rows)
        variance = float((clusters.sums(self.influence_N) ** 2).sum())
        return statistics.bounded(self.value, variance * self.draws, self.draws, self.rows)

    def spread(self, row_K: np.ndarray, rows: int) -> Detection:
        """The same with the influence and the outcomes of all rows, of which it was computed from `row_K`."""
        influence_N, outcome_N = np.zeros((2, rows))
        influence_N[row_K], outcome_N[row_K] = self.influence_N, self.outcome_N
        return replace(self, influence_N=influence_N, outcome_N=outcome_N)


class MeanDetection:
    """Mean of one statistic over several questions about the same rows.

    Args:
        rows: number of rows.
        n: number of rows that questions were asked about, for the report; by default all.
    """

    def __init__(self, rows: int, n: int | None = None):
        self._n = rows if n is None else n
        self._values: list[float] = []
        self._draws: list[float] = []
        self._fewest = 0
        self._influence_N, self._outcome_N = np.zeros((2, rows))
        self._asked_N = np.zeros(rows, np.int64)

    def add(self, one: Detection, asked_N: np.ndarray) -> None:
        """Adds a question, with its `digest_of_question`."""
        self._values.append(one.value)
        self._draws.append(one.draws)
        self._fewest = max(self._fewest, one.fewest)
        self._influence_N += one.influence_N
        self._outcome_N += one.outcome_N
        self._asked_N += asked_N

    def estimate(self, clusters: Clusters) -> Estimate:
        """The mean with its interval; no value without a question, no interval if a single question would have none."""
        if not self._values:
            return statistics.exact(None, self._n)
        influence_N, outcome_N = (total / len(self._values) for total in (self._influence_N, self._outcome_N))
        one = Detection(float(np.mean(self._values)), influence_N, outcome_N, min(self._draws), self._n, self._fewest)
        return comparable(one.estimate(clusters), one, self._asked_N, clusters)


def comparable(estimate: Estimate, one: Detection, asked_N: np.ndarray, clusters: Clusters) -> Estimate:
    """The estimate of a statistic, with what its paired comparison needs; as it is if it has no interval.

    Args:
        asked_N: the `digest_of_question`, or the sum of several: what was asked about other rows cannot be compared.
    """
    if estimate.low is None:
        return estimate
    influence = Influence(one.value, one.influence_N.astype(np.float32), one.draws)
    drawn = None if clusters.are_rows else clusters.number_N
    found = Outcomes(one.outcome_N.astype(np.float32), "influence", asked_N, clusters=drawn, influence=influence)
    return replace(estimate, outcomes=found)


def digest_of_question(name: str, answer_N: np.ndarray) -> np.ndarray:
    """A number for each row, int64 [N], which tells questions and right answers apart.

    Args:
        name: of the question.
        answer_N: 1, 0, or -1 for a row that it is not asked about.
    """
    digests = np.array([crc32(f"{answer} {name}".encode()) for answer in (-1, 0, 1)], np.int64)
    return np.asarray(digests[answer_N.astype(np.int64) + 1])


def auroc(score_N: np.ndarray, target_N: np.ndarray, clusters: Clusters) -> Detection:
    """Probability that a positive scores above a negative, ties counted half: Mann-Whitney's U over the number of pairs.

    The variance is that of DeLong, DeLong and Clarke-Pearson ("Comparing the areas under two or more correlated ROC curves",
    1988), and for rows in clusters that of Obuchowski ("Nonparametric analysis of clustered ROC curve data", 1997). The number
    of draws is that of the smaller sample.

    Args:
        score_N: finite.
        target_N: bool, both values present.
    """
    positive_N, negative_N = target_N, ~target_N
    m, n = int(positive_N.sum()), int(negative_N.sum())
    right_N = _share_on_the_right_side(score_N, target_N)
    value = float(right_N[positive_N].mean())
    influence_N = (right_N - value) / np.where(positive_N, m, n)
    unbiased_N = np.where(
        positive_N, clusters.without_bias(influence_N, positive_N), clusters.without_bias(influence_N, negative_N)
    )
    draws = min(clusters.draws(positive_N), clusters.draws(negative_N))
    return Detection(value, unbiased_N, right_N, draws, len(score_N))


def _share_on_the_right_side(score_N: np.ndarray, target_N: np.ndarray) -> np.ndarray:
    """For each positive the share of negatives that score below it, for each negative that of positives above; ties half."""
    rank_N, right_N = rankdata(score_N), np.zeros(len(score_N))
    right_N[target_N] = (rank_N[target_N] - rankdata(score_N[target_N])) / np.count_nonzero(~target_N)
    right_N[~target_N] = 1 - (rank_N[~target_N] - rankdata(score_N[~target_N])) / np.count_nonzero(target_N)
    return right_N


def average_precision(score_N: np.ndarray, target_N: np.ndarray, clusters: Clusters) -> Detection:
    """Mean over the positives of the precision at their score, the share of positives among the rows that score as high.

    Equal scores are one threshold, as in scikit-learn's `average_precision_score`. The number of draws is that of the
    positives.

    Args:
        score_N: finite.
        target_N: bool, at least one true.
    """
    y_N = target_N.astype(np.float64)
    m = y_N.sum()
    place_N = np.unique(-score_N, return_inverse=True)[1]  # of the threshold, from the highest
    positives, size = np.bincount(place_N, y_N), np.bincount(place_N)
    reached = size.cumsum()
    precision = positives.cumsum() / reached
    value = float((positives * precision).sum() / m)
    # A row counts at its own threshold and at all lower ones.
    own = _sums_from(positives / reached)[place_N]
    others = _sums_from(positives * precision / reached)[place_N]
    influence_N = (y_N * (precision[place_N] - value) + y_N * own - others) / m
    unbiased_N = clusters.without_bias(influence_N, target_N)
    right_N = _share_on_the_right_side(score_N, target_N)
    return Detection(value, unbiased_N, right_N, clusters.draws(target_N), len(score_N), FEWEST_POSITIVES)


def _sums_from(values: np.ndarray) -> np.ndarray:
    """Sums from each place to the end."""
    return values[::-1].cumsum()[::-1]


def share(hit_N: np.ndarray, of_N: np.ndarray, clusters: Clusters) -> Detection | None:
    """Share of hits among some rows, such as recall among the positives; None without such rows.

    The outcomes are wrong for those of these rows that are no hits.

    Args:
        hit_N, of_N: bool.
    """
    if not of_N.any():
        return None
    total = int(of_N.sum())
    value = float(hit_N[of_N].mean())
    influence_N = np.where(of_N, (hit_N - value) / total, 0.0)
    return Detection(value, clusters.without_bias(influence_N, of_N), hit_N | ~of_N, clusters.draws(of_N), total)


def f1(said_N: np.ndarray, target_N: np.ndarray, clusters: Clusters) -> Detection | None:
    """F1 of a yes/no answer, 2 TP / (2 TP + FP + FN); None if nothing is positive and nothing was said to be.

    Args:
        said_N, target_N: bool.
    """
    weight_N = said_N.astype(np.float64) + target_N
    if not weight_N.any():
        return None
    value = 2 * float((said_N & target_N).sum() / weight_N.sum())
    influence_N = (2.0 * (said_N & target_N) - value * weight_N) / weight_N.sum()
    unbiased_N = clusters.without_bias(influence_N, weight_N)
    return Detection(value, unbiased_N, said_N == target_N, clusters.draws(weight_N), len(said_N))
