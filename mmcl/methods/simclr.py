"""SimCLR (Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020) and its variants."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mmcl.methods.method import Method
from mmcl.methods.two_views import all_rows, local_rows, nt_xent
from mmcl.types import Batch, Embeddings, LossFacts, LossOutput


class SimCLR(Method):
    """Match two augmented views of every image among all 2B rows of the batch with NT-Xent (equation 1 of the paper).

    Evaluation and export use the features before the projection head (section 4.2). The initial loss of an untrained model is
    at most about ln(2B - 1).

    Args:
        towers: "image".
        temperature: fixed; the paper uses 0.1 for ImageNet and 0.5 for CIFAR-10.
        decoupled: whether to remove the positive from the denominator (Yeh et al., "Decoupled Contrastive Learning", 2022,
            eq. 5).
        hardness: beta of Robinson et al. ("Contrastive Learning with Hard Negative Samples", 2021, eq. 4), which weights
            negatives by their similarity; 0 weights them equally, and the paper uses 1 for CIFAR-10.
        positive_prior: tau+ of Chuang et al. ("Debiased Contrastive Learning", 2020, eq. 8), the probability that a negative
            is of the query's class; the paper uses 0.1 for ten classes.
    """

    views: Mapping[str, Literal["image", "text"]] = {"a": "image", "b": "image"}
    embedding: ClassVar[Literal["projection", "features"]] = "features"
    init_args: ClassVar[tuple[str, ...]] = ("temperature",)

    def __init__(
        self,
        towers: nn.ModuleDict,
        *,
        temperature: float = 0.1,
        decoupled: bool = False,
        hardness: float = 0.0,
        positive_prior: float = 0.0,
    ):
        super().__init__(towers)
        self.temperature = temperature
        self.options: dict[str, Any] = {
            "denominator": "negatives" if decoupled else "all",
            "hardness": hardness,
            "positive_prior": positive_prior,
        }

    @property
    def logit_scale(self) -> Tensor:
        return torch.tensor(1 / self.temperature)

    @property
    def nested_rows(self) -> Collection[str]:
        return self.embedded_views

    def describe(self, global_batch: int) -> LossFacts:
        negatives = 2 * global_batch - 2
        compared = negatives + (self.options["denominator"] == "all")
        return LossFacts(first_loss=math.log(max(compared, 1)), negatives=negatives)

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        keys = all_rows(embeddings)
        queries = keys if embeddings.share == 1 else local_rows(embeddings)
        return LossOutput(nt_xent(queries, keys, scale=1 / self.temperature, **self.options) / len(keys.id_N))
