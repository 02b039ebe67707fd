"""SupCon (Khosla et al., "Supervised Contrastive Learning", 2020)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmcl.methods.method import Method
from mmcl.methods.two_views import all_rows, label_ids, local_rows, nt_xent
from mmcl.types import Batch, Embeddings, LossFacts, LossOutput


class SupCon(Method):
    """Extend SimCLR's loss to labeled data: all rows of one class are positives of each other.

    Rows without a label have no positives: they serve as keys but not as queries. The loss is the mean over the labeled rows.

    Args:
        towers: "image".
        temperature: fixed; 0.1 in the paper.
        mean: position of the mean over the positives: "outside" the logarithm (L_out, equation 2, which the paper found
            better) or "inside" it (L_in, equation 3).
    """

    views: Mapping[str, Literal["image", "text"]] = {"a": "image", "b": "image"}
    embedding: ClassVar[Literal["projection", "features"]] = "features"
    positives: ClassVar[Literal["ids", "labels"]] = "labels"
    init_args: ClassVar[tuple[str, ...]] = ("temperature",)

    def __init__(self, towers: nn.ModuleDict, *, temperature: float = 0.1, mean: Literal["outside", "inside"] = "outside"):
        super().__init__(towers)
        self.temperature, self.mean = temperature, mean

    @property
    def logit_scale(self) -> Tensor:
        return torch.tensor(1 / self.temperature)

    @property
    def nested_rows(self) -> Collection[str]:
        return self.embedded_views

    def describe(self, global_batch: int) -> LossFacts:
        return LossFacts(negatives=2 * global_batch - 2)

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        keys = label_ids(all_rows(embeddings))
        queries = keys if embeddings.share == 1 else label_ids(local_rows(embeddings))
        total = nt_xent(queries, keys, scale=1 / self.temperature, positives=self.mean)
        return LossOutput(total / (keys.id_N >= 0).sum().clamp(min=1))
