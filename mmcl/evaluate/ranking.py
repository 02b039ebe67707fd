"""Where the best positive of each query stands among all keys, exactly and in blocks: the kernel of retrieval and zero-shot.

Equal ids are positives. The scores of a query's positives and negatives come from the same block, are computed in float64 and
rounded to float32: then equal vectors have equal scores whatever the block, and ties are ties.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mmcl.errors import UserError, unknown_name

Ties = Literal["mean", "optimistic", "pessimistic", "index"]
"""Among equal scores: expectation over a random order, positives first, positives last, or the order of the rows."""

Scores = Callable[[slice], Tensor]
"""Rows of queries to their scores with all keys, float32 [n, M]."""

_BLOCK = 2**22


@dataclass(frozen=True, slots=True)
class Ranks:
    """The best positive's surroundings, for each query that has a positive.

    Attributes:
        above: int64 [N], keys that score higher than the best positive.
        tied: int64 [N], negatives that score exactly as it does.
        best: int64 [N], positives that do, itself included.
        before: int64 [N], those of the tied negatives that come before the first of these positives.
        keys: number of keys M.
    """

    above: np.ndarray
    tied: np.ndarray
    best: np.ndarray
    before: np.ndarray
    keys: int

    def __len__(self) -> int:
        return len(self.above)

    @property
    def tied_share(self) -> float:
        """Share of the queries whose result depends on how ties are broken."""
        return float((self.tied > 0).mean())

    def first(self, ties: Ties = "mean") -> np.ndarray:
        """Rank of the first positive, from 1: float64 [N]; its expectation for ties="mean"."""
        _check_ties(ties)
        if ties == "mean":
            # The first of b positives among b + t items in random order is expected at (b + t + 1) / (b + 1).
            return self.above + (self.best + self.tied + 1) / (self.best + 1)
        ahead = {"optimistic": np.zeros_like(self.tied), "pessimistic": self.tied, "index": self.before}
        return self.above + 1.0 + ahead[ties]

    def hits(self, k: int, ties: Ties = "mean") -> np.ndarray:
        """Whether a positive is among the first k: 0 or 1, float64 [N]; the probability of it for ties="mean"."""
        if ties != "mean":
            return (self.first(ties) <= k).astype(np.float64)
        # The k - above places left go to the best + tied items at random; a miss is when only negatives get them.
        places = np.clip(k - self.above, 0, self.best + self.tied)
        miss = np.ones(len(self))
        for drawn in range(int(places.max(initial=0))):
            left = np.maximum(self.best + self.tied - drawn, 1)
            miss = np.where(drawn < places, miss * np.maximum(self.tied - drawn, 0) / left, miss)
        return 1.0 - miss


def rank_positives(scores: Scores, query_ids: Tensor, key_ids: Tensor, *, chunk_size: int | None = None) -> Ranks:
    """Ranks the positives of every query; queries without a positive among the keys are left out.

    Args:
        scores: rows of queries -> float32 [n, M].
        query_ids, key_ids: int64 [N], [M].
        chunk_size: queries per block; by default as many as fill 32 MB.

    Raises:
        UserError: no query has a positive, or a score is not a finite number.
    """
    rows = chunk_size or max(1, _BLOCK // len(key_ids))
    blocks = []
    for start in range(0, len(query_ids), rows):
        part = slice(start, min(start + rows, len(query_ids)))
        positive_NM = query_ids[part, None] == key_ids[None, :]
        has_positive_N = positive_NM.any(dim=1)
        score_NM = scores(part)
        if not bool(score_NM.isfinite().all()):
            raise UserError("a score is not a finite number; mend the model, not the score")
        blocks.append(_rank_block(score_NM[has_positive_N], positive_NM[has_positive_N]))
    above, tied, best, before = torch.cat(blocks, dim=1).cpu().numpy()
    if not len(above):
        raise UserError("no query has a positive: no id of the queries is among the ids of the keys")
    return Ranks(above, tied, best, before, len(key_ids))


def chance_ranks(query_ids: Tensor, key_ids: Tensor) -> Ranks:
    """The ranks of a model that scores everything the same: with ties="mean", the exact expectation of a random ranking."""
    ids, counts = np.unique(key_ids.cpu().numpy(), return_counts=True)
    queries = query_ids.cpu().numpy()
    place = np.searchsorted(ids, queries).clip(max=len(ids) - 1)
    best = counts[place][ids[place] == queries]
    zero = np.zeros_like(best)
    return Ranks(zero, len(key_ids) - best, best, zero, len(key_ids))


def dot(query_ND: Tensor, key_MD: Tensor) -> Scores:
    """Cosine scores of unit-length rows."""
    key = key_MD.double()
    return lambda part: (query_ND[part].double() @ key.T).float()


def _rank_block(score_NM: Tensor, positive_NM: Tensor) -> Tensor:
    """The four counts of `Ranks`: int64 [4, n]."""
    best_N1 = score_NM.masked_fill(~positive_NM, -torch.inf).amax(dim=1, keepdim=True)
    equal_NM = score_NM == best_N1
    best_NM, tied_NM = equal_NM & positive_NM, equal_NM & ~positive_NM
    before_NM = tied_NM & (best_NM.cumsum(dim=1) == 0)
    return torch.stack([m.sum(dim=1) for m in (score_NM > best_N1, tied_NM, best_NM, before_NM)])


def _check_ties(ties: str) -> None:
    if ties not in get_args(Ties):
        raise unknown_name("tie policy", ties, get_args(Ties))
