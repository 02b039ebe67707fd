"""The pairwise sigmoid loss of SigLIP, keyed by ids and tiled: memory O((N + M) D) plus one tile."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from mmcl.core.pairs import Pairs, Tile, check_rows, choose_tile, statistics_dtype


def sigmoid_loss(
    image_ND: Tensor,
    text_MD: Tensor,
    *,
    image_id_N: Tensor,
    text_id_M: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    reduction: Literal["mean", "sum"] = "mean",
    tile: Tile | None = None,
) -> Tensor:
    r"""Judges every pair by itself: does this text belong to this image?

    With $z_{ij} = 1$ for equal ids and $-1$ for others (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023,
    section 3.2):

    $$\ell = -\sum_{ij} \log \sigma\big(z_{ij} (\mathrm{scale} \cdot q_i^\top k_j + \mathrm{bias})\big)$$

    An image may have several texts, and a text several images. No softmax couples the pairs, so sums over parts of the images
    add up to the whole.

    Logits, loss, scale and bias are float32 (float64 for float64 inputs) whatever the autocast type.

    Args:
        image_ND, text_MD: unit-length rows, any floating type.
        image_id_N, text_id_M: int64 ids; equal ids are positives.
        scale: inverse temperature, positive, a number or a scalar tensor (with gradient, if it is learned).
        bias: added to every logit, a number or a scalar tensor; -log(B - 1) gives each pair its prior in a batch of B pairs.
        reduction: "mean" divides the sum by the number of images N, as the paper does.
        tile: images and texts compared at once; by default chosen from the shapes.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes do not fit, or there is no such reduction.
    """
    check_rows(image_ND, text_MD, image_id_N, text_id_M)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', not {reduction!r}")
    pairs = Pairs.from_ids(image_id_N, text_id_M)
    dtype = statistics_dtype(image_ND, text_MD)
    tile = tile or choose_tile(*pairs.shape)
    with torch.autocast(image_ND.device.type, enabled=False):
        query_ND, key_MD = scale * image_ND.to(dtype), text_MD.to(dtype)
        bias = torch.as_tensor(bias, dtype=dtype, device=query_ND.device)
        if tile is not None:
            total = _TiledSigmoid.apply(query_ND, key_MD, bias, pairs, tile, torch.is_grad_enabled())
        else:
            everything = slice(0, len(query_ND)), slice(0, len(key_MD))
            total = -logsigmoid(_flip(query_ND @ key_MD.T + bias, _equal_id(pairs, *everything))).sum()
        return total / max(len(image_ND), 1) if reduction == "mean" else total


class _TiledSigmoid(torch.autograd.Function):
    """A plain sum: its gradient needs nothing that only the end of the forward pass knows, so it is computed on the way.

    A tile is visited once, for 3 matrix products in all, and what is saved for the backward pass is the gradient itself.
    """

    @staticmethod
    def forward(
        ctx: Any, query_ND: Tensor, key_MD: Tensor, bias: Tensor, pairs: Pairs, tile: Tile, with_gradient: bool
    ) -> Tensor:
        loss_N = query_ND.new_zeros(len(query_ND))
        gradient = _Gradient(query_ND, key_MD) if with_gradient else None
        for rows, columns in pairs.tiles(tile):
            equal_id = _equal_id(pairs, rows, columns)
            logits = _flip(query_ND[rows] @ key_MD[columns].T + bias, equal_id)
            loss_N[rows] -= logsigmoid(logits).sum(1)
            if gradient is not None:
                # d(-log sigmoid(x)) / dx = -sigmoid(-x), and once more the sign of the pair.
                gradient.add(_flip(logits.neg_().sigmoid_().neg_(), equal_id), rows, columns)
        if gradient is not None:
            ctx.save_for_backward(gradient.query_ND, gradient.key_MD, gradient.logit_N.sum())
        return loss_N.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query_ND, key_MD, bias = (
            grad * saved if needed else None for saved, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        )
        return query_ND, key_MD, bias, None, None, None


class _Gradient:
    """Sums the gradients of tiles of logits into those of the rows, and per query for the bias."""

    def __init__(self, query_ND: Tensor, key_MD: Tensor):
        self.inputs = query_ND, key_MD
        self.query_ND, self.key_MD = torch.zeros_like(query_ND), torch.zeros_like(key_MD)
        self.logit_N = query_ND.new_zeros(len(query_ND))

    def add(self, grad_logits: Tensor, rows: slice, columns: slice) -> None:
        query_ND, key_MD = self.inputs
        self.query_ND[rows].addmm_(grad_logits, key_MD[columns])
        self.key_MD[columns].addmm_(grad_logits.T, query_ND[rows])
        self.logit_N[rows] += grad_logits.sum(1)


def _equal_id(pairs: Pairs, rows: slice, columns: slice) -> Tensor | None:
    """The mask of a tile's positives; None in the many tiles that have none."""
    return pairs.equal_id(rows, columns) if pairs.any_equal_id(rows, columns) else None


def _flip(logits: Tensor, equal_id: Tensor | None) -> Tensor:
    """Logits times the signs of their pairs: an exact change of sign, where a difference of softplus terms would cancel."""
    return -logits if equal_id is None else torch.where(equal_id, logits, -logits)
