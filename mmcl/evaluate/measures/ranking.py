"""Ranking metrics from the ranks of the positives, with exact expectations over tied scores.

With ties in random order, the expectation of each metric has a closed form or a short sum (McSherry & Najork, "Computing
information retrieval performance measures efficiently in the presence of tied scores", 2008): no order is drawn.

Shape suffixes: Q queries, G groups of equally scored keys, P pairs of a query and a positive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from mmcl.errors import UserError, unknown_name
from mmcl.evaluate.measures.rank_counts import RankCounts, Scores, score_rank_counts

Ties = Literal["mean", "optimistic", "pessimistic", "index"]
"""Among equal scores: expectation over a random order, positives first, positives last, or the order of the rows."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Groups of keys with equal scores that hold a positive, sorted by query, best first.

    Queries without positives are left out. If ties are broken by a rule, every positive is its own group.

    Attributes:
        query: int64 [G], numbers from 0 without gaps.
        above: int64 [G], keys that come before the group.
        found: int64 [G], positives among the keys before the group.
        positives, negatives: int64 [G], keys in the group.
        tied: bool [Q], whether a negative has exactly the score of the best positive.
        keys: number of keys M.
    """

    query: np.ndarray
    above: np.ndarray
    found: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    tied: np.ndarray
    keys: int

    def __len__(self) -> int:
        return len(self.tied)

    def first(self) -> np.ndarray:
        """Rank of the first positive, from 1: float64 [Q]."""
        above, positives, negatives = self._first_groups()
        # The first of b positives among b + t keys in random order is expected at (b + t + 1) / (b + 1).
        rank: np.ndarray = above + (positives + negatives + 1) / (positives + 1)
        return rank

    def hits(self, k: int) -> np.ndarray:
        """Probability that a positive is among the first k, 0 or 1 without ties: float64 [Q]."""
        return sum((chance for _, chance in self._first_at(k)), np.zeros(len(self)))

    def reciprocal(self, k: int) -> np.ndarray:
        """1 / rank of the first positive, 0 if it is not among the first k: float64 [Q]; the mean is MRR@k."""
        return sum((chance / rank for rank, chance in self._first_at(k)), np.zeros(len(self)))

    def recall(self, k: int) -> np.ndarray:
        """Share of a query's positives that are among the first k: float64 [Q]."""
        share: np.ndarray = self._sum(self._share * self._places(k)) / self.total
        return share

    def average_precision(self, k: int | None = None) -> np.ndarray:
        """Sum of the precision at the rank of each positive, over the number of positives: float64 [Q].

        With k, the sum is over the positives among the first k and is divided by min(k, positives), as in
        sentence-transformers; trec_eval's `map_cut` divides by the number of all positives.
        """
        places = self._places(self.keys if k is None else k)
        size = self.positives + self.negatives
        # Positives up to the j-th place of the group: those found before, this one, and (j - 1) c of the group's others.
        c = (self.positives - 1) / np.maximum(size - 1, 1)
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, self.keys + 1))])
        inverse_ranks = harmonic[self.above + places] - harmonic[self.above]
        precision = c * places + (self.found + 1 - c * (self.above + 1)) * inverse_ranks
        mean: np.ndarray = self._sum(self._share * precision) / (self.total if k is None else np.minimum(self.total, k))
        return mean

    def ndcg(self, k: int) -> np.ndarray:
        """Normalized discounted cumulative gain of the first k: gain 1 for a positive, discount log2(rank + 1): float64 [Q]."""
        discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
        first = np.minimum(self.above, k)
        gain = self._sum(self._share * (discounts[first + self._places(k)] - discounts[first]))
        normalized: np.ndarray = gain / discounts[np.minimum(self.total, k)]
        return normalized

    @property
    def total(self) -> np.ndarray:
        """Positives of each query: int64 [Q]."""
        return self._sum(self.positives).astype(np.int64)

    @property
    def _share(self) -> np.ndarray:
        share: np.ndarray = self.positives / (self.positives + self.negatives)
        return share

    def _places(self, k: int) -> np.ndarray:
        """Places of each group among the first k: int64 [G]."""
        places: np.ndarray = np.clip(k - self.above, 0, self.positives + self.negatives)
        return places

    def _sum(self, value_G: np.ndarray) -> np.ndarray:
        return np.bincount(self.query, value_G, len(self))

    def _first_groups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first = self.found == 0
        return self.above[first], self.positives[first], self.negatives[first]

    def _first_at(self, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ranks up to k at which the first positive may stand, and their probabilities: [Q] each."""
        above, positives, negatives = self._first_groups()
        missed = np.ones(len(self))
        for drawn in range(min(k - int(above.min()), int(negatives.max()) + 1)):
            left = np.maximum(positives + negatives - drawn, 1)
            rank = above + drawn + 1
            yield rank, np.where(rank <= k, missed * positives / left, 0.0)
            missed = missed * np.maximum(negatives - drawn, 0) / left


def ranks(counts: RankCounts, ties: Ties = "mean") -> Ranks:
    """Computes the ranks of the positives, with ties treated as in `ties`.

    Raises:
        UserError: no query has a positive, or the policy is unknown.
    """
    if ties not in get_args(Ties):
        raise unknown_name("tie policy", ties, get_args(Ties))
    columns = (counts.query, counts.key, counts.score, counts.above, counts.tied, counts.before)
    query, key, score, above, tied, before = (column.cpu().numpy() for column in columns)
    if not len(query):
        raise UserError("no query has a positive: no id of the queries is among the ids of the keys")
    order = np.lexsort((key, -score, query))
    query, score, above, tied, before = (column[order] for column in (query, score, above, tied, before))
    new_query = np.diff(query, prepend=-1) != 0
    start = np.flatnonzero(new_query)
    number = new_query.cumsum() - 1
    found = np.arange(len(query)) - start[number]
    ahead = {"mean": 0, "optimistic": 0, "pessimistic": tied, "index": before}[ties]
    if ties == "mean":
        group = np.flatnonzero(new_query | (np.diff(score, prepend=np.inf) != 0))
        positives, negatives = np.diff(group, append=len(query)), tied[group]
    else:
        group = np.arange(len(query))
        positives, negatives = np.ones_like(group), np.zeros_like(group)
    places = (above + found + ahead)[group]
    return Ranks(number[group], places, found[group], positives, negatives, tied[start] > 0, counts.keys)


def score_ranks(
    scores: Scores, query_ids: Tensor, key_ids: Tensor, *, ties: Ties = "mean", chunk_size: int | None = None
) -> Ranks:
    """`ranks` from a function that scores pairs, see `score_rank_counts`. Also raises UserError for non-finite scores."""
    try:
        counts = score_rank_counts(scores, query_ids, key_ids, chunk_size=chunk_size)
    except ValueError as error:
        raise UserError(str(error)) from None
    return ranks(counts, ties)


def cosine_scores(query_ND: Tensor, key_MD: Tensor) -> Scores:
    """Cosines of unit-length rows, computed in float64 and rounded, so that equal rows have equal scores whatever the block."""
    key = key_MD.double()
    return lambda part: (query_ND[part].double() @ key.T).float()


def chance_ranks(query_ids: Tensor, key_ids: Tensor) -> Ranks:
    """Ranks of a model that gives all pairs the same score: the exact expectation of a random ranking."""
    ids, counts = np.unique(key_ids.cpu().numpy(), return_counts=True)
    queries = query_ids.cpu().numpy()
    place = np.searchsorted(ids, queries).clip(max=len(ids) - 1)
    positives = counts[place][ids[place] == queries]
    zero, negatives = np.zeros_like(positives), len(key_ids) - positives
    return Ranks(np.arange(len(positives)), zero, zero, positives, negatives, negatives > 0, len(key_ids))
