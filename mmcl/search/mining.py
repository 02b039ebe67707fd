"""Hard negatives of queries among keys, with guards against false ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from mmcl.core.nearest import nearest
from mmcl.data.random_streams import Stream
from mmcl.errors import UserError
from mmcl.rng import uniform

_BLOCK = 1024
"""Queries whose candidates are held at a time."""
GUARDS = ("absolute_margin", "relative_margin", "max_score", "min_score")


@dataclass(frozen=True, kw_only=True, slots=True)
class MiningLimits:
    """What a negative is; names and meanings are those of `mine_hard_negatives` of sentence-transformers.

    Attributes:
        number: negatives of each query.
        range_min, range_max: ranks, from 0, of the candidates that pass the guards: at least, and below.
        max_score, min_score: highest and lowest score; None for any.
        absolute_margin: least difference to the score of the query's own positive, of several the lowest.
        relative_margin: the same, as a share of the positive's score. 0.05 keeps what scores up to 95 % of it ("TopK-PercPos":
            Moreira et al., "NV-Retriever: Improving text embedding models with effective hard-negative mining", 2024).
        strategy: the highest candidates, or some of them at random.
        seed: of the random ones.

    Raises:
        UserError: the ranks leave fewer candidates than negatives, or a guard is no number or refuses everything.
    """

    number: int = 3
    range_min: int = 0
    range_max: int = 100
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = 0.05
    strategy: Literal["top", "random"] = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("number", 1), ("range_min", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}: give {least} or more")
        for name in GUARDS:
            if (value := getattr(self, name)) is not None and not math.isfinite(value):
                raise UserError(f"--{name} is {value}: give a number")
        if None not in (self.min_score, self.max_score) and self.min_score > self.max_score:  # type: ignore[operator]
            raise UserError(f"--min_score {self.min_score} is above --max_score {self.max_score}: lower it")
        if self.range_max - self.range_min < self.number:
            raise UserError(
                f"--range_max {self.range_max} leaves {max(self.range_max - self.range_min, 0)} candidates after --range_min "
                f"{self.range_min}, and --number is {self.number}: raise --range_max"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Mined:
    """Negatives of all queries.

    Attributes:
        row_NK: int64, keys, the highest score first; -1 where too few passed.
        score_NK: float32, their scores; -inf where there is none.
        refused: guard -> candidates that it refused, each counted for the first guard that did.
        candidates: number of all candidates, those of the positives left out.
    """

    row_NK: np.ndarray
    score_NK: np.ndarray
    refused: dict[str, int] = field(default_factory=dict)
    candidates: int = 0


def mine(
    query_NE: Tensor,
    key_ME: Tensor,
    *,
    positive_N: np.ndarray,
    family_N: np.ndarray,
    family_P: np.ndarray,
    key_P: np.ndarray,
    limits: MiningLimits,
) -> Mined:
    """Finds negatives for each query, in blocks. Extra memory is that of a block of scores and of its candidates.

    Args:
        query_NE, key_ME: float32, unit length.
        positive_N: float32 [N], the score of each query's own positive, of several the lowest.
        family_N: int64 [N], the family of each query.
        family_P, key_P: int64 [P], pairs of a family and a key that is no negative of it.
        limits: what a negative is.

    Example:
        >>> rows = Tensor([[1.0, 0.0], [0.96, 0.28], [0.6, 0.8], [0.0, 1.0]])
        >>> own, limits = np.arange(4), MiningLimits(number=1, range_max=4, relative_margin=0.05)
        >>> mine(rows, rows, positive_N=np.ones(4), family_N=own, family_P=own, key_P=own, limits=limits).row_NK.flatten()
        array([2, 2, 1, 2])
    """
    keys = len(key_ME)
    code_P = np.unique(family_P * keys + key_P)
    most = int(np.unique(code_P // keys, return_counts=True)[1].max(initial=0))
    k = min(keys, limits.range_max + most)
    row_NK = np.full((len(query_NE), limits.number), -1, np.int64)
    score_NK = np.full((len(query_NE), limits.number), -np.inf, np.float32)
    refused, candidates = dict.fromkeys(GUARDS, 0), 0
    for start in range(0, len(query_NE), _BLOCK):
        block = slice(start, start + _BLOCK)
        score, row = (part.numpy().copy() for part in nearest(query_NE[block], key_ME, k))
        score[np.isin(family_N[block, None] * keys + row, code_P)] = -np.inf
        candidates += int(np.isfinite(score).sum())
        for guard, is_refused in _guards(score, positive_N[block, None], limits):
            refused[guard] += int((is_refused & np.isfinite(score)).sum())
            score[is_refused] = -np.inf
        place = _chosen(score, np.arange(start, start + len(score)), limits)
        found = np.take_along_axis(score, place, axis=1)
        passed = np.isfinite(found)
        row_NK[block, : place.shape[1]] = np.where(passed, np.take_along_axis(row, place, axis=1), -1)
        score_NK[block, : place.shape[1]] = found
    return Mined(row_NK=row_NK, score_NK=score_NK, refused=refused, candidates=candidates)


def _guards(score_nk: np.ndarray, positive_n1: np.ndarray, limits: MiningLimits) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the guards that are set, with the candidates that each refuses: bool [n, k]."""
    if limits.absolute_margin is not None:
        yield "absolute_margin", score_nk + limits.absolute_margin > positive_n1
    if limits.relative_margin is not None:
        # Of the size of the score, so that the margin of a negative score is one, too.
        yield "relative_margin", score_nk > positive_n1 - np.abs(positive_n1) * limits.relative_margin
    if limits.max_score is not None:
        yield "max_score", score_nk > limits.max_score
    if limits.min_score is not None:
        yield "min_score", score_nk < limits.min_score


def _chosen(score_nk: np.ndarray, query_n: np.ndarray, limits: MiningLimits) -> np.ndarray:
    """Returns the places of the chosen candidates, the highest score first, those that did not pass last: [n, up to number]."""
    place_nk = np.argsort(-score_nk, axis=1, kind="stable")[:, limits.range_min : limits.range_max]
    if limits.strategy == "top":
        return place_nk[:, : limits.number]
    passed = np.isfinite(np.take_along_axis(score_nk, place_nk, axis=1))
    draw = uniform(limits.seed, Stream.NEGATIVES, query_n[:, None], np.arange(place_nk.shape[1]))
    drawn = np.argsort(np.where(passed, draw, 1.0), axis=1, kind="stable")[:, : limits.number]
    drawn.sort(axis=1)
    return np.take_along_axis(place_nk, drawn, axis=1)
