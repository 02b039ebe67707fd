"""SimCLR (Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmcl.core.info_nce import info_nce
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, LossFacts, LossOutput


class SimCLR(Method):
    """Two augmented views of every picture, each the other's positive among all 2B rows: NT-Xent (equation 1 of the paper).

    What is evaluated and exported are the features before the projection head (section 4.2). The first loss of an untrained
    model is at most about ln(2B - 1).

    Args:
        towers: "image".
        temperature: fixed; the paper's 0.1 for ImageNet, 0.5 for CIFAR-10.
    """

    views: Mapping[str, Literal["image", "text"]] = {"a": "image", "b": "image"}
    embedding: ClassVar[Literal["projection", "features"]] = "features"

    def __init__(self, towers: nn.ModuleDict, *, temperature: float = 0.1):
        super().__init__(towers)
        self.temperature = temperature

    @property
    def logit_scale(self) -> Tensor:
        return torch.tensor(1 / self.temperature)

    def describe(self, global_batch: int) -> LossFacts:
        return LossFacts(first_loss=math.log(max(2 * global_batch - 1, 1)), negatives=2 * global_batch - 2)

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        rows_all = len(embeddings.all_ids)
        row = torch.arange(2 * rows_all, device=embeddings.ids.device)
        keys = (torch.cat([embeddings.all["a"], embeddings.all["b"]]), embeddings.all_ids.repeat(2), row)
        if len(embeddings.ids) == rows_all:
            queries = keys
        else:
            local_row = row[embeddings.offset : embeddings.offset + len(embeddings.ids)]
            queries = (
                torch.cat([embeddings.local["a"], embeddings.local["b"]]),
                embeddings.ids.repeat(2),
                torch.cat([local_row, local_row + rows_all]),
            )
        total = info_nce(
            queries[0],
            keys[0],
            query_id_N=queries[1],
            key_id_M=keys[1],
            query_row_N=queries[2],
            key_row_M=keys[2],
            scale=1 / self.temperature,
            reduction="sum",
        )
        return LossOutput(total / (2 * rows_all))
