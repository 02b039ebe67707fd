"""Positive and self pairs, stored as ids and row numbers in O(N + M) memory, never as an N x M mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PairKind = Literal["all", "negatives", "positives"]
"""Pairs of different rows: all of them, those with different ids, or those with equal ids."""

TileShape = tuple[int, int]
"""Query rows and key rows that are compared at once."""

# Largest number of pairs that are computed in one piece, in plain autograd or in the graph of a compiler.
_PLAIN = 2**20
_COMPILED = 2**26
# Pairs in a tile, and its shortest side if the shape allows it.
_AREA = 2**22
_SIDE = 2**11


@dataclass(frozen=True)
class Pairs:
    """The pairs of N query rows and M key rows.

    Attributes:
        query_group_N, key_group_M: int32 in [0, groups); equal numbers are positives.
        groups: number of distinct ids.
        self_query_S, self_key_S: int64; queries and keys that are the same row and therefore excluded, sorted by query.
    """

    query_group_N: Tensor
    key_group_M: Tensor
    groups: int
    self_query_S: Tensor
    self_key_S: Tensor

    @classmethod
    def from_ids(
        cls,
        query_id_N: Tensor,
        key_id_M: Tensor,
        query_row_N: Tensor | None = None,
        key_row_M: Tensor | None = None,
    ) -> Pairs:
        """Creates pairs from int64 ids (equal: positive) and optional int64 row numbers (equal: the same row).

        Raises:
            ValueError: only one of the row numbers is given.
        """
        if (query_row_N is None) != (key_row_M is None):
            raise ValueError("give the row numbers of queries and keys, or of neither")
        if is_compiled(len(query_id_N), len(key_id_M)):
            return MaskedPairs.from_ids(query_id_N, key_id_M, query_row_N, key_row_M)
        id_G, group = torch.unique(torch.cat([query_id_N, key_id_M]), return_inverse=True)
        query_group_N, key_group_M = group.int().split([len(query_id_N), len(key_id_M)])
        if query_row_N is None or key_row_M is None:
            self_query_S = self_key_S = query_id_N.new_empty(0, dtype=torch.int64)
        else:
            self_query_S, self_key_S = _same_rows(query_row_N, key_row_M)
        return cls(query_group_N, key_group_M, len(id_G), self_query_S, self_key_S)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All fields except the number of groups; `with_tensors` restores them."""
        return self.query_group_N, self.key_group_M, self.self_query_S, self.self_key_S

    def with_tensors(self, query_group_N: Tensor, key_group_M: Tensor, self_query_S: Tensor, self_key_S: Tensor) -> Pairs:
        """The same pairs with other tensors, such as those that autograd passes to a function."""
        return Pairs(query_group_N, key_group_M, self.groups, self_query_S, self_key_S)

    @property
    def shape(self) -> tuple[int, int]:
        """N and M."""
        return len(self.query_group_N), len(self.key_group_M)

    def positive_count(self) -> Tensor:
        """Number of positives of every query, int64 [N]."""
        count_G = torch.bincount(self.key_group_M, minlength=self.groups)
        query_S, _ = self._self_of_equal_id()
        return count_G[self.query_group_N].index_add(0, query_S, torch.ones_like(query_S), alpha=-1)

    def negative_count(self) -> Tensor:
        """Number of negatives of every query, int64 [N]."""
        other = torch.bincount(self.self_query_S, minlength=self.shape[0])
        return self.shape[1] - other - self.positive_count()

    def positive_key_sum(self, key_MD: Tensor) -> Tensor:
        """Sum of every query's positive keys, [N, D]."""
        query_S, key_S = self._self_of_equal_id()
        return self._sum_of_equal_id(key_MD, self.key_group_M, self.query_group_N, key_S, query_S)

    def positive_query_sum(self, query_ND: Tensor) -> Tensor:
        """Sum of every key's positive queries, [M, D]."""
        query_S, key_S = self._self_of_equal_id()
        return self._sum_of_equal_id(query_ND, self.query_group_N, self.key_group_M, query_S, key_S)

    def tiles(self, tile: TileShape, kind: PairKind = "all", *, mirrored: bool = False) -> Iterator[tuple[slice, slice]]:
        """Yields tiles, as slices of queries and of keys, that cover all pairs of a kind; tiles at the edges may be smaller.

        With `mirrored`, tiles are square, and of two tiles that mirror each other only the one above the diagonal is included.
        """
        height, width = (min(tile), min(tile)) if mirrored else tile
        for rows in _blocks(self.shape[0], height):
            for columns in _blocks(self.shape[1], width):
                if mirrored and columns.start < rows.start:
                    continue
                if kind != "positives" or self.any_equal_id(rows, columns):
                    yield rows, columns

    def any_equal_id(self, rows: slice, columns: slice) -> bool:
        """Returns True if a tile has a pair of equal ids; much cheaper than the mask."""
        return bool(torch.isin(self.query_group_N[rows], self.key_group_M[columns]).any())

    def equal_id(self, rows: slice, columns: slice) -> Tensor:
        """Mask of the pairs of equal ids in a tile, bool."""
        return self.query_group_N[rows, None] == self.key_group_M[None, columns]

    def positives(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Positions within a tile of the pairs of equal ids, including self pairs: int64 [P], [P]."""
        return _same_rows(self.query_group_N[rows], self.key_group_M[columns])

    def mask_(self, logits: Tensor, rows: slice, columns: slice, kind: PairKind) -> Tensor:
        """Sets the logits of a tile to minus infinity, in place, except for pairs of the given kind."""
        if kind == "positives":
            logits.masked_fill_(~self.equal_id(rows, columns), -torch.inf)
        elif kind == "negatives" and self.any_equal_id(rows, columns):
            logits.masked_fill_(self.equal_id(rows, columns), -torch.inf)
        if len(self.self_query_S):
            logits[self._self_in(rows, columns)] = -torch.inf
        return logits

    def _self_in(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Positions of the self pairs within a tile."""
        ends = torch.tensor([rows.start, rows.stop], device=self.self_query_S.device)
        first, last = torch.searchsorted(self.self_query_S, ends).tolist()
        query, key = self.self_query_S[first:last] - rows.start, self.self_key_S[first:last] - columns.start
        inside = (key >= 0) & (key < columns.stop - columns.start)
        return query[inside], key[inside]

    def _sum_of_equal_id(self, rows: Tensor, group: Tensor, other_group: Tensor, own_S: Tensor, other_S: Tensor) -> Tensor:
        """For each row of the other side, the sum of the rows with its id, without itself."""
        if self.groups == len(group) and not len(own_S) and torch.equal(group, other_group):
            return rows  # one row per id, in the same order: the usual batch of pairs
        sum_GD = rows.new_zeros(self.groups, rows.shape[1]).index_add_(0, group, rows)
        return sum_GD.index_select(0, other_group).index_add_(0, other_S, rows.index_select(0, own_S), alpha=-1)

    def _self_of_equal_id(self) -> tuple[Tensor, Tensor]:
        equal_S = self.query_group_N[self.self_query_S] == self.key_group_M[self.self_key_S]
        return self.self_query_S[equal_S], self.self_key_S[equal_S]


class MaskedPairs(Pairs):
    """Pairs as masks, for a compiler: neither shapes nor branches depend on ids."""

    same_NM: Tensor | None

    @classmethod
    def from_ids(
        cls, query_id_N: Tensor, key_id_M: Tensor, query_row_N: Tensor | None = None, key_row_M: Tensor | None = None
    ) -> MaskedPairs:
        none_S = query_id_N.new_empty(0)
        pairs = cls(query_id_N, key_id_M, 0, none_S, none_S)
        same_NM = None if query_row_N is None or key_row_M is None else query_row_N[:, None] == key_row_M
        object.__setattr__(pairs, "same_NM", same_NM)
        return pairs

    def positive_count(self) -> Tensor:
        return self._mask("positives").sum(1)

    def negative_count(self) -> Tensor:
        return self._mask("negatives").sum(1)

    def positive_key_sum(self, key_MD: Tensor) -> Tensor:
        return self._mask("positives").to(key_MD.dtype) @ key_MD

    def mask_(self, logits: Tensor, rows: slice, columns: slice, kind: PairKind) -> Tensor:
        return logits.masked_fill(~self._mask(kind), -torch.inf)

    def _mask(self, kind: PairKind) -> Tensor:
        equal_NM = self.query_group_N[:, None] == self.key_group_M
        mask_NM = {"all": torch.ones_like(equal_NM), "positives": equal_NM, "negatives": ~equal_NM}[kind]
        return mask_NM if self.same_NM is None else mask_NM & ~self.same_NM


def check_rows(query_ND: Tensor, key_MD: Tensor, query_id_N: Tensor, key_id_M: Tensor) -> None:
    """Raises ValueError unless all rows have the same width and there is one id per row."""
    if query_ND.ndim != 2 or key_MD.ndim != 2 or query_ND.shape[1] != key_MD.shape[1]:
        raise ValueError(f"queries {tuple(query_ND.shape)} and keys {tuple(key_MD.shape)} must be [N, D] and [M, D]")
    if query_id_N.shape != query_ND.shape[:1] or key_id_M.shape != key_MD.shape[:1]:
        raise ValueError(
            f"ids {tuple(query_id_N.shape)}, {tuple(key_id_M.shape)} must be [N], [M] = [{len(query_ND)}], [{len(key_MD)}]"
        )


def is_compiled(rows: int, columns: int) -> bool:
    """True inside `torch.compile`, which supports neither ids nor tiles, if the pairs are few enough for one piece."""
    return torch.compiler.is_compiling() and rows * columns <= _COMPILED


def choose_tile(rows: int, columns: int) -> TileShape | None:
    """Chooses a tile of about four million pairs, as square as the shape allows; None if a single piece suffices."""
    if rows * columns <= _PLAIN or is_compiled(rows, columns):
        return None
    height = _AREA // min(columns, max(_SIDE, _AREA // rows))
    return min(rows, height), _AREA // min(rows, height)


def _blocks(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _same_rows(query_row_N: Tensor, key_row_M: Tensor) -> tuple[Tensor, Tensor]:
    """Finds all pairs of equal row numbers, as positions of queries (ascending) and of keys, by sorting."""
    sorted_row_M, order_M = key_row_M.sort()
    first_N = torch.searchsorted(sorted_row_M, query_row_N)
    count_N = torch.searchsorted(sorted_row_M, query_row_N, right=True) - first_N
    query_S = torch.arange(len(query_row_N), device=query_row_N.device).repeat_interleave(count_N)
    before_N = count_N.cumsum(0) - count_N
    place_S = torch.arange(len(query_S), device=query_S.device) + (first_N - before_N)[query_S]
    return query_S, order_M[place_S]
