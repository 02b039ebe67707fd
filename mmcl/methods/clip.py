"""CLIP (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmcl.core.info_nce import info_nce, symmetric_info_nce
from mmcl.errors import UserError
from mmcl.methods.hard_negatives import truly_negative, unused_ids
from mmcl.methods.method import Method, check_positive
from mmcl.types import Batch, Embeddings, LossFacts, LossOutput


class CLIP(Method):
    """Align images and texts with symmetric InfoNCE and a learned temperature (figure 3 of the paper).

    Pairs with equal ids are positives of each other. The initial loss of an untrained model is about ln B for B pairs.

    With hard negatives, every text of the view "negative" is an additional key for every image and a positive of none
    (Yuksekgonul et al., "When and Why Vision-Language Models Behave Like Bags-of-Words", 2023, section 4, "NegCLIP"). A hard
    negative that is also a caption of the batch is not added a second time.

    With `image_weight`, images with equal ids, such as drawings of one thing in several styles, are also pulled together: this
    weight times the loss of SupCon (Khosla et al., "Supervised Contrastive Learning", 2020, equation 2) between the images of
    the batch is added. An image without another of its id counts as 0 in its mean.

    Args:
        towers: "image" and "text", of equal embedding width.
        temperature: initial temperature.
        learn_temperature: whether to learn it; otherwise it stays.
        max_scale: largest inverse temperature; the log-scale is clamped to [0, ln max_scale] after every step.
        hard_negatives: whether to read a hard negative for every text from the data.
        image_weight: weight of the loss between images with equal ids, from 0.
        image_temperature: fixed temperature of that loss.
    """

    views: Mapping[str, Literal["image", "text"]] = {"image": "image", "text": "text"}
    embedding: ClassVar[Literal["projection", "features"]] = "projection"
    init_args: ClassVar[tuple[str, ...]] = ("temperature",)

    def __init__(
        self,
        towers: nn.ModuleDict,
        *,
        temperature: float = 0.07,
        learn_temperature: bool = True,
        max_scale: float = 100.0,
        hard_negatives: bool = False,
        image_weight: float = 0.0,
        image_temperature: float = 0.1,
    ):
        super().__init__(towers)
        if image_weight < 0:
            raise UserError(f"image_weight is {image_weight:g}: give a number from 0")
        check_positive({"temperature": temperature, "max_scale": max_scale, "image_temperature": image_temperature})
        self.hard_negatives = hard_negatives
        self.image_weight, self.image_temperature = image_weight, image_temperature
        if hard_negatives:
            self.views = {**self.views, "negative": "text"}
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learn_temperature)
        self.max_log_scale = math.log(max_scale)

    @property
    def logit_scale(self) -> Tensor:
        return self.log_scale.exp()

    @property
    def nested_rows(self) -> Collection[str]:
        return self.embedded_views

    def describe(self, global_batch: int) -> LossFacts:
        keys = 2 * global_batch if self.hard_negatives else global_batch
        first_loss = (math.log(global_batch) + math.log(keys)) / 2
        return LossFacts(first_loss=None if self.image_weight else first_loss, negatives=keys - 1)

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        batch_size = len(embeddings.all_ids)
        clip_loss = self._between_images_and_texts(embeddings) / (2 * batch_size)
        if self.image_weight == 0:
            return LossOutput(clip_loss)
        image_loss = self._between_images(embeddings) / batch_size
        parts = {"clip_loss": clip_loss.detach(), "image_loss": image_loss.detach()}
        return LossOutput(clip_loss + self.image_weight * image_loss, parts)

    def _between_images_and_texts(self, embeddings: Embeddings) -> Tensor:
        """Return the losses of both directions, summed over the pairs of this process."""
        local, everything = embeddings.local, embeddings.all
        # If this process has all rows, both directions share one similarity matrix.
        if embeddings.share == 1 and not self.hard_negatives:
            return symmetric_info_nce(
                local["image"], local["text"], id_N=embeddings.ids, scale=self.logit_scale, reduction="sum"
            )
        texts, text_ids = everything["text"], embeddings.all_ids
        if self.hard_negatives:
            negatives = everything["negative"][truly_negative(embeddings)]
            texts = torch.cat([texts, negatives])
            text_ids = torch.cat([text_ids, unused_ids(text_ids, len(negatives))])
        to_texts = self._direction(local["image"], texts, embeddings.ids, text_ids)
        return to_texts + self._direction(local["text"], everything["image"], embeddings.ids, embeddings.all_ids)

    def _between_images(self, embeddings: Embeddings) -> Tensor:
        """Return SupCon's loss between the images, summed over those of this process."""
        image_MD, id_M = embeddings.all["image"], embeddings.all_ids
        number_M = torch.arange(len(id_M), device=id_M.device)
        queries = image_MD, id_M, number_M
        if embeddings.share < 1:
            own = slice(embeddings.offset, embeddings.offset + len(embeddings.ids))
            queries = embeddings.local["image"], embeddings.ids, number_M[own]
        image_ND, id_N, number_N = queries
        return info_nce(
            image_ND,
            image_MD,
            query_id_N=id_N,
            key_id_M=id_M,
            query_row_N=number_N,
            key_row_M=number_M,
            scale=1 / self.image_temperature,
            reduction="sum",
        )

    def _direction(self, query_ND: Tensor, key_MD: Tensor, query_id_N: Tensor, key_id_M: Tensor) -> Tensor:
        return info_nce(query_ND, key_MD, query_id_N=query_id_N, key_id_M=key_id_M, scale=self.logit_scale, reduction="sum")

    @torch.no_grad()
    def commit(self, embeddings: Embeddings, batch: Batch) -> None:
        # CLIP clips the scale of the logits, at 100 by default, to keep training stable (Radford et al., 2021, section 2.5).
        self.log_scale.clamp_(0, self.max_log_scale)
