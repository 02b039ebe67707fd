"""Example queries of an evaluation with what a model found for them: the best, the median and the worst, chosen by rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmcl.errors import UserError
from mmcl.evaluate.measures.ranking import cosine_scores
from mmcl.rng import permutation

GROUPS = ("best", "median", "worst")
MOST = 10
"""Examples per group, so that no page grows heavy."""
SAMPLED = 1000
"""Queries among which the examples are chosen; if there are more, a random choice of this size."""
_HITS = 5
_BLOCK = 2**24

Describe = Callable[[int], Mapping[str, Any]]
"""Maps a row number to `text` and `image`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """A candidate that was found for a query.

    Attributes:
        rank: from 1; a fraction where equal scores make it an expectation.
        score: cosine with the query.
        is_right: True if it belongs to the query.
        text: its caption, class or name.
        image: its thumbnail as a data URI, or None.
    """

    rank: float
    score: float
    is_right: bool
    text: str
    image: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A query with its first hits.

    Attributes:
        group: why it is shown: "best", "median", "worst".
        text: its caption or name.
        image: its thumbnail as a data URI; None for a query by text.
        hits: the first candidates, best first.
        answer: the first right candidate, where it is not among the hits.
    """

    group: str
    text: str
    image: str | None
    hits: tuple[Hit, ...]
    answer: Hit | None = None


Changes = Sequence[tuple[Query, Query]]
"""The same queries with the hits of two models, A and B; their group says whether B is "better" or "worse"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """Queries of one kind, such as texts that look for images.

    Attributes:
        evaluator, data, model: as in `Metric`.
        title: such as "text to image".
        candidates: number of candidates that were ranked.
        sampled: number of queries among which these were chosen.
        queries: grouped, in the order of `GROUPS`.
    """

    evaluator: str
    data: str
    model: str
    title: str
    candidates: int
    sampled: int
    queries: tuple[Query, ...]

    @classmethod
    def choose(
        cls,
        query_ND: Tensor,
        key_MD: Tensor,
        query_ids: Tensor,
        key_ids: Tensor,
        describe_query: Describe,
        describe_key: Describe,
        *,
        per_group: int,
        **place: str,
    ) -> Examples:
        """Examples of queries that `choose` chooses.

        Args:
            query_ND, key_MD, query_ids, key_ids, per_group: as in `choose`.
            describe_query, describe_key: map a row to its text and image, as in `Query` and `Hit`.
            place: evaluator, data, model and title.
        """
        chosen, sampled = choose(query_ND, key_MD, query_ids, key_ids, per_group)
        queries = tuple(one.described(describe_query, describe_key) for one in chosen)
        return cls(candidates=len(key_MD), sampled=sampled, queries=queries, **place)


@dataclass(frozen=True, slots=True)
class Choice:
    """A query that was chosen to be shown, by row numbers.

    Attributes:
        group: one of `GROUPS`.
        query: row of the query.
        hits: rows of the first candidates, with their scores and whether they are right.
        answer: row, rank and score of the first right candidate.
    """

    group: str
    query: int
    hits: tuple[tuple[int, float, bool], ...]
    answer: tuple[int, float, float]

    def described(self, describe_query: Describe, describe_key: Describe) -> Query:
        """The query with texts and images instead of rows."""
        hits = tuple(
            Hit(rank=rank, score=score, is_right=right, **describe_key(row))
            for rank, (row, score, right) in enumerate(self.hits, 1)
        )
        row, rank, score = self.answer
        is_found = any(hit.is_right for hit in hits)
        answer = None if is_found else Hit(rank=rank, score=score, is_right=True, **describe_key(row))
        return Query(group=self.group, hits=hits, answer=answer, **describe_query(self.query))


def choose(query_ND: Tensor, key_MD: Tensor, query_ids: Tensor, key_ids: Tensor, per_group: int) -> tuple[list[Choice], int]:
    """Chooses queries by the rank of the first right candidate, and returns them with the number of queries considered.

    The queries whose right candidate ranks first, in the middle and last among all are the best, the median and the worst ones;
    equal ranks are in a random order of a fixed seed.

    Args:
        query_ND, key_MD: unit-length rows.
        query_ids, key_ids: int64 [N], [M]; equal ids belong together. Queries without a right candidate are left out.
        per_group: queries in each group; fewer where there are too few.

    Example:
        >>> chosen, considered = choose(torch.eye(3), torch.eye(3), torch.arange(3), torch.arange(3), 1)
        >>> [(one.group, one.answer[1]) for one in chosen], considered
        ([('best', 1.0), ('median', 1.0), ('worst', 1.0)], 3)
    """
    answered = torch.isin(query_ids, key_ids).nonzero().flatten().cpu()
    rows = answered[torch.from_numpy(permutation(len(answered), 0)[:SAMPLED])]
    scores, ids = cosine_scores(query_ND[rows], key_MD), query_ids[rows]
    size = max(1, _BLOCK // len(key_MD))
    blocks = (slice(start, start + size) for start in range(0, len(rows), size))
    rank = torch.cat([first_rank(scores(block), ids[block, None] == key_ids) for block in blocks])
    order = rank.argsort(stable=True)
    chosen = []
    for group, place in _places(len(order), per_group):
        number = int(order[place])
        score, right = scores(slice(number, number + 1))[0], key_ids == ids[number]
        hits = score.argsort(descending=True, stable=True)[:_HITS].tolist()
        answer = int(score.masked_fill(~right, -torch.inf).argmax())
        found = tuple((row, float(score[row]), bool(right[row])) for row in hits)
        chosen.append(Choice(group, int(rows[number]), found, (answer, float(rank[number]), float(score[answer]))))
    return chosen, len(rows)


def first_rank(score_QM: Tensor, right_QM: Tensor) -> Tensor:
    """Rank of the first right candidate of each query, from 1: [Q]; its expectation where candidates have equal scores.

    Example:
        >>> first_rank(torch.tensor([[0.1, 0.9, 0.5]]), torch.tensor([[True, False, True]]))
        tensor([2.])
    """
    best_Q1 = score_QM.masked_fill(~right_QM, -torch.inf).amax(dim=1, keepdim=True)
    tied_QM = score_QM == best_Q1
    above_Q, tied_Q, right_Q = (part.sum(dim=1) for part in (score_QM > best_Q1, tied_QM, tied_QM & right_QM))
    # The first of b right ones among n candidates in random order is expected at (n + 1) / (b + 1).
    return above_Q + (tied_Q + 1) / (right_Q + 1)


def check_count(examples: int, evaluator: str) -> None:
    """Raises UserError for a number of examples per group that no page can show."""
    if not 0 <= examples <= MOST:
        raise UserError(
            f"{evaluator}: examples must be from 0 to {MOST} (of the best, the median and the worst each), not {examples}"
        )


def _places(count: int, per_group: int) -> Iterator[tuple[str, int]]:
    """Groups and places in an order by rank, each place once."""
    size = min(per_group, -(-count // len(GROUPS)))
    starts = {"best": 0, "median": (count - size) // 2, "worst": count - size}
    seen: set[int] = set()
    for group, start in starts.items():
        places: Sequence[int] = [place for place in range(start, start + size) if place not in seen]
        seen.update(places)
        yield from ((group, place) for place in places)
