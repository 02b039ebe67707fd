"""SwAV (Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcl.core.clustering import Prototypes, sinkhorn
from mmcl.core.host_count import HostCount
from mmcl.core.key_queue import KeyQueue
from mmcl.methods.crops import LARGE, crop_views
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, LossFacts, LossOutput, RunFacts


class SwAV(Method):
    """Predict from every crop the cluster assignments of the two large crops (equations 2 and 6 of the paper).

    The assignments (codes) are computed from the large crops only, balanced over the global batch, and receive no gradient.
    The initial loss is about ln(prototypes).

    Args:
        towers: "image".
        prototypes: number of clusters; about ten times the number of classes.
        small_crops: number of views `small_0`, `small_1`, ... besides `a` and `b`; `data.views.small` sets their size.
        temperature: temperature of the predictions.
        epsilon, iterations: parameters of the codes, see `sinkhorn`.
        queue: number of past rows of each large crop that are clustered together with the batch, for batches that are small
            relative to the number of prototypes; used only once the queue is full. 0 disables it.
        queue_from_epoch: epoch from which the queue is filled.
        freeze_epochs: number of initial epochs in which the prototypes are not updated.
    """

    views: Mapping[str, Literal["image", "text"]] = LARGE
    embedding: ClassVar[Literal["projection", "features"]] = "features"

    step: Tensor
    test_args: ClassVar[Mapping[str, Any]] = {"prototypes": 5, "small_crops": 2, "queue": 20, "queue_from_epoch": 1}

    def __init__(
        self,
        towers: nn.ModuleDict,
        *,
        prototypes: int = 3000,
        small_crops: int = 6,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        queue: int = 3840,
        queue_from_epoch: int = 15,
        freeze_epochs: int = 1,
    ):
        super().__init__(towers)
        self.views = crop_views(small_crops)
        width = self.tower("a").embed_dim
        self.prototypes = Prototypes(prototypes, width)
        self.queues = nn.ModuleDict({view: KeyQueue(queue, width) for view in LARGE})
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.queue_from_epoch, self.freeze_epochs, self.steps_per_epoch = queue_from_epoch, freeze_epochs, 0
        self._steps = HostCount(self, "step")

    def configure(self, facts: RunFacts) -> None:
        self.steps_per_epoch = facts.steps_per_epoch

    def describe(self, global_batch: int) -> LossFacts:
        return LossFacts(first_loss=math.log(len(self.prototypes.weight)))

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        frozen = self._is_before_epoch(self.freeze_epochs)
        logits = {name: self.prototypes(embeddings.local[name], frozen=frozen) / self.temperature for name in self.views}
        total = torch.zeros((), device=embeddings.ids.device)
        for assigned in LARGE:
            code_NK = self._codes(embeddings, assigned)
            others = [logit_NK for name, logit_NK in logits.items() if name != assigned]
            total = total + sum(F.cross_entropy(logit_NK, code_NK, reduction="sum") for logit_NK in others) / len(others)
        return LossOutput(total / (len(LARGE) * len(embeddings.all_ids)))

    @torch.no_grad()
    def _codes(self, embeddings: Embeddings, view: str) -> Tensor:
        """Return the codes of the local rows, balanced over the rows of all processes and of the queue once it is full."""
        queue, rows = self._queue(view), embeddings.all[view]
        past = queue.keys if queue.full else rows[:0]
        code_MK = sinkhorn(self.prototypes(torch.cat([past, rows])), epsilon=self.epsilon, iterations=self.iterations)
        first = len(past) + embeddings.offset
        return code_MK[first : first + len(embeddings.ids)]

    def commit(self, embeddings: Embeddings, batch: Batch) -> None:
        self.prototypes.normalize()
        if not self._is_before_epoch(self.queue_from_epoch):
            for view in LARGE:
                self._queue(view).push(embeddings.all[view], embeddings.all_ids)
        self._steps.add(1)

    def _queue(self, view: str) -> KeyQueue:
        return self.queues[view]  # type: ignore[return-value]

    def _is_before_epoch(self, epoch: int) -> bool:
        return int(self._steps) < epoch * self.steps_per_epoch
