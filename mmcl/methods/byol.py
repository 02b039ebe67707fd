"""BYOL (Grill et al., "Bootstrap Your Own Latent", 2020)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mmcl.core.ema import MomentumTeacher
from mmcl.core.precision import unit_rows
from mmcl.core.regression import cosine_regression
from mmcl.encoders.heads import FinalLayer, MLPHead
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, LossFacts, LossOutput, RunFacts, Views


class BYOL(Method):
    """Predict a momentum teacher's embedding of one view from the other, without negatives (equation 2, symmetrised).

    The teacher's momentum rises from its initial value to 1 over the run (section 3.3). The initial loss is about 4. A loss
    near 0 from the first steps means that the embeddings have collapsed to a single vector.

    Args:
        towers: "image".
        predictor_dim: hidden width of the predictor (linear, batch norm, ReLU, linear).
        momentum: initial momentum of the teacher; the paper uses 0.996 for 1000 epochs, 0.99 for 300 and 0.97 for 40.
    """

    views: Mapping[str, Literal["image", "text"]] = {"a": "image", "b": "image"}
    embedding: ClassVar[Literal["projection", "features"]] = "features"
    predictor_final: ClassVar[FinalLayer] = "plain"
    test_args: ClassVar[Mapping[str, Any]] = {"predictor_dim": 12, "momentum": 0.9}

    def __init__(self, towers: nn.ModuleDict, *, predictor_dim: int = 4096, momentum: float = 0.996):
        super().__init__(towers)
        width = self.tower("a").embed_dim
        self.predictor = MLPHead(width, hidden_dim=predictor_dim, embed_dim=width, final=self.predictor_final)
        self.teacher = MomentumTeacher(self.towers, momentum=momentum, cosine=True)

    def configure(self, facts: RunFacts) -> None:
        self.teacher.total_steps = facts.total_steps

    def describe(self, global_batch: int) -> LossFacts:
        return LossFacts(first_loss=4.0)

    @property
    def embedded_views(self) -> Collection[str]:
        return ()  # its rows are predictions

    def encode(self, views: Views) -> dict[str, Tensor]:
        """Return the predictions for each view, and the teacher's embeddings as "teacher_a" and "teacher_b"."""
        rows = predict(self.predictor, self.embed(self.towers, views, unit=False))
        return rows | teacher_rows(self, self.teacher, views)

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        local = embeddings.local
        total = cosine_regression(local["a"], local["teacher_b"]) + cosine_regression(local["b"], local["teacher_a"])
        return LossOutput(total / len(embeddings.all_ids))

    def commit(self, embeddings: Embeddings, batch: Batch) -> None:
        self.teacher.update(self.towers)


def predict(predictor: nn.Module, projections: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the predictor's unit-length output for each view, computed in one pass."""
    predictions = unit_rows(predictor(torch.cat(list(projections.values()))))
    return dict(zip(projections, predictions.chunk(len(projections)), strict=True))


@torch.no_grad()
def teacher_rows(method: Method, teacher: MomentumTeacher, views: Views) -> dict[str, Tensor]:
    """Return the teacher's embeddings of the views; each key is the view's name prefixed with "teacher_"."""
    assert isinstance(teacher.net, nn.ModuleDict)
    return {f"teacher_{name}": row for name, row in method.embed(teacher.net, views).items()}
