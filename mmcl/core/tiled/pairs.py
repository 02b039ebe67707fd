"""Positive and self pairs, stored as ids and row numbers in O(N + M) memory, never as an N x M mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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
# Pairs in a tile, and its shortest side if the shape allows it: a CPU keeps parts of a tile in its caches, and a GPU is kept
# busy by few large operations.
_AREA, _SIDE = 2**22, 2**11
_GPU_AREA, _GPU_SIDE = 2**26, 2**13


@dataclass(frozen=True)
class Facts:
    """What the host knows of rows and pairs: one number of the device would be one wait for it.

    Attributes:
        scale, offset: what every product of two rows is multiplied by, and what is then added.
        reach: largest absolute value that a product of two rows can have: the greatest length of a query times that of a key.
        in_order: every id is that of one query and of one key, in the same order: the usual batch of pairs.
        equal, same: by the number of a tile, in columns and in rows: whether it has a pair of equal ids, or of the same row.
    """

    scale: float
    offset: float
    reach: float
    in_order: bool
    equal: list[list[bool]]
    same: list[list[bool]]


@dataclass(frozen=True)
class Pairs:
    """The pairs of N query rows and M key rows, in tiles. Only `facts` waits for the device.

    Attributes:
        query_id_N, key_id_M: int64; equal ids are positives.
        query_row_N, key_row_M: int64 row numbers, of which equal ones are the same row, whose pair is excluded; None for both
            if all rows differ.
        tile: the shape of the tiles; those at the edges may be smaller.
        mirrored: queries and keys are the same rows. Tiles are then square, and of two that mirror each other only the one
            above the diagonal is computed.
    """

    query_id_N: Tensor
    key_id_M: Tensor
    query_row_N: Tensor | None = None
    key_row_M: Tensor | None = None
    tile: TileShape = (_SIDE, _SIDE)
    mirrored: bool = False

    def __post_init__(self) -> None:
        if self.mirrored:
            object.__setattr__(self, "tile", (min(self.tile),) * 2)

    @property
    def shape(self) -> tuple[int, int]:
        """N and M."""
        return len(self.query_id_N), len(self.key_id_M)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Ids and, if there are any, row numbers; `with_tensors` restores them."""
        rows = () if self.query_row_N is None or self.key_row_M is None else (self.query_row_N, self.key_row_M)
        return self.query_id_N, self.key_id_M, *rows

    def with_tensors(self, *tensors: Tensor) -> Pairs:
        """The same pairs with other tensors, such as those that autograd passes to a function."""
        query_id_N, key_id_M, *rows = tensors
        query_row_N, key_row_M = rows or (None, None)
        return replace(self, query_id_N=query_id_N, key_id_M=key_id_M, query_row_N=query_row_N, key_row_M=key_row_M)

    def facts(self, query_ND: Tensor, key_MD: Tensor, scale: Tensor, offset: Tensor | float = 0.0) -> Facts:
        """Read what the tiles need to know, in one go."""
        grid = [-(-size // side) for size, side in zip(self.shape, self.tile, strict=True)]
        flags = [self._of_id.in_common(self.tile)]
        if self._of_row is not None:
            flags.append(self._of_row.in_common(self.tile))
        numbers = [scale, offset, _longest(query_ND) * _longest(key_MD), self._are_in_order()]
        scalars = torch.stack([torch.as_tensor(number, dtype=scale.dtype, device=scale.device) for number in numbers])
        of_scale, of_offset, reach, in_order, *rest = torch.cat([scalars, *(f.flatten().to(scale) for f in flags)]).tolist()
        known = iter([bool(flag) for flag in rest])
        equal, same = ([[next(known, False) for _ in range(grid[0])] for _ in range(grid[1])] for _ in range(2))
        return Facts(of_scale, of_offset, reach, bool(in_order), equal, same)

    def positive_count(self) -> Tensor:
        """Number of positives of every query, int64 [N]."""
        return self._of_id.count_of_keys() - (self._of_both.count_of_keys() if self._of_both else 0)

    def negative_count(self) -> Tensor:
        """Number of negatives of every query, int64 [N]."""
        other_N = self.shape[1] - self.positive_count()
        return other_N - self._of_row.count_of_keys() if self._of_row else other_N

    def positive_key_sum(self, key_MD: Tensor, *, in_order: bool = False) -> Tensor:
        """Sum of every query's positive keys, [N, D]; `in_order`: see `Facts`."""
        if in_order:
            return key_MD
        sum_ND = self._of_id.sum_of_keys(key_MD)
        return sum_ND - self._of_both.sum_of_keys(key_MD) if self._of_both else sum_ND

    def positive_query_sum(self, query_ND: Tensor, *, in_order: bool = False) -> Tensor:
        """Sum of every key's positive queries, [M, D]; `in_order`: see `Facts`."""
        if in_order:
            return query_ND
        sum_MD = self._of_id.sum_of_queries(query_ND)
        return sum_MD - self._of_both.sum_of_queries(query_ND) if self._of_both else sum_MD

    def tiles(self, kind: PairKind = "all", facts: Facts | None = None) -> Iterator[tuple[slice, slice]]:
        """Yield tiles, as slices of queries and of keys, that cover all pairs of a kind."""
        for rows in _blocks(self.shape[0], self.tile[0]):
            for columns in _blocks(self.shape[1], self.tile[1]):
                if self.mirrored and columns.start < rows.start:
                    continue
                if kind != "positives" or facts is None or self.has_equal_ids(rows, columns, facts):
                    yield rows, columns

    def has_equal_ids(self, rows: slice, columns: slice, facts: Facts) -> bool:
        """Return True if a tile has a pair of equal ids, be it a self pair."""
        return self._flag(facts.equal, rows, columns)

    def _flag(self, flags: list[list[bool]], rows: slice, columns: slice) -> bool:
        row, column = (int(part.start) // size for part, size in zip((rows, columns), self.tile, strict=True))
        return flags[column][row]

    def excluded(self, rows: slice, columns: slice, kind: PairKind, facts: Facts | None = None) -> Tensor | None:
        """Mask of the pairs of a tile that are not of a kind, bool; None if all are. Without facts, any pair may be."""
        same = self._same(rows, columns, facts)
        if kind == "all":
            return same
        if kind == "negatives" and facts is not None and not self.has_equal_ids(rows, columns, facts):
            return same
        equal = self.equal_id(rows, columns)
        other = equal if kind == "negatives" else ~equal
        return other if same is None else other | same

    def equal_id(self, rows: slice, columns: slice) -> Tensor:
        """Mask of the pairs of equal ids in a tile, bool."""
        return self.query_id_N[rows, None] == self.key_id_M[None, columns]

    def _same(self, rows: slice, columns: slice, facts: Facts | None) -> Tensor | None:
        if self.query_row_N is None or self.key_row_M is None:
            return None
        if facts is not None and not self._flag(facts.same, rows, columns):
            return None
        return self.query_row_N[rows, None] == self.key_row_M[None, columns]

    def _are_in_order(self) -> Tensor | bool:
        if self.shape[0] != self.shape[1] or not self.shape[0] or self._of_row is not None:
            return False
        groups = self._of_id.key_M.max() + 1
        return (self._of_id.query_N == self._of_id.key_M).all() & (groups == self.shape[0])

    @cached_property
    def _of_id(self) -> _Groups:
        return _Groups.of_equal([self.query_id_N], [self.key_id_M])

    @cached_property
    def _of_row(self) -> _Groups | None:
        if self.query_row_N is None or self.key_row_M is None:
            return None
        return _Groups.of_equal([self.query_row_N], [self.key_row_M])

    @cached_property
    def _of_both(self) -> _Groups | None:
        """Self pairs of equal ids, which are not positives."""
        if self.query_row_N is None or self.key_row_M is None:
            return None
        return _Groups.of_equal([self.query_id_N, self.query_row_N], [self.key_id_M, self.key_row_M])


@dataclass(frozen=True)
class _Groups:
    """Rows of both sides in groups, at most one for each row.

    Attributes:
        query_N, key_M: int64 numbers of their groups, from 0.
    """

    query_N: Tensor
    key_M: Tensor

    @classmethod
    def of_equal(cls, query: Sequence[Tensor], key: Sequence[Tensor]) -> _Groups:
        """Group rows that have all of some int64 values in common."""
        values = [torch.cat(both) for both in zip(query, key, strict=True)]
        order = torch.arange(len(values[0]), device=values[0].device)
        for value in reversed(values):
            order = order[value[order].argsort(stable=True)]
        begins = torch.zeros_like(order, dtype=torch.bool)
        for value in values:
            begins[1:] |= value[order[1:]] != value[order[:-1]]
        group = torch.empty_like(order).scatter_(0, order, begins.cumsum(0))
        return cls(*group.split([len(query[0]), len(key[0])]))

    def count_of_keys(self) -> Tensor:
        """Number of keys in the group of every query."""
        ones_M = torch.ones_like(self.key_M)
        return self._empty(ones_M).scatter_add_(0, self.key_M, ones_M)[self.query_N]

    def sum_of_keys(self, key_MD: Tensor) -> Tensor:
        """Sum of the keys in the group of every query."""
        return self._empty(key_MD).index_add_(0, self.key_M, key_MD).index_select(0, self.query_N)

    def sum_of_queries(self, query_ND: Tensor) -> Tensor:
        """Sum of the queries in the group of every key."""
        return self._empty(query_ND).index_add_(0, self.query_N, query_ND).index_select(0, self.key_M)

    def in_common(self, tile: TileShape) -> Tensor:
        """Whether a tile has a pair of one group: bool [tiles of a row, tiles of a column]."""
        by_row, by_column = (_blocks(len(side), size) for side, size in zip((self.query_N, self.key_M), tile, strict=True))
        found = self.query_N.new_zeros(len(by_column), len(by_row), dtype=torch.bool)
        for column, columns in enumerate(by_column):
            has_key = self._empty(self.key_M.bool()).index_fill_(0, self.key_M[columns], True)
            has_pair_N = has_key[self.query_N]
            for row, rows in enumerate(by_row):
                found[column, row] = has_pair_N[rows].any()
        return found

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_zeros(len(self.query_N) + len(self.key_M), *like.shape[1:])


def check_rows(query_ND: Tensor, key_MD: Tensor, query_id_N: Tensor, key_id_M: Tensor) -> None:
    """Raises ValueError unless all rows have the same width and there is one id per row."""
    if query_ND.ndim != 2 or key_MD.ndim != 2 or query_ND.shape[1] != key_MD.shape[1]:
        raise ValueError(f"queries {tuple(query_ND.shape)} and keys {tuple(key_MD.shape)} must be [N, D] and [M, D]")
    if query_id_N.shape != query_ND.shape[:1] or key_id_M.shape != key_MD.shape[:1]:
        raise ValueError(
            f"ids {tuple(query_id_N.shape)}, {tuple(key_id_M.shape)} must be [N], [M] = [{len(query_ND)}], [{len(key_MD)}]"
        )


def choose_tile(rows: int, columns: int, device: str = "cpu") -> TileShape | None:
    """Choose a tile, as square as the shape allows; None if a single piece suffices, or if a compiler wants one."""
    pairs = rows * columns
    if pairs <= _PLAIN or (torch.compiler.is_compiling() and pairs <= _COMPILED):
        return None
    area, side = (_AREA, _SIDE) if device == "cpu" else (_GPU_AREA, _GPU_SIDE)
    height = area // min(columns, max(side, area // rows))
    return min(rows, height), area // min(rows, height)


def _blocks(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _longest(rows_ND: Tensor) -> Tensor | float:
    return torch.linalg.vector_norm(rows_ND.detach(), dim=1).max() if len(rows_ND) else 0.0
