"""SigLIP (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mmcl.core.sigmoid import sigmoid_loss
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, LossFacts, LossOutput, RunFacts

_PAPER_BIAS = -10.0


class SigLIP(Method):
    """Classify each image-text pair as matching or not with a sigmoid, a learned temperature and a learned bias.

    The loss follows section 3.2 of the paper: a sum over the global batch, divided by its size B. A bias of -log(B - 1) gives
    a pair with logit 0 the probability 1 / B, which is the share of matching pairs.

    Args:
        towers: "image" and "text", of equal embedding width.
        temperature: initial temperature; 0.1 in the paper.
        bias: initial bias. By default `configure` sets it to -log(B - 1); until then it is -10, as in the paper, which
            corresponds to a batch of about 22,000 pairs.
        max_scale: largest inverse temperature, enforced after every step; by default there is no limit, as in the paper.
    """

    views: Mapping[str, Literal["image", "text"]] = {"image": "image", "text": "text"}
    embedding: ClassVar[Literal["projection", "features"]] = "projection"
    init_args: ClassVar[tuple[str, ...]] = ("temperature", "bias")

    def __init__(
        self, towers: nn.ModuleDict, *, temperature: float = 0.1, bias: float | None = None, max_scale: float | None = None
    ):
        super().__init__(towers)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.bias = nn.Parameter(torch.tensor(_PAPER_BIAS if bias is None else float(bias)))
        self.bias_is_given = bias is not None
        self.max_log_scale = None if max_scale is None else math.log(max_scale)

    @property
    def logit_scale(self) -> Tensor:
        return self.log_scale.exp()

    @property
    def logit_bias(self) -> Tensor:
        return self.bias

    @torch.no_grad()
    def configure(self, facts: RunFacts) -> None:
        if not self.bias_is_given:
            self.bias.fill_(-math.log(max(facts.global_batch - 1, 1)))

    @property
    def nested_rows(self) -> Collection[str]:
        return self.embedded_views

    def describe(self, global_batch: int) -> LossFacts:
        """Estimate the initial loss: rows of untrained towers are nearly orthogonal, so every logit is about the bias."""
        bias = self.bias.detach()
        first_loss = softplus(-bias) + (global_batch - 1) * softplus(bias)
        return LossFacts(first_loss=float(first_loss), negatives=global_batch - 1)

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        total = sigmoid_loss(
            embeddings.local["image"],
            embeddings.all["text"],
            image_id_N=embeddings.ids,
            text_id_M=embeddings.all_ids,
            scale=self.logit_scale,
            bias=self.bias,
            reduction="sum",
        )
        return LossOutput(total / len(embeddings.all_ids))

    @torch.no_grad()
    def commit(self, embeddings: Embeddings, batch: Batch) -> None:
        # Unlike CLIP, the paper does not limit the scale (Zhai et al., 2023).
        if self.max_log_scale is not None:
            self.log_scale.clamp_(max=self.max_log_scale)
