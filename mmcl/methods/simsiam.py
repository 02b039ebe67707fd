"""SimSiam (Chen & He, "Exploring Simple Siamese Representation Learning", 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from mmcl.core.precision import unit_rows
from mmcl.core.regression import cosine_regression
from mmcl.encoders.heads import MLPHead
from mmcl.methods.byol import predict
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, LossFacts, LossOutput, Views


class SimSiam(Method):
    """BYOL without a teacher: each view predicts the other's projection, through which no gradient flows (equation 2).

    The loss is that of the paper plus 1, so that 0 is the best and the first loss is about 1.

    Args:
        towers: "image".
        predictor_dim: hidden width of the predictor, a quarter of the paper's 2048-wide projection.
    """

    views: Mapping[str, Literal["image", "text"]] = {"a": "image", "b": "image"}
    embedding: ClassVar[Literal["projection", "features"]] = "features"
    test_args: ClassVar[Mapping[str, Any]] = {"predictor_dim": 12}

    def __init__(self, towers: nn.ModuleDict, *, predictor_dim: int = 512):
        super().__init__(towers)
        width = self.tower("a").embed_dim
        self.predictor = MLPHead(width, hidden_dim=predictor_dim, embed_dim=width, final="bias")

    def describe(self, global_batch: int) -> LossFacts:
        return LossFacts(first_loss=1.0)

    def encode(self, views: Views) -> dict[str, Tensor]:
        """The predictions of every view, and the projections that they are compared with as "target_a" and "target_b"."""
        projections = self.embed(self.towers, views, unit=False)
        targets = {f"target_{name}": unit_rows(row.detach()) for name, row in projections.items()}
        return predict(self.predictor, projections) | targets

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        local = embeddings.local
        total = cosine_regression(local["a"], local["target_b"]) + cosine_regression(local["b"], local["target_a"])
        return LossOutput(total / (4 * len(embeddings.all_ids)))
