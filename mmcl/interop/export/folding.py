"""Multiplication of a linear head into the linear layer before it: the same function in one layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmcl.encoders.heads import LinearHead, NoHead
from mmcl.errors import UserError
from mmcl.interop.model import Model


def head_of(model: Model, name: str) -> nn.Module:
    """Returns the head of a tower, as far as it is part of the embedding."""
    head: Any = NoHead(0) if model.embedding == "features" else model.towers[name].head
    assert isinstance(head, nn.Module)
    return head


def fold_head(weights: dict[str, Tensor], places: Sequence[str], head: nn.Module, *, refusal: str) -> bool:
    """Multiplies a head into a projection, in place.

    Args:
        weights: state dict, changed in place.
        places: names of layers, of which the first that exists is the last of the tower: a linear layer, or a matrix that its
            input is multiplied by.
        head: the head.
        refusal: message for a head that cannot be folded.

    Returns:
        Whether there is a head, so that the width of the embeddings may be another.

    Raises:
        UserError: the head is not linear, or the tower does not end with a projection.
    """
    if isinstance(head, NoHead):
        return False
    place = next((place for place in places if place in weights or f"{place}.weight" in weights), None)
    if not isinstance(head, LinearHead) or place is None:
        raise UserError(refusal)
    matrix = head.weight.detach()
    if place in weights:
        weights[place] = weights[place] @ matrix.T
        return True
    for key in (f"{place}.weight", f"{place}.bias"):
        if key in weights:
            weights[key] = matrix @ weights[key]
    return True
