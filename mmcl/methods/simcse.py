"""SimCSE (Gao, Yao, Chen, "SimCSE: Simple Contrastive Learning of Sentence Embeddings", 2021)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmcl.core.info_nce import info_nce
from mmcl.errors import unknown_name
from mmcl.methods.hard_negatives import is_own_text, truly_negative, unused_ids
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, LossFacts, LossOutput, Views

_VIEWS: Mapping[str, Mapping[str, Literal["image", "text"]]] = {
    "none": {"text": "text"},
    "positives": {"text": "text", "positive": "text"},
    "hard_negatives": {"text": "text", "positive": "text", "negative": "text"},
}


class SimCSE(Method):
    r"""Match sentences to their positives with one-directional InfoNCE and a fixed temperature.

    Unsupervised (equation 4): the positive of a sentence is the same sentence under another dropout mask. The text tower must
    have dropout; without it both rows are equal and only uniformity is learned. Supervised (equation 5): positives and hard
    negatives come from the data, for example an entailment and a contradiction. Hard negatives of other sentences have the
    weight of one key; the sentence's own has the weight of $e^\mathrm{hard\_negative\_log\_weight}$ keys (section 5.2). A hard
    negative that equals a text of the batch is not used for other sentences. One that equals the sentence itself or its
    positive is not used at all.

    Evaluation and export use the features; the paper's head (`tanh` on the first token) is used only for training (section
    6.3). The initial loss of an untrained model is at most about the logarithm of the number of keys.

    Args:
        towers: "text".
        supervision: what the data contain besides the sentences: "none", "positives" or "hard_negatives".
        temperature: fixed; 0.05 in the paper.
        hard_negative_log_weight: log-weight of a sentence's own hard negative, see above; minus infinity removes it.
    """

    views: Mapping[str, Literal["image", "text"]] = _VIEWS["none"]
    embedding: ClassVar[Literal["projection", "features"]] = "features"
    init_args: ClassVar[tuple[str, ...]] = ("temperature",)

    def __init__(
        self,
        towers: nn.ModuleDict,
        *,
        supervision: Literal["none", "positives", "hard_negatives"] = "none",
        temperature: float = 0.05,
        hard_negative_log_weight: float = 0.0,
    ):
        if supervision not in _VIEWS:
            raise unknown_name("supervision", supervision, _VIEWS, where="simcse")
        super().__init__(towers)
        self.views = _VIEWS[supervision]
        self.temperature = temperature
        self.hard_negative_log_weight = hard_negative_log_weight

    @property
    def logit_scale(self) -> Tensor:
        return torch.tensor(1 / self.temperature)

    @property
    def nested_rows(self) -> Collection[str]:
        return {*self.views, "positive"}

    def describe(self, global_batch: int) -> LossFacts:
        keys = 2 * global_batch if "negative" in self.views else global_batch
        return LossFacts(first_loss=math.log(keys), negatives=keys - 1)

    def encode(self, views: Views) -> dict[str, Tensor]:
        rows = super().encode(views)
        if "positive" not in self.views:
            # A separate forward pass draws a different dropout mask.
            rows["positive"] = self.tower("text")(views["text"])
        return rows

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        local, everything = embeddings.local, embeddings.all
        batch_size = len(embeddings.all_ids)
        here = slice(embeddings.offset, embeddings.offset + len(embeddings.ids))
        row = torch.arange(batch_size, device=embeddings.ids.device)
        keys, key_ids, key_row = everything["positive"], embeddings.all_ids, batch_size + row
        if "negative" in local:
            kept = truly_negative(embeddings)
            keys = torch.cat([keys, everything["negative"][kept]])
            key_ids = torch.cat([key_ids, unused_ids(key_ids, batch_size)[kept]])
            key_row = torch.cat([key_row, row[kept]])  # A sentence's own hard negative is added below, weighted.
        total = info_nce(
            local["text"],
            keys,
            query_id_N=embeddings.ids,
            key_id_M=key_ids,
            query_row_N=row[here],
            key_row_M=key_row,
            own_negative_ND=local.get("negative"),
            own_negative_log_weight=torch.where(is_own_text(embeddings)[here], -math.inf, self.hard_negative_log_weight),
            scale=1 / self.temperature,
            reduction="sum",
        )
        return LossOutput(total / batch_size)
