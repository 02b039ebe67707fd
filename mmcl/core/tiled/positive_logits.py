"""Sums of logits over the positives of each query, in little more than O((N + M) D) memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmcl.core.higher_derivatives import gradients, is_transformed
from mmcl.core.tiled.pairs import Pairs

# By linearity, the sum of a query's logits with its positives is its logit with their sum. On a CPU, the sums of all queries
# are computed a few columns at a time, about this many numbers.
_NUMBERS = 2**19


def positive_dot_sum(query_ND: Tensor, key_MD: Tensor, pairs: Pairs, *, in_order: bool = False) -> Tensor:
    r"""$\sum_{p \in P(i)} q_i^\top k_p$ for every query, over its positives other than itself; 0 without positives.

    Args:
        query_ND, key_MD: rows of one type, float32 or float64.
        pairs: positive pairs and self pairs.
        in_order: see `mmcl.core.tiled.pairs.Facts`; saves the sums.

    Returns:
        [N].
    """
    if is_transformed():
        return _in_one_piece(pairs, query_ND, key_MD)[0]
    sum_N: Tensor = _PositiveDotSum.apply(query_ND, key_MD, pairs, in_order)
    return sum_N


class _PositiveDotSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_ND: Tensor, key_MD: Tensor, pairs: Pairs, in_order: bool) -> Tensor:
        ctx.save_for_backward(query_ND, key_MD)
        ctx.arguments = pairs, in_order
        sum_N = query_ND.new_zeros(len(query_ND))
        for part in _columns(query_ND):
            sum_N += (query_ND[:, part] * pairs.positive_key_sum(key_MD[:, part], in_order=in_order)).sum(1)
        return sum_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        query_ND, key_MD = ctx.saved_tensors
        pairs, in_order = ctx.arguments
        if torch.is_grad_enabled():
            inputs, needed = (query_ND, key_MD), ctx.needs_input_grad[:2]
            return *gradients(partial(_in_one_piece, pairs), inputs, (grad_N,), needed), None, None
        grad_query_ND, grad_key_MD = (
            torch.empty_like(rows) if needed else None
            for rows, needed in zip((query_ND, key_MD), ctx.needs_input_grad, strict=False)
        )
        for part in _columns(query_ND):
            if grad_query_ND is not None:
                sum_ND = pairs.positive_key_sum(key_MD[:, part], in_order=in_order)
                torch.mul(grad_N[:, None], sum_ND, out=grad_query_ND[:, part])
            if grad_key_MD is not None:
                grad_key_MD[:, part] = pairs.positive_query_sum(grad_N[:, None] * query_ND[:, part], in_order=in_order)
        return grad_query_ND, grad_key_MD, None, None


def _in_one_piece(pairs: Pairs, query_ND: Tensor, key_MD: Tensor) -> tuple[Tensor]:
    return ((query_ND * pairs.positive_key_sum(key_MD)).sum(1),)


def _columns(rows_ND: Tensor) -> Iterator[slice]:
    width = max(32, _NUMBERS // max(len(rows_ND), 1)) if rows_ND.device.type == "cpu" else max(rows_ND.shape[1], 1)
    return (slice(start, start + width) for start in range(0, rows_ND.shape[1], width))
