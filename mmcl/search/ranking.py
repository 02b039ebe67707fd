"""From a query's vector to the positions that answer it: filter, cut, order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mmcl.core.nearest import nearest
from mmcl.search.narrow import RESCORE
from mmcl.search.store import Store
from mmcl.search.where import mask_of, parse_where

Sort = Literal["taken", "-taken"]

RRF = 60
"""Constant of reciprocal rank fusion (Cormack, Clarke and Buettcher 2009)."""
FUSED = 1000
"""Least number of hits of each of the two lists that are fused."""
DELTA = 0.1
"""How far below the best score a hit may be that is sorted by date."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """One row of an answer: its position, its cosine with the query, and the sum of its reciprocal ranks if two lists were
    fused.
    """

    position: int
    score: float
    fused: float | None = None


def allowed(store: Store, where: str | None) -> Tensor | None:
    """Returns the images that a filter lets through, bool [N]; None without a filter. Raises UserError for a bad filter."""
    if where is None:
        return None
    return torch.from_numpy(mask_of(parse_where(where, store.kinds), store.kinds, store.column))


def ranked(
    query_QD: np.ndarray, key_MD: Tensor, count: int, among_M: Tensor | None = None, *, min_score: float | None = None
) -> list[Ranked]:
    """Returns the rows nearest to a query, or to the nearest of several, best first; ties in the order of the rows.

    Args:
        query_QD: float32 [Q, D], unit length.
        key_MD: float32 [M, D], unit length.
        count: how many at most.
        among_M: bool [M], the rows that may be found; None for all.
        min_score: lowest score.
    """
    count = min(count, len(key_MD) if among_M is None else int(among_M.sum()))
    if count < 1:
        return []
    best: dict[int, float] = {}
    for query_D in torch.from_numpy(np.ascontiguousarray(query_QD)):
        score, row = nearest(query_D[None], key_MD, count, among_M=among_M)
        for position, value in zip(row[0].tolist(), score[0].tolist(), strict=True):
            best[position] = max(value, best.get(position, -2.0))
    found = sorted(best.items(), key=lambda one: (-one[1], one[0]))[:count]
    return [Ranked(*one) for one in found if min_score is None or one[1] >= min_score]


def ranked_nearby(
    store: Store,
    query_QD: np.ndarray,
    count: int,
    among_N: Tensor | None = None,
    *,
    min_score: float | None = None,
    rescore: int = RESCORE,
) -> list[Ranked]:
    """`ranked` among the images that a store's narrow rows or approximate index finds; it may miss some."""
    found = (store.nearby(query_D, count, among_N=among_N, rescore=rescore) for query_D in query_QD)
    near = sorted({position for positions in found for position in positions})
    rows = ranked(query_QD, store.vectors(near), count, min_score=min_score)
    return [replace(row, position=near[row.position]) for row in rows]


def ranked_among(
    store: Store, query_QD: np.ndarray, count: int, among_N: Tensor, *, min_score: float | None = None
) -> list[Ranked]:
    """`ranked` among some images of a store, of which it reads only these."""
    places = among_N.nonzero().flatten().tolist()
    rows = ranked(query_QD, store.vectors(places), count, min_score=min_score)
    return [replace(row, position=places[row.position]) for row in rows]


def ranked_above(query_QD: np.ndarray, key_MD: Tensor, among_M: Tensor | None, *, min_score: float | None) -> list[Ranked]:
    """Returns all rows whose score is at most `DELTA` below the best one, and not below `min_score`, best first."""
    best = ranked(query_QD, key_MD, 1, among_M)
    if not best:
        return []
    lowest = max(best[0].score - DELTA, -2.0 if min_score is None else min_score)
    near = (key_MD @ torch.from_numpy(query_QD).T).amax(dim=1) >= lowest - 1e-3
    return ranked(query_QD, key_MD, len(key_MD), near if among_M is None else near & among_M, min_score=lowest)


def by_date(rows: Sequence[Ranked], taken: pa.Array, sort: Sort, places: Mapping[int, int] | None = None) -> list[Ranked]:
    """Sorts by date, "taken" or, newest first, "-taken"; equal dates by score, then by row; those without a date last.

    Args:
        rows: of an answer.
        taken: dates of all rows.
        sort: the order.
        places: row of the dates for each position, if it is another.
    """
    dates = {row.position: taken[row.position if places is None else places[row.position]].as_py() for row in rows}
    with_date = sorted((row for row in rows if dates[row.position]), key=lambda row: (-row.score, row.position))
    with_date.sort(key=lambda row: dates[row.position], reverse=sort == "-taken")  # stable in both directions
    rest = sorted((row for row in rows if not dates[row.position]), key=lambda row: (-row.score, row.position))
    return with_date + rest


def fused(by_vector: Sequence[Ranked], by_text: Sequence[int], score_of: Mapping[int, float]) -> list[Ranked]:
    """Fuses two lists by the sum over lists of 1 / (60 + rank), rank from 1; ties by score, then by row.

    Args:
        by_vector: rows nearest to the query, best first.
        by_text: positions whose captions have words of the text, best first.
        score_of: cosine of the positions in `by_text` that are not in `by_vector`.

    Example:
        >>> round(fused([Ranked(7, 0.9)], [7], {})[0].fused, 6)
        0.032787
    """
    score = {**score_of, **{row.position: row.score for row in by_vector}}
    total: dict[int, float] = {}
    for rows in ([row.position for row in by_vector], by_text):
        for rank, position in enumerate(rows, 1):
            total[position] = total.get(position, 0.0) + 1 / (RRF + rank)
    found = [Ranked(position, score[position], value) for position, value in total.items()]
    return sorted(found, key=lambda row: (-(row.fused or 0), -row.score, row.position))
