"""All pairs of rows whose inner product reaches a threshold, in blocks of the upper triangle, without the N x N matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_STRIP = 256
"""Rows of a block whose pairs are listed at a time."""
_RESCORED = 2**14
"""Pairs that are scored again in float64 at a time."""

Pairs = tuple[Tensor, Tensor, Tensor]


@torch.no_grad()
def near_pairs(row_ND: Tensor, threshold: float, *, among_A: Tensor | None = None, block: int = 2048) -> Iterator[Pairs]:
    """Yields all pairs of rows i < j with an inner product of at least `threshold`.

    Candidates are found in float32 and decided in float64, so the pairs do not depend on the size of the blocks. Extra memory
    is that of one block of scores and one strip of pairs.

    Args:
        row_ND: float32 rows; of unit length for cosine.
        threshold: least inner product.
        among_A: int64 [A], ascending, the rows to compare; None for all.
        block: rows of a block.

    Yields:
        Rows i and j, int64 [P], and their inner products, float64 [P]; all pairs once, in any number of parts.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> [(i.tolist(), j.tolist()) for i, j, _ in near_pairs(rows, 0.9)]
        [([0], [2])]
    """
    rows_A = torch.arange(len(row_ND)) if among_A is None else among_A
    starts = range(0, len(rows_A), block)
    length = row_ND.norm(dim=1).amax() if len(row_ND) else torch.zeros(())
    # A float32 product of D terms is off by at most D / 2 units in the last place of the product of the lengths.
    lowest = threshold - float(row_ND.shape[1] * torch.finfo(torch.float32).eps * length * length)
    memory = row_ND.new_empty(min(block, len(rows_A)) ** 2)
    for start in starts:
        left = rows_A[start : start + block]
        query = row_ND[left]
        for other in starts[start // block :]:
            right = rows_A[other : other + block]
            key = query if other == start else row_ND[right]
            score = torch.mm(query, key.T, out=memory[: len(left) * len(right)].view(len(left), len(right)))
            if score.amax() >= lowest:
                yield from _pairs(score, query, key, left, right, threshold, lowest, is_diagonal=other == start)


def _pairs(
    score: Tensor,
    query: Tensor,
    key: Tensor,
    left: Tensor,
    right: Tensor,
    threshold: float,
    lowest: float,
    *,
    is_diagonal: bool,
) -> Iterator[Pairs]:
    """Yields the pairs of one block."""
    for first in range(0, len(score), _STRIP):
        strip = score[first : first + _STRIP]
        if strip.amax() < lowest:
            continue
        row, column = (strip >= lowest).nonzero(as_tuple=True)
        row = row + first
        if is_diagonal:
            above = column > row
            row, column = row[above], column[above]
        for part_row, part_column in zip(row.split(_RESCORED), column.split(_RESCORED), strict=True):
            exact = (query[part_row].double() * key[part_column].double()).sum(dim=1)
            near = exact >= threshold
            if near.any():
                yield left[part_row[near]], right[part_column[near]], exact[near]


def equal_rows(row_ND: Tensor) -> Tensor:
    """Returns the first row that each row is equal to, bit for bit: int64 [N].

    Example:
        >>> equal_rows(torch.tensor([[1.0], [2.0], [1.0]])).tolist()
        [0, 1, 0]
    """
    bits = row_ND.contiguous().view(torch.int32)
    generator = torch.Generator().manual_seed(0)
    factor = torch.randint(-(2**62), 2**62, (bits.shape[1],), generator=generator) * 2 + 1
    hashed = torch.cat([torch.empty(0, dtype=torch.int64), *((part.long() * factor).sum(dim=1) for part in bits.split(2**12))])
    order = hashed.argsort(stable=True)
    ascending = hashed[order]
    begins = torch.ones(len(order), dtype=torch.bool)
    begins[1:] = ascending[1:] != ascending[:-1]
    first = torch.empty_like(order)
    first[order] = order[begins.nonzero().flatten()[begins.cumsum(0) - 1]]
    moved = (first != torch.arange(len(first))).nonzero().flatten()
    for rows in moved.split(2**12):
        other = (bits[rows] != bits[first[rows]]).any(dim=1)  # another row of equal hash: compared like any two
        first[rows[other]] = rows[other]
    return first
