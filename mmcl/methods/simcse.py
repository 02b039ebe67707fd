"""SimCSE (Gao, Yao, Chen, "SimCSE: Simple Contrastive Learning of Sentence Embeddings", 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    r"""Sentences and their positives, in one direction, with a fixed temperature.

    Unsupervised (equation 4), the positive of a sentence is itself under another dropout mask: the text tower needs dropout,
    without which both rows are the same and only uniformity is learned. Supervised (equation 5), positives and hard negatives
    come from the data, an entailment and a contradiction for instance. The hard negatives of the other sentences count as any
    key, the sentence's own as $e^\mathrm{hard\_negative\_log\_weight}$ keys (section 5.2). A hard negative that is a text of
    the batch counts for no other sentence, and one that is the sentence itself or its positive for none.

    What is evaluated and exported are the features; the paper's head (`tanh`, behind the first token) is for training alone
    (section 6.3). The first loss of an untrained model is at most about the log of the number of keys.

    Args:
        towers: "text".
        supervision: "none", "positives" or "hard_negatives": what the data say besides the sentence.
        temperature: the paper's 0.05.
        hard_negative_log_weight: see above; minus infinity removes a sentence's own hard negative.
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

    def describe(self, global_batch: int) -> LossFacts:
        keys = 2 * global_batch if "negative" in self.views else global_batch
        return LossFacts(first_loss=math.log(keys), negatives=keys - 1)

    def encode(self, views: Views) -> dict[str, Tensor]:
        rows = super().encode(views)
        if "positive" not in self.views:
            # A pass of its own draws masks of its own.
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
            key_row = torch.cat([key_row, row[kept]])  # A sentence's own hard negative comes with its weight instead.
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
