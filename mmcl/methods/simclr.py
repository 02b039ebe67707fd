"""SimCLR (Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmcl.core.info_nce import info_nce
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, LossOutput


class SimCLR(Method):
    """Two augmented views of every picture, each the other's positive among all 2B rows: NT-Xent (equation 1 of the paper).

    What is evaluated and exported are the features before the projection head (section 4.2). The first loss of an untrained
    model is at most about ln(2B - 1).

    Args:
        towers: "image".
        temperature: fixed; the paper's 0.1 for ImageNet, 0.5 for CIFAR-10.
    """

    views: ClassVar[Mapping[str, Literal["image", "text"]]] = {"a": "image", "b": "image"}
    embedding: ClassVar[Literal["projection", "features"]] = "features"

    def __init__(self, towers: nn.ModuleDict, *, temperature: float = 0.1):
        super().__init__(towers)
        self.temperature = temperature

    @property
    def logit_scale(self) -> Tensor:
        return torch.tensor(1 / self.temperature)

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        rows_all = len(embeddings.all_ids)
        row = torch.arange(rows_all, device=embeddings.ids.device)
        local_row = row[embeddings.offset : embeddings.offset + len(embeddings.ids)]
        total = info_nce(
            torch.cat([embeddings.local["a"], embeddings.local["b"]]),
            torch.cat([embeddings.all["a"], embeddings.all["b"]]),
            query_id_N=embeddings.ids.repeat(2),
            key_id_M=embeddings.all_ids.repeat(2),
            scale=1 / self.temperature,
            query_row_N=torch.cat([local_row, local_row + rows_all]),
            key_row_M=torch.arange(2 * rows_all, device=row.device),
            reduction="sum",
        )
        return LossOutput(total / (2 * rows_all))
