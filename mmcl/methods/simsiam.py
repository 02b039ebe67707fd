"""SimSiam (Chen & He, "Exploring Simple Siamese Representation Learning", 2021)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from mmcl.core.precision import unit_rows
from mmcl.core.regression import cosine_regression
from mmcl.encoders.heads import MLPHead
from mmcl.methods.byol import predict
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, LossFacts, LossOutput, Views


class SimSiam(Method):
    """Predict each view's projection from the other with a stop-gradient; BYOL without a teacher (equation 2).

    The loss is the paper's plus 1, so its minimum is 0 and the initial loss is about 1.

    Args:
        towers: "image".
        predictor_dim: hidden width of the predictor; the default is a quarter of the projection's width of 2048 in the paper.
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

    @property
    def embedded_views(self) -> Collection[str]:
        return ()  # its rows are predictions

    def encode(self, views: Views) -> dict[str, Tensor]:
        """Return the predictions for each view, and their target projections as "target_a" and "target_b"."""
        projections = self.embed(self.towers, views, unit=False)
        targets = {f"target_{name}": unit_rows(row.detach()) for name, row in projections.items()}
        return predict(self.predictor, projections) | targets

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        local = embeddings.local
        total = cosine_regression(local["a"], local["target_b"]) + cosine_regression(local["b"], local["target_a"])
        return LossOutput(total / (4 * len(embeddings.all_ids)))
