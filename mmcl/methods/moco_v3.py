"""MoCo v3 (Chen, Xie, He, "An Empirical Study of Training Self-Supervised Vision Transformers", 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmcl.core.info_nce import info_nce
from mmcl.encoders.heads import FinalLayer
from mmcl.methods.byol import BYOL
from mmcl.types import Batch, Embeddings, LossFacts, LossOutput


class MoCoV3(BYOL):
    """Match BYOL's predictions to the teacher's embeddings of the other views in the global batch with InfoNCE.

    The loss is the sum over both directions, multiplied by 2 T (algorithm 1 of the paper). The initial loss is about
    4 T ln B.

    Args:
        towers: "image".
        temperature: T, fixed; the paper uses 0.2 for transformers and 1.0 for ResNets.
        predictor_dim: hidden width of the predictor.
        momentum: initial momentum of the teacher; rises to 1 over the run.
    """

    predictor_final: ClassVar[FinalLayer] = "fixed_norm"
    init_args: ClassVar[tuple[str, ...]] = ("temperature",)
    test_args: ClassVar[Mapping[str, Any]] = {"predictor_dim": 12, "momentum": 0.9}

    def __init__(self, towers: nn.ModuleDict, *, temperature: float = 0.2, predictor_dim: int = 4096, momentum: float = 0.99):
        super().__init__(towers, predictor_dim=predictor_dim, momentum=momentum)
        self.temperature = temperature

    @property
    def logit_scale(self) -> Tensor:
        return torch.tensor(1 / self.temperature)

    def describe(self, global_batch: int) -> LossFacts:
        return LossFacts(first_loss=4 * self.temperature * math.log(global_batch), negatives=global_batch - 1)

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        total = self._direction(embeddings, "a", "teacher_b") + self._direction(embeddings, "b", "teacher_a")
        return LossOutput(2 * self.temperature * total / len(embeddings.all_ids))

    def _direction(self, embeddings: Embeddings, query: str, key: str) -> Tensor:
        return info_nce(
            embeddings.local[query],
            embeddings.all[key].detach(),
            query_id_N=embeddings.ids,
            key_id_M=embeddings.all_ids,
            scale=1 / self.temperature,
            reduction="sum",
        )
