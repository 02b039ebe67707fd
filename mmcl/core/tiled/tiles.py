"""Matrix products of every tiled loss: the logits of a tile, and the contribution of their gradient to that of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from mmcl.core.higher_derivatives import recomputed
from mmcl.core.tiled.pairs import Pairs, TileShape

# Rows of a tile that are processed by several elementwise operations in turn while they are in the cache of a CPU.
_STRIP = 128

# Padding between the rows of a tile. If rows are a power of two apart, they compete for the same cache lines, and the product
# with the transposed tile takes a tenth longer.
_PADDING = 16


class TileLogits:
    """Computes tiles of logits in one reused buffer; allocating each tile would take as long as all the exponentials.

    Args:
        keep: store the first tiles, as many as fit into the memory of the rows.
        known: the stored tiles of an earlier pass over the same tiles in the same order; they are not computed again.

    Attributes:
        kept: copies of the stored tiles.
    """

    def __init__(
        self,
        query_ND: Tensor,
        key_MD: Tensor,
        scale: float,
        tile: TileShape,
        *,
        keep: bool = False,
        known: Sequence[Tensor] = (),
    ):
        self.query_ND, self.key_MD, self.scale = query_ND, key_MD, scale
        self.memory = query_ND.new_empty(min(tile[0], len(query_ND)), min(tile[1], len(key_MD)) + _PADDING)
        self.known = iter(known)
        self.kept: list[Tensor] = []
        self.space = query_ND.numel() + key_MD.numel() if keep else 0

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        if (known := next(self.known, None)) is not None:
            return self._memory_of(*known.shape).copy_(known)
        logits = self.product(rows, columns)
        self._keep(logits)
        return logits

    def product(self, rows: slice, columns: slice) -> Tensor:
        """Compute a tile, whether or not it is known, and do not keep it."""
        query_ND, key_MD = self.query_ND[rows], self.key_MD[columns]
        return self._memory_of(len(query_ND), len(key_MD)).addmm_(query_ND, key_MD.T, beta=0, alpha=self.scale)

    def _memory_of(self, rows: int, columns: int) -> Tensor:
        return self.memory[:rows, :columns]

    def _keep(self, logits: Tensor) -> None:
        if logits.numel() <= self.space:
            self.space -= logits.numel()
            self.kept.append(logits.clone())
        else:
            self.space = 0  # a later tile may be smaller, but the kept ones are the first


class RowGradients:
    """Accumulates the gradients of tiles of logits into those of the rows and of the scale."""

    def __init__(self, query_ND: Tensor, key_MD: Tensor, scale: float, mirrored: bool, needed: Sequence[bool]):
        self.query_ND, self.key_MD, self.mirrored, self.needed = query_ND, key_MD, mirrored, needed
        # With a scale of 0 the rows have no gradient, but the scale has one, computed from that of the rows for a scale of 1.
        self.is_zero = not scale
        self.scale = scale or 1.0
        query_needed, key_needed, scale_needed = needed
        # The gradient of the scale is computed from one of the others.
        self.grad_query_ND = torch.zeros_like(query_ND) if query_needed or (scale_needed and not key_needed) else None
        self.grad_key_MD = self.grad_query_ND if mirrored else torch.zeros_like(key_MD) if key_needed else None

    def add(self, grad_logits: Tensor, rows: slice, columns: slice) -> None:
        """Adds the contribution of a tile, the gradient [n, m] of its logits, to its query and key rows."""
        if self.grad_query_ND is not None:
            self.grad_query_ND[rows].addmm_(grad_logits, self.key_MD[columns], alpha=self.scale)
        if self.grad_key_MD is not None:
            self.grad_key_MD[columns].addmm_(grad_logits.T, self.query_ND[rows], alpha=self.scale)

    def result(self) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys and scale; None if not needed, or for keys that are included in the queries' gradient."""
        query_needed, _, scale_needed = self.needed
        of_query, of_key = (self.grad_query_ND if query_needed else None), (None if self.mirrored else self.grad_key_MD)
        of_scale = self._of_scale() if scale_needed else None
        if self.is_zero:
            of_query, of_key = (None if grad is None else torch.zeros_like(grad) for grad in (of_query, of_key))
        return of_query, of_key, of_scale

    def _of_scale(self) -> Tensor:
        """Gradient of the scale, by Euler's theorem: a logit is linear in the scale, in its query and in its key."""
        if self.grad_query_ND is not None:
            return _dot(self.query_ND, self.grad_query_ND) / (2 * self.scale if self.mirrored else self.scale)
        assert self.grad_key_MD is not None
        return _dot(self.key_MD, self.grad_key_MD) / self.scale


def recomputed_tiles(
    function: Callable[..., tuple[Tensor, ...]],
    pairs: Pairs,
    query_ND: Tensor,
    key_MD: Tensor,
    *scalars: Tensor,
) -> Iterator[tuple[tuple[int, int], tuple[Tensor, ...]]]:
    """Yields each tile's number and `function(pairs, (rows, columns), queries, keys, *scalars)`, see `recomputed`."""
    (height, width), of_pairs = pairs.tile, pairs.tensors
    query_parts, key_parts = query_ND.split(height), key_MD.split(width)
    for rows, columns in pairs.tiles():
        row, column = rows.start // height, columns.start // width
        of_tile = partial(_of_tile, function, pairs, len(of_pairs), (rows, columns))
        yield (row, column), recomputed(of_tile, *of_pairs, query_parts[row], key_parts[column], *scalars)


def _of_tile(
    function: Callable[..., tuple[Tensor, ...]], pairs: Pairs, count: int, tile: tuple[slice, slice], *tensors: Tensor
) -> tuple[Tensor, ...]:
    return function(pairs.with_tensors(*tensors[:count]), tile, *tensors[count:])


def strips(rows: Tensor) -> Sequence[Tensor]:
    """Parts of a tile's rows that fit into the cache of a CPU; all of them on a GPU, which wants few large operations."""
    return rows.split(_STRIP) if rows.device.type == "cpu" else (rows,)


def _dot(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Sum of the elementwise products, without a third tensor of that size."""
    parts = zip(strips(a_ND), strips(b_ND), strict=True)
    return torch.stack([(a * b).sum() for a, b in parts]).sum()
