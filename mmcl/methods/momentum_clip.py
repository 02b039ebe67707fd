"""CLIP with a momentum teacher and queues of past keys (Li et al., "Align before Fuse", 2021, section 3.2)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mmcl.core.ema import MomentumTeacher
from mmcl.core.info_nce import info_nce
from mmcl.core.key_queue import KeyQueue
from mmcl.core.prefixes import unit_prefix
from mmcl.methods.byol import teacher_rows
from mmcl.methods.clip import CLIP
from mmcl.methods.hard_negatives import unused_ids
from mmcl.types import Batch, Embeddings, LossFacts, LossOutput, RunFacts, Views


class MomentumCLIP(CLIP):
    """Train CLIP against a momentum teacher's keys of the batch and of queues of images and texts (equation 1 of the paper).

    Queued rows with the query's own id are stale and are used neither as positives nor as negatives. Early in a run from
    random weights the teacher's keys are nearly identical, and using a queue of them prevents learning. The queues are
    therefore filled from the first step but used only after a share of the run, `queue_start`.

    Args:
        towers, temperature, max_scale: as in `CLIP`.
        queue: K, number of keys in each queue; 0 uses only the keys of the batch.
        momentum: constant momentum of the teacher; 0.995 in the paper.
        queue_start: share of the run after which the queues are used; 0 is suitable for towers that are already trained.
    """

    views: Mapping[str, Literal["image", "text"]] = {"image": "image", "text": "text"}
    embedding: ClassVar[Literal["projection", "features"]] = "projection"
    test_args: ClassVar[Mapping[str, Any]] = {"queue": 20, "momentum": 0.9}

    def __init__(
        self,
        towers: nn.ModuleDict,
        *,
        temperature: float = 0.07,
        max_scale: float = 100.0,
        queue: int = 65536,
        momentum: float = 0.995,
        queue_start: float = 0.2,
    ):
        super().__init__(towers, temperature=temperature, max_scale=max_scale)
        self.teacher = MomentumTeacher(self.towers, momentum=momentum)
        self.queues = nn.ModuleDict({view: KeyQueue(queue, self.tower(view).embed_dim) for view in self.views})
        self.queue_size, self.queue_start, self.first_queue_step = queue, queue_start, 0

    def configure(self, facts: RunFacts) -> None:
        self.first_queue_step = round(self.queue_start * facts.total_steps)

    @property
    def nested_rows(self) -> Collection[str]:
        return {*self.views, *(f"teacher_{view}" for view in self.views)}

    def describe(self, global_batch: int) -> LossFacts:
        return LossFacts(negatives=global_batch - 1 + self.queue_size)

    def encode(self, views: Views) -> dict[str, Tensor]:
        """Return the queries, and the teacher's keys as "teacher_image" and "teacher_text"."""
        return super().encode(views) | teacher_rows(self, self.teacher, views)

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        total = self._against_keys(embeddings, "image", "text") + self._against_keys(embeddings, "text", "image")
        return LossOutput(total / (2 * len(embeddings.all_ids)))

    def _against_keys(self, embeddings: Embeddings, query: str, key: str) -> Tensor:
        keys, key_ids = embeddings.all[f"teacher_{key}"], embeddings.all_ids
        # `info_nce` ignores pairs of the same row: ids as row numbers exclude stale keys. Keys of the batch stay included.
        key_rows = unused_ids(key_ids, len(keys))
        queue: KeyQueue = self.queues[key]  # type: ignore[assignment]
        if int(self.teacher.steps) >= self.first_queue_step:
            keys, key_ids = torch.cat([keys, unit_prefix(queue.keys, keys.shape[1]).to(keys)]), torch.cat([key_ids, queue.ids])
            key_rows = torch.cat([key_rows, queue.ids])
        return info_nce(
            embeddings.local[query],
            keys,
            query_id_N=embeddings.ids,
            key_id_M=key_ids,
            query_row_N=embeddings.ids,
            key_row_M=key_rows,
            scale=self.logit_scale,
            reduction="sum",
        )

    def commit(self, embeddings: Embeddings, batch: Batch) -> None:
        super().commit(embeddings, batch)
        self.teacher.update(self.towers)
        for view, queue in self.queues.items():
            queue.push(embeddings.all[f"teacher_{view}"], embeddings.all_ids)  # type: ignore[operator]
