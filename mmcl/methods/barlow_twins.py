"""Barlow Twins (Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import nn

from mmcl.core.decorrelation import barlow_twins_loss
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, LossOutput


class BarlowTwins(Method):
    """Push the cross-correlation matrix of two views over the global batch towards the identity (equation 1 of the paper).

    Args:
        towers: "image", with a wide head (8192 in the paper, 2048 for CIFAR-10).
        off_diagonal: weight of the off-diagonal terms.
        scale: factor applied to the whole loss; 1 in the paper, 0.1 for CIFAR-10.
    """

    views: Mapping[str, Literal["image", "text"]] = {"a": "image", "b": "image"}
    embedding: ClassVar[Literal["projection", "features"]] = "features"
    unit_rows: ClassVar[bool] = False

    def __init__(self, towers: nn.ModuleDict, *, off_diagonal: float = 0.0051, scale: float = 1.0):
        super().__init__(towers)
        self.off_diagonal, self.scale = off_diagonal, scale

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        loss = barlow_twins_loss(embeddings.all["a"], embeddings.all["b"], off_diagonal=self.off_diagonal)
        return LossOutput(embeddings.share * self.scale * loss)
