"""Log-sum-exp over pairs of rows: the denominator of every softmax contrast, in memory O((N + M) D) plus one tile.

Logits exist only for one tile at a time. The forward pass keeps their log-sum-exps, and the backward pass recomputes each tile.
This costs one more matrix product, but no N x M matrix is ever stored (like Dao et al., "FlashAttention", 2022, for attention).
The first tiles are stored instead of recomputed, as many as fit into the memory of the rows.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmcl.core.dense import log_sum_exp
from mmcl.core.higher_derivatives import gradients
from mmcl.core.tiled.pairs import Facts, PairKind, Pairs
from mmcl.core.tiled.tiles import RowGradients, TileLogits, recomputed_tiles, strips

# The widest span of logits that may share one exponential around a common center, and how far the highest may be above it.
# Within it, nothing overflows or becomes subnormal, including sums of 2^20 terms and their reciprocals.
_ONE_EXP_SPAN = {torch.float32: (150.0, 70.0), torch.float64: (1000.0, 500.0)}
# Logits within plus or minus this need no center for the same reason.
_SMALL = 70.0


def pair_log_sum_exp(
    query_ND: Tensor,
    key_MD: Tensor,
    pairs: Pairs,
    *,
    scale: Tensor,
    facts: Facts | None,
    power: float = 1.0,
    kind: PairKind = "all",
    both: bool = False,
) -> tuple[Tensor, Tensor | None]:
    r"""$\log \sum_j e^{p \cdot \mathrm{scale} \cdot q_i^\top k_j}$ of every query over its keys of one kind; with
    `both`, also of every key over its queries.

    Both come from the same products: 4 of them, forward and backward, where two calls take 8. A sum of no pairs is minus
    infinity, with zero gradient.

    Args:
        query_ND, key_MD: rows of one type, float32 or float64.
        pairs: positive pairs, self pairs and tiles. With mirrored tiles, every product of two rows is computed once and used
            for both, which halves the work. Not together with `both`, which would return the same sums twice.
        scale: inverse temperature, not 0, a scalar tensor (with a gradient if it is learned).
        facts: those of the pairs, these rows and this scale; None in a transformed function, which reads nothing.
        power: p, a factor of the scale.
        kind: the pairs that are summed; self pairs never are.
        both: also return the sums over the queries.

    Returns:
        [N], and [M] or None.
    """
    with torch.autocast(query_ND.device.type, enabled=False):
        scale = power * scale
        if facts is None:
            by_row, *by_column = _sums_of_recomputed_tiles(pairs, kind, both, query_ND, key_MD, scale)
            return by_row, by_column[0] if both else None
        sums: tuple[Tensor, Tensor | None]
        sums = _TiledLogSumExp.apply(query_ND, key_MD, scale, pairs, facts, power * facts.scale, kind, both)
        return sums


def _sums(
    kind: PairKind, both: bool, pairs: Pairs, tile: tuple[slice, slice], query_ND: Tensor, key_MD: Tensor, scale: Tensor | float
) -> tuple[Tensor, ...]:
    """Log-sum-exps of one tile in plain autograd."""
    logits_NM, excluded = (scale * query_ND) @ key_MD.T, pairs.excluded(*tile, kind)
    if excluded is not None:
        logits_NM = logits_NM.masked_fill(excluded, -torch.inf)
    return tuple(log_sum_exp(logits_NM, dim) for dim in ((1, 0) if both else (1,)))


def _sums_of_recomputed_tiles(
    pairs: Pairs, kind: PairKind, both: bool, query_ND: Tensor, key_MD: Tensor, scale: Tensor
) -> tuple[Tensor, ...]:
    """Log-sum-exps of all tiles in plain autograd, without storing the tiles."""
    pairs = replace(pairs, mirrored=False)  # the columns of mirrored tiles have no sums of their own
    sides: list[list[tuple[Tensor, list[Tensor]]]] = [
        [(rows, []) for rows in side.split(size)] for side, size in zip((query_ND, key_MD), pairs.tile, strict=True)
    ]
    for numbers, sums in recomputed_tiles(partial(_sums, kind, both), pairs, query_ND, key_MD, scale):
        for side, number, part in zip(sides, numbers, sums, strict=False):
            side[number][1].append(part)
    return tuple(torch.cat([_joined(rows, parts) for rows, parts in side]) for side in sides[: 1 + both])


def _joined(rows_ND: Tensor, parts: list[Tensor]) -> Tensor:
    """Combines the log-sum-exps of the same rows in several tiles; minus infinity if there are no tiles."""
    return log_sum_exp(torch.stack(parts), 0) if parts else rows_ND.new_full(rows_ND.shape[:1], -torch.inf)


class _TiledLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_ND: Tensor,
        key_MD: Tensor,
        scale: Tensor,
        pairs: Pairs,
        facts: Facts,
        known_scale: float,
        kind: PairKind,
        both: bool,
    ) -> tuple[Tensor, Tensor | None]:
        row_N = query_ND.new_full(query_ND.shape[:1], -torch.inf)
        # Mirrored, the column of a row is the row itself: a tile above the diagonal adds to both.
        column_M = row_N if pairs.mirrored else key_MD.new_full(key_MD.shape[:1], -torch.inf) if both else None
        logits_of = TileLogits(query_ND, key_MD, known_scale, pairs.tile, keep=any(ctx.needs_input_grad))
        spans = _Spans(query_ND.dtype, bound=abs(known_scale) * facts.reach)
        for rows, columns in pairs.tiles(kind, facts):
            logits = logits_of(rows, columns)
            if column_M is None or (pairs.mirrored and rows == columns):
                row_sum = _mask(pairs, logits, rows, columns, kind, facts).logsumexp(1)
            else:
                center, is_safe = spans.center(logits, (rows, columns))
                row_sum, column_sum = _both_sums(_mask(pairs, logits, rows, columns, kind, facts), center)
                if is_safe is not None:
                    row_sum, column_sum = (x.masked_fill_(~is_safe, -torch.inf) for x in (row_sum, column_sum))
                column_M[columns] = torch.logaddexp(column_M[columns], column_sum)
            row_N[rows] = torch.logaddexp(row_N[rows], row_sum)
        for rows, columns in spans.too_wide():
            assert column_M is not None
            logits = _mask(pairs, logits_of.product(rows, columns), rows, columns, kind, facts)
            column_M[columns] = torch.logaddexp(column_M[columns], logits.logsumexp(0))
            row_N[rows] = torch.logaddexp(row_N[rows], logits.logsumexp(1))
        ctx.save_for_backward(query_ND, key_MD, scale, row_N, column_M, *logits_of.kept)
        ctx.arguments = pairs, facts, known_scale, kind, spans.center_of_all()
        return row_N, column_M if both else None

    @staticmethod
    def backward(ctx: Any, grad_row_N: Tensor, grad_column_M: Tensor | None) -> tuple[Tensor | None, ...]:
        query_ND, key_MD, scale, row_N, column_M, *first_tiles = ctx.saved_tensors
        pairs, facts, known_scale, kind, center = ctx.arguments
        if torch.is_grad_enabled():
            function = partial(_sums_of_recomputed_tiles, pairs, kind, grad_column_M is not None)
            inputs, grads = (query_ND, key_MD, scale), (grad_row_N, grad_column_M)
            found = gradients(function, inputs, grads, ctx.needs_input_grad[:3])
            return *found, None, None, None, None, None
        if pairs.mirrored:
            grad_column_M = grad_row_N
        # All logits of an empty sum are -inf. Minus +inf, their exponential is 0; minus -inf, it would be NaN.
        row_N = row_N.masked_fill(row_N == -torch.inf, torch.inf)
        column_M = None if column_M is None else column_M.masked_fill(column_M == -torch.inf, torch.inf)
        with torch.autocast(query_ND.device.type, enabled=False):
            gradient = RowGradients(query_ND, key_MD, known_scale, pairs.mirrored, ctx.needs_input_grad[:3])
            logits_of = TileLogits(query_ND, key_MD, known_scale, pairs.tile, known=first_tiles)
            for rows, columns in pairs.tiles(kind, facts):
                logits = _mask(pairs, logits_of(rows, columns), rows, columns, kind, facts)
                if column_M is None or grad_column_M is None or (pairs.mirrored and rows == columns):
                    grad = _softmax(logits, row_N[rows, None]).mul_(grad_row_N[rows, None])
                else:
                    row, column = (row_N[rows], grad_row_N[rows]), (column_M[columns], grad_column_M[columns])
                    grad = _both_gradients(logits, row, column, center)
                gradient.add(grad, rows, columns)
            return *gradient.result(), None, None, None, None, None


class _Spans:
    """Centers around which a single exponential gives the sums of a tile's rows and columns.

    The span of a tile's logits stays on the device until all tiles are done; those that were too wide are then named.

    Args:
        dtype: of the logits.
        bound: largest absolute value that a logit can have. If it is small enough, nothing is looked at.
    """

    def __init__(self, dtype: torch.dtype, *, bound: float):
        (self.widest, self.highest), self.is_small = _ONE_EXP_SPAN[dtype], bound <= _SMALL
        self.tiles: list[tuple[slice, slice]] = []
        self.bounds: list[Tensor] = []
        self.known: list[list[float]] = []

    def center(self, logits: Tensor, tile: tuple[slice, slice]) -> tuple[Tensor | None, Tensor | None]:
        """Return the center of a tile and whether it serves, both on the device; None if the logits need none."""
        if self.is_small:
            return None, None
        low, high = logits.aminmax()
        self.tiles.append(tile)
        self.bounds.append(torch.stack([low, high]))
        return torch.maximum((low + high) / 2, high - self.highest), high - low <= self.widest

    def too_wide(self) -> list[tuple[slice, slice]]:
        """Return the tiles whose center did not serve. Waits for the device once, if tiles were looked at."""
        self.known = torch.stack(self.bounds).tolist() if self.bounds else []
        return [tile for tile, (low, high) in zip(self.tiles, self.known, strict=True) if not high - low <= self.widest]

    def center_of_all(self) -> float | None:
        """Return a center that serves all tiles, 0 if they need none; None if there is none."""
        if not self.known:
            return 0.0
        low, high = min(low for low, _ in self.known), max(high for _, high in self.known)
        return max((low + high) / 2, high - self.highest) if high - low <= self.widest else None


def _mask(pairs: Pairs, logits: Tensor, rows: slice, columns: slice, kind: PairKind, facts: Facts) -> Tensor:
    """Sets the logits of a tile to minus infinity, in place, except for pairs of the given kind."""
    excluded = pairs.excluded(rows, columns, kind, facts)
    return logits if excluded is None else logits.masked_fill_(excluded, -torch.inf)


def _both_sums(logits: Tensor, center: Tensor | None) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of a tile's rows and columns, from a single exponential around a center; overwrites the logits."""
    exp = (logits if center is None else logits.sub_(center)).exp_()
    ones_N, ones_M = (exp.new_ones(size) for size in exp.shape)  # matrix products are faster than sums
    sums = (exp @ ones_M).log_(), (ones_N @ exp).log_()
    return sums if center is None else (sums[0].add_(center), sums[1].add_(center))


def _both_gradients(logits: Tensor, row: tuple[Tensor, Tensor], column: tuple[Tensor, Tensor], center: float | None) -> Tensor:
    """Gradient of a tile's logits from the log-sum-exps of rows and columns and their gradients; overwrites the logits."""
    (row_sum, grad_row), (column_sum, grad_column) = row, column
    if center is None:
        by_row = _softmax(logits.clone(), row_sum[:, None]).mul_(grad_row[:, None])
        return by_row.add_(_softmax(logits, column_sum).mul_(grad_column))
    row_weight = grad_row * (center - row_sum).exp()
    column_weight = grad_column * (center - column_sum).exp()
    for strip, weight in zip(strips(logits), strips(row_weight), strict=True):
        (strip.sub_(center) if center else strip).exp_().mul_(weight[:, None] + column_weight)
    return logits


def _softmax(logits: Tensor, log_sum: Tensor) -> Tensor:
    """Softmax from a known log-sum-exp, in place."""
    return logits.sub_(log_sum).exp_()
