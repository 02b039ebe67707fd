"""The pairwise sigmoid loss of SigLIP, keyed by ids and tiled: memory O((N + M) D) plus one tile."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmcl.core.dense import scaled_products
from mmcl.core.higher_derivatives import gradients, is_transformed
from mmcl.core.precision import as_scalar, in_float32
from mmcl.core.tiled.pairs import Facts, Pairs, TileShape, check_rows, choose_tile
from mmcl.core.tiled.tiles import RowGradients, TileLogits, recomputed_tiles, strips

# Largest logit whose exponential is computed directly: e^80 is far below the limit of float32.
_HIGHEST = 80.0


@in_float32
def sigmoid_loss(
    image_ND: Tensor,
    text_MD: Tensor,
    *,
    image_id_N: Tensor,
    text_id_M: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    reduction: Literal["mean", "sum"] = "mean",
    tile: TileShape | None = None,
) -> Tensor:
    r"""SigLIP loss: classifies every pair of an image and a text independently as matching or not.

    With $z_{ij} = 1$ for equal ids and $-1$ for others (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023,
    section 3.2):

    $$\ell = -\sum_{ij} \log \sigma\big(z_{ij} (\mathrm{scale} \cdot q_i^\top k_j + \mathrm{bias})\big)$$

    An image may have several texts, and a text several images. No softmax couples the pairs, so the sums over parts of the
    images add up to the loss of the whole batch.

    Logits, loss, scale and bias are float32 (float64 for float64 inputs) whatever the autocast type.
    Derivatives of every order are exact, as are the transforms of `torch.func`, in tiles too. `torch.compile` takes up to 2^26
    pairs in one graph, where all of them are in memory at once; beyond that the tiles break the graph.

    Args:
        image_ND, text_MD: unit-length rows, any floating type.
        image_id_N, text_id_M: int64 ids; equal ids are positives.
        scale: inverse temperature, positive, a number or a one-element tensor (with a gradient if it is learned).
        bias: added to every logit, a number or a one-element tensor; -log(B - 1) gives each pair its prior in a
            batch of B pairs.
        reduction: "mean" divides the sum by the number of images N, as the paper does.
        tile: images and texts compared at once; by default chosen from the shapes.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes do not match, scale or bias is out of range, or the reduction is unknown.
    """
    check_rows(image_ND, text_MD, image_id_N, text_id_M)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', not {reduction!r}")
    tile = tile or choose_tile(len(image_ND), len(text_MD), image_ND.device.type)
    scale, bias = as_scalar("scale", scale, image_ND, positive=True), as_scalar("bias", bias, image_ND)
    scale, bias = (torch.as_tensor(value, dtype=image_ND.dtype, device=image_ND.device) for value in (scale, bias))
    pairs = Pairs(image_id_N, text_id_M, tile=tile or (len(image_ND), len(text_MD)))
    if tile is None:
        (total,) = _total(pairs, (slice(None), slice(None)), image_ND, text_MD, scale, bias)
    elif is_transformed():
        (total,) = _total_of_recomputed_tiles(pairs, image_ND, text_MD, scale, bias)
    else:
        facts = pairs.facts(image_ND, text_MD, scale, offset=bias)
        total = _TiledSigmoid.apply(image_ND, text_MD, scale, bias, pairs, facts, torch.is_grad_enabled())
    return total / max(len(image_ND), 1) if reduction == "mean" else total


def _total(
    pairs: Pairs, tile: tuple[slice, slice], image_ND: Tensor, text_MD: Tensor, scale: Tensor, bias: Tensor
) -> tuple[Tensor]:
    """Loss of one tile in plain autograd."""
    logits = scaled_products(image_ND, text_MD, scale) + bias
    return (_softplus(_signs(pairs.equal_id(*tile), logits.dtype) * logits).sum(),)


def _total_of_recomputed_tiles(pairs: Pairs, image_ND: Tensor, text_MD: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor]:
    """Loss of all tiles in plain autograd, without storing the tiles."""
    totals = recomputed_tiles(_total, pairs, image_ND, text_MD, scale, bias)
    return (sum((total for _, (total,) in totals), start=image_ND.new_zeros(())),)


class _TiledSigmoid(torch.autograd.Function):
    """Tiled loss whose gradient is computed in the forward pass, which is possible because the loss is a plain sum.

    Each tile is visited once, with 3 matrix products in all, and the gradient itself is saved for the backward pass. Only
    second derivatives need the rows again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_ND: Tensor,
        key_MD: Tensor,
        scale: Tensor,
        bias: Tensor,
        pairs: Pairs,
        facts: Facts,
        with_gradient: bool,
    ) -> Tensor:
        loss_N = query_ND.new_zeros(len(query_ND))
        grad_bias_N = torch.zeros_like(loss_N)
        *rows_and_scale, bias_needed = ctx.needs_input_grad[:4] if with_gradient else [False] * 4
        gradient = RowGradients(query_ND, key_MD, facts.scale, False, rows_and_scale)
        logits_of = TileLogits(query_ND, key_MD, facts.scale, pairs.tile)
        one_exp = abs(facts.scale) * facts.reach + abs(facts.offset) <= _HIGHEST
        for rows, columns in pairs.tiles():
            logits = logits_of(rows, columns)
            has_equal = pairs.has_equal_ids(rows, columns, facts)
            signs = strips(_signs(pairs.equal_id(rows, columns), logits.dtype)) if has_equal else None
            of_rows = zip(strips(logits), strips(loss_N[rows]), strips(grad_bias_N[rows]), strict=True)
            for number, (strip, loss, grad_bias) in enumerate(of_rows):
                sign = None if signs is None else signs[number]
                loss += _loss_then_gradient_(strip.add_(bias), sign, one_exp).sum(1)
                grad_bias += strip.sum(1)
            if with_gradient:
                gradient.add(logits, rows, columns)
        if with_gradient:
            found = *gradient.result(), grad_bias_N.sum() if bias_needed else None
            ctx.save_for_backward(query_ND, key_MD, scale, bias, *found)
            ctx.pairs = pairs
        return loss_N.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, found = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        if torch.is_grad_enabled():
            function = partial(_total_of_recomputed_tiles, ctx.pairs)
            return *gradients(function, inputs, (grad,), ctx.needs_input_grad[:4]), None, None, None
        return *(None if of_input is None else grad * of_input for of_input in found), None, None, None


def _signs(equal: Tensor, dtype: torch.dtype) -> Tensor:
    """-1 where ids are equal, 1 elsewhere."""
    return 1 - 2 * equal.to(dtype)


def _loss_then_gradient_(logits: Tensor, sign: Tensor | None, one_exp: bool) -> Tensor:
    """Returns log(1 + e^(sign x)) and overwrites the logits with its derivative. The sign is -1 where ids are equal."""
    if sign is None:
        return _softplus_then_sigmoid_(logits, one_exp)
    loss = _softplus_then_sigmoid_(logits.mul_(sign), one_exp)
    logits.mul_(sign)
    return loss


def _softplus_then_sigmoid_(logits: Tensor, one_exp: bool) -> Tensor:
    """Returns log(1 + e^x) and overwrites the logits with its derivative."""
    if not one_exp:
        loss = _softplus(logits)
        logits.sigmoid_()
        return loss
    exp = logits.exp_()
    loss = exp.log1p()
    exp.div_(exp + 1)
    return loss


def _softplus(logits: Tensor) -> Tensor:
    """log(1 + e^x) = -log sigmoid(-x). Above 50 it equals x in float32 and float64."""
    return softplus(logits, threshold=50)
