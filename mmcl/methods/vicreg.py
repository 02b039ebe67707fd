"""VICReg (Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import nn

from mmcl.core.decorrelation import vicreg_loss
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, LossOutput


class VICReg(Method):
    """Match two views while every dimension keeps its variance and no two are correlated (equation 6 of the paper).

    Variances and covariances are computed over the global batch.

    Args:
        towers: "image", with a wide head (8192 in the paper).
        invariance, variance, covariance: weights of the three terms.
    """

    views: Mapping[str, Literal["image", "text"]] = {"a": "image", "b": "image"}
    embedding: ClassVar[Literal["projection", "features"]] = "features"
    unit_rows: ClassVar[bool] = False

    def __init__(self, towers: nn.ModuleDict, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0):
        super().__init__(towers)
        self.weights = {"invariance": invariance, "variance": variance, "covariance": covariance}

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        return LossOutput(embeddings.share * vicreg_loss(embeddings.all["a"], embeddings.all["b"], **self.weights))
