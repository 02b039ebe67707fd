"""For each positive pair, exact counts of the negatives that score higher or tie; all ranking metrics follow from them.

The cosine of two rows is computed in float64 and rounded to float32, so equal rows have equal scores in every tile, and ties
are exact. Tiles are multiplied in float32, which is several times faster; the few scores whose error bound includes a
positive's score are computed again.

Shape suffixes: P pairs of a query and one of its positive keys, Q queries of one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Scores = Callable[[slice], Tensor]
"""Function from rows of queries to their scores with all keys, float32 [n, M]."""

_TILE = 1024
_BLOCK = 2**22
_PAIRS = 2**18
_PASS = 512
# Up to one score in `_DENSE` is recomputed individually; with more, the whole tile is recomputed in float64.
_DENSE = 32


class RankCounts:
    """For all positive pairs of one direction of retrieval, the numbers of negatives that score higher or tie.

    Attributes:
        query, key: int64 [P], row numbers of every pair with equal ids, sorted by query.
        score: float32 [P].
        above: int64 [P], negatives of the query that score higher than the pair.
        tied: int64 [P], negatives that score the same.
        before: int64 [P], tied negatives that come before the key in the order of the rows.
        keys: number of keys M.
    """

    def __init__(self, query_P: Tensor, key_P: Tensor, score_P: Tensor, keys: int):
        order = query_P.argsort(stable=True)
        self.query, self.key, self.score, self.keys = query_P[order], key_P[order], score_P[order], keys
        self.above, self.tied, self.before = (torch.zeros_like(self.query) for _ in range(3))
        self._scratch = _Scratch()
        self._turn = torch.arange(len(self.query), device=query_P.device) - torch.searchsorted(self.query, self.query)

    def of(self, queries: slice) -> slice:
        """Returns the pairs of a range of queries."""
        bounds = torch.tensor([queries.start, queries.stop], device=self.query.device)
        return slice(*torch.searchsorted(self.query, bounds).tolist())

    def add(self, tile: ScoreTile, queries: slice, keys: slice, *, flipped: bool = False) -> None:
        """Counts the negatives in a tile of scores: queries by keys, or `flipped`, keys by queries."""
        pairs = self.of(queries)
        row_N = torch.arange(queries.stop - queries.start, device=self.query.device)
        # The first positive of every query, then the second, and so on, so that most passes need no indexing of the scores.
        pair_P = pairs.start + self._turn[pairs].argsort(stable=True)
        for pair_Q in pair_P.split(max(len(row_N), _PASS)):
            row_Q = self.query[pair_Q] - queries.start
            self._add(pair_Q, None if torch.equal(row_Q, row_N) else row_Q, tile, keys.start, flipped)

    def _add(self, pair_Q: Tensor, row_Q: Tensor | None, tile: ScoreTile, first_key: int, flipped: bool) -> None:
        score_NM = tile.score_NM.T if flipped else tile.score_NM
        score_QM = score_NM if row_Q is None else score_NM[row_Q]
        low_Q, high_Q = self.score[pair_Q] - tile.error, self.score[pair_Q] + tile.error
        above_Q = self._count(torch.gt, score_QM, high_Q)
        near_Q = self._count(torch.ge, score_QM, low_Q) - above_Q
        if tile.error and int(near_Q.sum()) * _DENSE > score_QM.numel():
            tile.sharpen()
            self._add(pair_Q, row_Q, tile, first_key, flipped)
            return
        self.above[pair_Q] += above_Q
        unsure = near_Q.nonzero().flatten()
        if len(unsure):
            score, low, high = score_QM[unsure], low_Q[unsure, None], high_Q[unsure, None]
            place, column = ((score >= low) & (score <= high)).nonzero(as_tuple=True)
            row = unsure[place] if row_Q is None else row_Q[unsure[place]]
            self._compare(pair_Q[unsure[place]], column + first_key, tile.exact(*((column, row) if flipped else (row, column))))

    def _count(self, compare: Callable[..., Tensor], score_QM: Tensor, bound_Q: Tensor) -> Tensor:
        """Number of scores in each row that satisfy the comparison with its bound: int64 [Q]."""
        # A product of floats is several times faster than the sum of a mask, and exact up to 2^24 keys.
        mask_QM = compare(score_QM, bound_Q[:, None], out=self._scratch.like(score_QM))
        return (mask_QM @ mask_QM.new_ones(mask_QM.shape[1])).long()

    def _compare(self, pair: Tensor, key: Tensor, score: Tensor) -> None:
        tied = score == self.score[pair]
        self.above.index_add_(0, pair, (score > self.score[pair]).long())
        self.tied.index_add_(0, pair, tied.long())
        self.before.index_add_(0, pair, (tied & (key < self.key[pair])).long())


class _Scratch:
    """Reusable scratch buffer; allocating it per tile would cost more than the work itself."""

    def __init__(self) -> None:
        self._flat = torch.empty(0)

    def like(self, x: Tensor) -> Tensor:
        """Returns a buffer with the shape and layout of a dense tensor."""
        if len(self._flat) < x.numel():
            self._flat = x.new_empty(x.numel())
        return self._flat.as_strided(x.shape, x.stride())


class ScoreTile:
    """Exact scores, float32 [n, m], with the positives masked."""

    error = 0.0

    def __init__(self, score_NM: Tensor, row_P: Tensor, column_P: Tensor):
        self._positive = row_P, column_P
        self.score_NM = score_NM
        self._strike()

    def exact(self, row_P: Tensor, column_P: Tensor) -> Tensor:
        """Exact scores of pairs: float32 [P]."""
        return self.score_NM[row_P, column_P]

    def sharpen(self) -> None:
        """Replaces all scores by exact ones."""

    def _strike(self) -> None:
        self.score_NM[self._positive] = -torch.inf


class CosineTile(ScoreTile):
    """Cosines from a float32 product, each within `error` of the exact one."""

    def __init__(self, cosine: _Cosine, a: tuple[slice, Tensor], b: tuple[slice, Tensor], row_P: Tensor, column_P: Tensor):
        self._cosine, (self._a, a_ND), (self._b, b_MD) = cosine, a, b
        self.error = cosine.error
        super().__init__(a_ND @ b_MD.T, row_P, column_P)

    def exact(self, row_P: Tensor, column_P: Tensor) -> Tensor:
        if not self.error:
            return super().exact(row_P, column_P)
        return self._cosine.of_pairs(row_P + self._a.start, column_P + self._b.start)

    def sharpen(self) -> None:
        self.score_NM = (self._cosine.a.unit(self._a, torch.float64) @ self._cosine.b.unit(self._b, torch.float64).T).float()
        self.error = 0.0
        self._strike()


class _UnitRows:
    """Rows [N, D] that are scaled to unit length on use, because a scaled copy of all would double the memory."""

    def __init__(self, x_ND: Tensor):
        self.x_ND = x_ND
        norm_N = torch.cat([part.double().norm(dim=1) for part in x_ND.split(_PASS)])
        self.norm_N = norm_N.where(norm_N > 0, 1.0)

    def unit(self, rows: slice, dtype: torch.dtype = torch.float32) -> Tensor:
        """[n, D]; rows of zeros stay zero."""
        return self.x_ND[rows].to(dtype) / self.norm_N[rows, None].to(dtype)


class _Cosine:
    """The cosine of every row of a with every row of b."""

    def __init__(self, a_ND: Tensor, b_MD: Tensor):
        self.a, self.b = _UnitRows(a_ND), _UnitRows(b_MD)
        # The error of a sum of D products in any order is at most D units in the last place of 1 (Higham, "Accuracy and
        # Stability of Numerical Algorithms", 2002, section 3.1); the other 16 cover the rounding of rows, score and bounds.
        self.error = (a_ND.shape[1] + 16) * 2.0**-24
        if any(bool(((rows.norm_N < 1e-30) | (rows.norm_N > 1e30)).any()) for rows in (self.a, self.b)):
            self.error = 2.0  # Such lengths overflow or underflow in float32, so all scores are computed in float64.

    def of_pairs(self, row_P: Tensor, column_P: Tensor) -> Tensor:
        """Exact cosines of pairs: float32 [P]."""
        score_P = torch.empty(len(row_P), device=row_P.device)
        for part in _slices(len(row_P), max(1, _PAIRS // self.a.x_ND.shape[1])):
            row, column = row_P[part], column_P[part]
            dot = (self.a.x_ND[row].double() * self.b.x_ND[column].double()).sum(1)
            score_P[part] = dot / self.a.norm_N[row] / self.b.norm_N[column]
        return score_P


@torch.no_grad()
def cosine_rank_counts(
    a_ND: Tensor, b_MD: Tensor, a_id_N: Tensor, b_id_M: Tensor, *, chunk_size: int | None = None
) -> tuple[RankCounts, RankCounts]:
    """Both directions of retrieval by cosine from one product: the rows of a as queries among those of b, and the reverse.

    Takes time O(N M D), and compares each pair with all keys; beside the pairs, only a few tiles are in memory.

    Args:
        a_ND, b_MD: finite rows of any length, on one device.
        a_id_N, b_id_M: int64; equal ids are positives.
        chunk_size: rows of either side in a tile, 1024 by default; affects only time and memory.
    """
    size = chunk_size or _TILE
    row_P, column_P = positive_pairs(a_id_N, b_id_M)
    with _full_float32(a_ND.device.type):
        cosine = _Cosine(a_ND, b_MD)
        score_P = cosine.of_pairs(row_P, column_P)
        forward, backward = RankCounts(row_P, column_P, score_P, len(b_MD)), RankCounts(column_P, row_P, score_P, len(a_ND))
        for rows in _slices(len(a_ND), size):
            a_unit = cosine.a.unit(rows)
            for columns in _slices(len(b_MD), size):
                _add_tile(forward, backward, cosine, (rows, a_unit), (columns, cosine.b.unit(columns)))
    return forward, backward


def _add_tile(
    forward: RankCounts, backward: RankCounts, cosine: _Cosine, a: tuple[slice, Tensor], b: tuple[slice, Tensor]
) -> None:
    (rows, _), (columns, _), pairs = a, b, forward.of(a[0])
    row, column = forward.query[pairs] - rows.start, forward.key[pairs] - columns.start
    inside = (column >= 0) & (column < columns.stop - columns.start)
    tile = CosineTile(cosine, a, b, row[inside], column[inside])
    forward.add(tile, rows, columns)
    backward.add(tile, columns, rows, flipped=True)


@torch.no_grad()
def score_rank_counts(scores: Scores, query_id_N: Tensor, key_id_M: Tensor, *, chunk_size: int | None = None) -> RankCounts:
    """The counts of `cosine_rank_counts` in one direction, from any function that scores pairs.

    Args:
        scores: its results are treated as exact.
        query_id_N, key_id_M: int64; equal ids are positives.
        chunk_size: queries per block; by default, blocks of 16 MB.

    Raises:
        ValueError: a score is not a finite number.
    """
    query_P, key_P = positive_pairs(query_id_N, key_id_M)
    counts = RankCounts(query_P, key_P, torch.zeros(len(query_P), device=query_P.device), len(key_id_M))
    for rows in _slices(len(query_id_N), chunk_size or max(1, _BLOCK // len(key_id_M))):
        score_NM = scores(rows).clone()
        if not bool(score_NM.isfinite().all()):
            raise ValueError("a score is not a finite number; fix the model, not the score")
        pairs = counts.of(rows)
        row, column = counts.query[pairs] - rows.start, counts.key[pairs]
        counts.score[pairs] = score_NM[row, column]
        counts.add(ScoreTile(score_NM, row, column), rows, slice(0, len(key_id_M)))
    return counts


def positive_pairs(query_id_N: Tensor, key_id_M: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of a query and a key with equal ids: int64 [P], [P], sorted by query, then by key; uses no N x M matrix."""
    order = key_id_M.argsort(stable=True)
    sorted_id = key_id_M[order].contiguous()
    first, last = (torch.searchsorted(sorted_id, query_id_N.contiguous(), right=right) for right in (False, True))
    count = last - first
    query_P = torch.arange(len(query_id_N), device=count.device).repeat_interleave(count)
    within_P = torch.arange(len(query_P), device=count.device) - (count.cumsum(0) - count)[query_P]
    return query_P, order[first[query_P] + within_P]


def _slices(rows: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


@contextmanager
def _full_float32(device: str) -> Iterator[None]:
    """Context without TF32 and autocast, because the error bound is that of float32 products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
