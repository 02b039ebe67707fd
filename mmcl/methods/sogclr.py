"""CLIP with the global contrastive loss: every pair against all samples of the data set (Yuan et al., "SogCLR", 2022)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmcl.core.global_contrast import MovingNormalizers, global_contrast, log_mean_negative
from mmcl.core.host_count import HostCount
from mmcl.errors import UserError
from mmcl.methods.clip import CLIP
from mmcl.methods.method import check_positive
from mmcl.types import Batch, Embeddings, LossFacts, RunFacts


class SogCLR(CLIP):
    """Train CLIP on a loss over the whole data set, with batches that may be small (Yuan et al., 2022, algorithm 1).

    The denominator of every image and of every text is a moving average over the batches in which its sample occurred, because
    the logarithm of a sum over one small batch is biased. Of Wei et al. ("FastCLIP", 2024), this is v1 with a decreasing gamma,
    or v0 if the temperature is learned.

    With `gamma: 1` and batches of the whole data set, this is `CLIP`. Averages are those of samples, not of ids: captions of an
    image that are one sample share one, and rows with equal ids are positives of each other as in `CLIP`.

    Args:
        towers, temperature, learn_temperature, max_scale, image_weight, image_temperature: as in `CLIP`.
        gamma: weight of the newest batch in an average, in (0, 1]; 0.9 in the code of SogCLR, 0.2 in that of FastCLIP.
            A sample is seen once per epoch, so a small weight keeps averages of a model of many epochs ago.
        gamma_decay: share of the run over which the weight falls from 1 to `gamma`, along half a cosine; 0 keeps it constant,
            as in SogCLR. 0.5 is FastCLIP's.
        epsilon: added to the averages, positive; small values let pairs that are already told apart from all others still
            learn, 1e-14 in FastCLIP. By default 1 / (n - 1) for n samples, for which the loss is CLIP's over all of them.
    """

    test_args: ClassVar[Mapping[str, Any]] = {"gamma": 0.3, "gamma_decay": 0.5}

    def __init__(
        self,
        towers: nn.ModuleDict,
        *,
        temperature: float = 0.07,
        learn_temperature: bool = True,
        max_scale: float = 100.0,
        image_weight: float = 0.0,
        image_temperature: float = 0.1,
        gamma: float = 0.9,
        gamma_decay: float = 0.0,
        epsilon: float | None = None,
    ):
        super().__init__(
            towers,
            temperature=temperature,
            learn_temperature=learn_temperature,
            max_scale=max_scale,
            image_weight=image_weight,
            image_temperature=image_temperature,
        )
        if not 0 < gamma <= 1:
            raise UserError(f"gamma is {gamma:g}: give a number above 0, up to 1")
        if not 0 <= gamma_decay <= 1:
            raise UserError(f"gamma_decay is {gamma_decay:g}: give a share of the run, from 0 to 1")
        check_positive({"epsilon": epsilon})
        self.gamma, self.gamma_decay, self.epsilon = gamma, gamma_decay, epsilon
        self.samples, self.decay_steps = 0, 0
        self.steps = HostCount(self, "step")
        self.normalizers = nn.ModuleDict({view: MovingNormalizers(0) for view in self.views})

    def configure(self, facts: RunFacts) -> None:
        self.samples, self.decay_steps = facts.samples, round(self.gamma_decay * facts.total_steps)
        for view in self.normalizers:
            self._normalizers(view).resize(facts.samples)

    def describe(self, global_batch: int) -> LossFacts:
        first_loss = None if self.image_weight else math.log1p(1 / self._epsilon(global_batch))
        return LossFacts(first_loss=first_loss, negatives=global_batch - 1)

    @property
    def nested_rows(self) -> Collection[str]:
        return ()  # the averages are those of whole rows

    @property
    def current_gamma(self) -> float:
        """Weight of the means of the next batch."""
        done = min(int(self.steps) / self.decay_steps, 1) if self.decay_steps else 1
        return self.gamma + (1 - self.gamma) * (1 + math.cos(math.pi * done)) / 2

    def _epsilon(self, global_batch: int) -> float:
        return self.epsilon or 1 / max((self.samples or global_batch) - 1, 1)

    def _between_images_and_texts(self, embeddings: Embeddings) -> Tensor:
        return self._losses(embeddings, "image", "text").sum() + self._losses(embeddings, "text", "image").sum()

    def _losses(self, embeddings: Embeddings, query: str, key: str) -> Tensor:
        log_mean_N = self._log_means(embeddings.local[query], embeddings.ids, embeddings.all[key], embeddings.all_ids)
        own = slice(embeddings.offset, embeddings.offset + len(log_mean_N))
        log_average_N = self._normalizers(query).moved(_index(embeddings)[own], log_mean_N, self.current_gamma)
        return global_contrast(log_mean_N, log_average_N, epsilon=self._epsilon(len(embeddings.all_ids)))

    def _log_means(self, query_ND: Tensor, query_id_N: Tensor, key_MD: Tensor, key_id_M: Tensor) -> Tensor:
        return log_mean_negative(query_ND, key_MD, query_id_N=query_id_N, key_id_M=key_id_M, scale=self.logit_scale)

    def _normalizers(self, view: str) -> MovingNormalizers:
        return self.normalizers[view]  # type: ignore[return-value]

    @torch.no_grad()
    def commit(self, embeddings: Embeddings, batch: Batch) -> None:
        super().commit(embeddings, batch)
        rows, ids = embeddings.all, embeddings.all_ids
        for query, key in (("image", "text"), ("text", "image")):
            log_mean_B = self._log_means(rows[query], ids, rows[key], ids)
            self._normalizers(query).move(_index(embeddings), log_mean_B, self.current_gamma)
        self.steps.add(1)


def _index(embeddings: Embeddings) -> Tensor:
    assert embeddings.all_index is not None, "gather_embeddings was called without the index of the batch"
    return embeddings.all_index
