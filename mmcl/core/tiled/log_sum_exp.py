"""Log-sum-exp over pairs of rows: the denominator of every softmax contrast, in memory O((N + M) D) plus one tile.

Logits exist only for one tile at a time. The forward pass keeps their log-sum-exps, and the backward pass recomputes each tile.
This costs one more matrix product, but no N x M matrix is ever stored (like Dao et al., "FlashAttention", 2022, for attention).
The first tiles are stored instead of recomputed, as many as fit into the memory of the rows.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmcl.core.higher_derivatives import gradients, is_transformed
from mmcl.core.tiled.pairs import PairKind, Pairs, TileShape, choose_tile
from mmcl.core.tiled.tiles import STRIP, RowGradients, TileLogits, recomputed_tiles

# The widest span of logits that may share one exponential around a common center. Within it, nothing overflows or becomes
# subnormal, including sums of 2^20 terms and their reciprocals.
_ONE_EXP_SPAN = {torch.float32: 100.0, torch.float64: 1000.0}
# Logits within plus or minus this need no center: their exponentials, sums and reciprocals stay far from the limits of float32.
_SMALL = 50.0


def pair_log_sum_exp(
    query_ND: Tensor,
    key_MD: Tensor,
    pairs: Pairs,
    *,
    scale: Tensor | float = 1.0,
    kind: PairKind = "all",
    both: bool = False,
    mirrored: bool = False,
    tile: TileShape | None = None,
) -> tuple[Tensor, Tensor | None]:
    r"""$\log \sum_j e^{\mathrm{scale} \cdot q_i^\top k_j}$ of every query over its keys of one kind; with `both`, also
    of every key over its queries.

    Both come from the same products: 4 of them, forward and backward, where two calls take 8. A sum of no pairs is minus
    infinity, with zero gradient.

    Args:
        query_ND, key_MD: rows of one type, float32 or float64.
        pairs: positive pairs and self pairs.
        scale: inverse temperature, not 0, a number or a scalar tensor (with a gradient if it is learned).
        kind: the pairs that are summed; self pairs never are.
        both: also return the sums over the queries.
        mirrored: queries and keys are the same tensor. Then every product of two rows is computed once and used for both, which
            halves the work. Not together with `both`, which would return the same sums twice.
        tile: rows and columns of a tile; by default about 2048 x 2048, or a single piece in plain autograd for few pairs.

    Returns:
        [N], and [M] or None.
    """
    tile = tile or choose_tile(*pairs.shape)
    with torch.autocast(query_ND.device.type, enabled=False):
        if tile is not None:
            scale = torch.as_tensor(scale, dtype=query_ND.dtype, device=query_ND.device)
            if is_transformed():
                by_row, *by_column = _sums_of_recomputed_tiles(pairs, tile, kind, both, query_ND, key_MD, scale)
                return by_row, by_column[0] if both else None
            sums: tuple[Tensor, Tensor | None]
            sums = _TiledLogSumExp.apply(query_ND, key_MD, scale, pairs, kind, both, mirrored, tile)
            return sums
        everything = slice(0, len(query_ND)), slice(0, len(key_MD))
        by_row, *by_column = _sums(kind, both, pairs, everything, query_ND, key_MD, scale)
        return by_row, by_column[0] if both else None


def _sums(
    kind: PairKind, both: bool, pairs: Pairs, tile: tuple[slice, slice], query_ND: Tensor, key_MD: Tensor, scale: Tensor | float
) -> tuple[Tensor, ...]:
    """Log-sum-exps of one tile in plain autograd."""
    logits_NM = pairs.mask_((scale * query_ND) @ key_MD.T, *tile, kind)
    return (_log_sum_exp(logits_NM, 1), _log_sum_exp(logits_NM, 0)) if both else (_log_sum_exp(logits_NM, 1),)


def _log_sum_exp(logits: Tensor, dim: int) -> Tensor:
    """Log-sum-exp with finite derivatives for empty sums, whose second derivative is NaN in PyTorch's own function."""
    log_sum = logits.logsumexp(dim)
    empty = log_sum == -torch.inf
    if is_transformed() or bool(empty.any()):
        return logits.masked_fill(empty.unsqueeze(dim), 0).logsumexp(dim).masked_fill(empty, -torch.inf)
    return log_sum


def _sums_of_recomputed_tiles(
    pairs: Pairs, tile: TileShape, kind: PairKind, both: bool, query_ND: Tensor, key_MD: Tensor, scale: Tensor
) -> tuple[Tensor, ...]:
    """Log-sum-exps of all tiles in plain autograd, without storing the tiles."""
    sides: list[list[tuple[Tensor, list[Tensor]]]] = [
        [(rows, []) for rows in side.split(size)] for side, size in zip((query_ND, key_MD), tile, strict=True)
    ]
    for numbers, sums in recomputed_tiles(partial(_sums, kind, both), pairs, tile, query_ND, key_MD, scale):
        for side, number, part in zip(sides, numbers, sums, strict=False):
            side[number][1].append(part)
    return tuple(torch.cat([_joined(rows, parts) for rows, parts in side]) for side in sides[: 1 + both])


def _joined(rows_ND: Tensor, parts: list[Tensor]) -> Tensor:
    """Combines the log-sum-exps of the same rows in several tiles; minus infinity if there are no tiles."""
    return _log_sum_exp(torch.stack(parts), 0) if parts else rows_ND.new_full(rows_ND.shape[:1], -torch.inf)


class _TiledLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_ND: Tensor,
        key_MD: Tensor,
        scale: Tensor,
        pairs: Pairs,
        kind: PairKind,
        both: bool,
        mirrored: bool,
        tile: TileShape,
    ) -> tuple[Tensor, Tensor | None]:
        row_N = query_ND.new_full(query_ND.shape[:1], -torch.inf)
        # Mirrored, the column of a row is the row itself: a tile above the diagonal adds to both.
        column_M = row_N if mirrored else key_MD.new_full(key_MD.shape[:1], -torch.inf) if both else None
        logits_of = TileLogits(query_ND, key_MD, float(scale), tile, keep=any(ctx.needs_input_grad))
        bound = math.inf if column_M is None else logits_of.bound()
        low, high = (-bound, bound) if bound <= _SMALL else (math.inf, -math.inf)
        for rows, columns in pairs.tiles(tile, kind, mirrored=mirrored):
            logits = logits_of(rows, columns)
            if column_M is None or (mirrored and rows == columns):
                row_sum = pairs.mask_(logits, rows, columns, kind).logsumexp(1)
            else:
                span = (low, high) if bound <= _SMALL else _span(logits)
                low, high = min(low, span[0]), max(high, span[1])
                row_sum, column_sum = _both_sums(pairs.mask_(logits, rows, columns, kind), *span)
                column_M[columns] = torch.logaddexp(column_M[columns], column_sum)
            row_N[rows] = torch.logaddexp(row_N[rows], row_sum)
        ctx.save_for_backward(query_ND, key_MD, scale, row_N, column_M, *logits_of.kept)
        ctx.arguments = pairs, kind, mirrored, tile, low, high
        return row_N, column_M if both else None

    @staticmethod
    def backward(ctx: Any, grad_row_N: Tensor, grad_column_M: Tensor | None) -> tuple[Tensor | None, ...]:
        query_ND, key_MD, scale, row_N, column_M, *first_tiles = ctx.saved_tensors
        pairs, kind, mirrored, tile, low, high = ctx.arguments
        if torch.is_grad_enabled():
            function = partial(_sums_of_recomputed_tiles, pairs, tile, kind, grad_column_M is not None)
            inputs, grads = (query_ND, key_MD, scale), (grad_row_N, grad_column_M)
            found = gradients(function, inputs, grads, ctx.needs_input_grad[:3])
            return *found, None, None, None, None, None
        if mirrored:
            grad_column_M = grad_row_N
        # All logits of an empty sum are -inf. Minus +inf, their exponential is 0; minus -inf, it would be NaN.
        row_N = row_N.masked_fill(row_N == -torch.inf, torch.inf)
        column_M = None if column_M is None else column_M.masked_fill(column_M == -torch.inf, torch.inf)
        with torch.autocast(query_ND.device.type, enabled=False):
            gradient = RowGradients(query_ND, key_MD, scale, mirrored, ctx.needs_input_grad[:3])
            logits_of = TileLogits(query_ND, key_MD, float(scale), tile, known=first_tiles)
            for rows, columns in pairs.tiles(tile, kind, mirrored=mirrored):
                logits = pairs.mask_(logits_of(rows, columns), rows, columns, kind)
                if column_M is None or grad_column_M is None or (mirrored and rows == columns):
                    grad = _softmax(logits, row_N[rows, None]).mul_(grad_row_N[rows, None])
                else:
                    row, column = (row_N[rows], grad_row_N[rows]), (column_M[columns], grad_column_M[columns])
                    grad = _both_gradients(logits, row, column, low, high)
                gradient.add(grad, rows, columns)
            return *gradient.result(), None, None, None, None, None


def _span(logits: Tensor) -> tuple[float, float]:
    low, high = (bound.item() for bound in logits.aminmax())
    return low, high


def _center(low: float, high: float) -> float:
    """Returns the center to subtract before a common exponential; 0 if the logits are small, which saves the subtraction."""
    return 0.0 if low >= -_SMALL and high <= _SMALL else (low + high) / 2


def _one_exp_is_safe(logits: Tensor, low: float, high: float) -> bool:
    return high - low <= _ONE_EXP_SPAN[logits.dtype]


def _both_sums(logits: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of a tile's rows and columns, from a single exponential if the span allows it; overwrites the logits."""
    if not _one_exp_is_safe(logits, low, high):
        return logits.logsumexp(1), logits.logsumexp(0)
    center = _center(low, high)
    exp = (logits.sub_(center) if center else logits).exp_()
    ones_N, ones_M = (exp.new_ones(size) for size in exp.shape)  # matrix products are faster than sums
    return (exp @ ones_M).log_().add_(center), (ones_N @ exp).log_().add_(center)


def _both_gradients(
    logits: Tensor, row: tuple[Tensor, Tensor], column: tuple[Tensor, Tensor], low: float, high: float
) -> Tensor:
    """Gradient of a tile's logits from the log-sum-exps of rows and columns and their gradients; overwrites the logits."""
    (row_sum, grad_row), (column_sum, grad_column) = row, column
    if not _one_exp_is_safe(logits, low, high):
        by_row = _softmax(logits.clone(), row_sum[:, None]).mul_(grad_row[:, None])
        return by_row.add_(_softmax(logits, column_sum).mul_(grad_column))
    center = _center(low, high)
    row_weight = grad_row * (center - row_sum).exp()
    column_weight = grad_column * (center - column_sum).exp()
    for strip, weight in zip(logits.split(STRIP), row_weight.split(STRIP), strict=True):
        (strip.sub_(center) if center else strip).exp_().mul_(weight[:, None] + column_weight)
    return logits


def _softmax(logits: Tensor, log_sum: Tensor) -> Tensor:
    """Softmax from a known log-sum-exp, in place."""
    return logits.sub_(log_sum).exp_()
