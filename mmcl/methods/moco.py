"""MoCo (He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020) and v2 (Chen et al., 2020)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mmcl.core.ema import MomentumTeacher
from mmcl.core.info_nce import info_nce
from mmcl.core.key_queue import KeyQueue
from mmcl.core.negative_mixing import mixed_negatives
from mmcl.errors import UserError
from mmcl.methods.byol import teacher_rows
from mmcl.methods.method import Method
from mmcl.rng import sample_seed
from mmcl.types import Batch, Embeddings, LossFacts, LossOutput, RunFacts, Views


class MoCo(Method):
    """Match each query to a momentum teacher's key of the same image, against a queue of past keys (equation 1).

    The negatives are the keys in the queue; keys of the current batch are not used as negatives. Older keys of the query's
    own image in the queue are ignored. The queue starts empty, so the first loss is 0. v1 and v2 differ in the head, the
    augmentation and the temperature.

    Args:
        towers: "image".
        queue: K, number of keys in the queue.
        momentum: constant momentum of the teacher; 0.99 for CIFAR.
        temperature: fixed; 0.2 in v2, 0.07 in v1, 0.1 for CIFAR.
        symmetric: whether to add the loss with the two views swapped. It shares the queue, which then stores the keys of both
            views.
        bn_groups: number of groups into which the keys are shuffled before the teacher encodes them, so that batch-norm
            statistics do not reveal which key belongs to which query ("Shuffling BN", section 3.3). Without batch norm, 1
            gives the same result faster.
        mixed: s of MoCHi (Kalantidis et al., "Hard Negative Mixing for Contrastive Learning", 2020, section 4): number of
            negatives of each query that are mixed from two keys of the queue; 1024 in the paper, with a queue of 16,384.
        mixed_with_query: s', number of negatives that are mixed from the query and a key; 128 to 256 in the paper.
        hardest: N, number of keys nearest to the query from which negatives are mixed; 1024 unless given.
        mix_start: share of the run after which negatives are mixed; 0.05 unless given, as 10 of the paper's 200 epochs.

    Raises:
        UserError: a number of mixing is out of range, or has no effect because nothing is mixed.
    """

    views: Mapping[str, Literal["image", "text"]] = {"a": "image", "b": "image"}
    embedding: ClassVar[Literal["projection", "features"]] = "features"
    init_args: ClassVar[tuple[str, ...]] = ("temperature",)
    test_args: ClassVar[Mapping[str, Any]] = {
        "queue": 20,
        "momentum": 0.9,
        "mixed": 7,
        "mixed_with_query": 3,
        "hardest": 6,
        "mix_start": 0.4,
    }

    def __init__(
        self,
        towers: nn.ModuleDict,
        *,
        queue: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        symmetric: bool = False,
        bn_groups: int = 8,
        mixed: int = 0,
        mixed_with_query: int = 0,
        hardest: int | None = None,
        mix_start: float | None = None,
    ):
        super().__init__(towers)
        self.teacher = MomentumTeacher(self.towers, momentum=momentum)
        self.queue = KeyQueue(queue, self.tower("a").embed_dim)
        self.temperature, self.bn_groups = temperature, bn_groups
        self.key_of = {"a": "b", "b": "a"} if symmetric else {"a": "b"}
        _check_mixing(queue, mixed, mixed_with_query, hardest, mix_start)
        self.mixed, self.mixed_with_query, self.hardest = mixed, mixed_with_query, 1024 if hardest is None else hardest
        self.mix_start, self.first_mixed_step = 0.05 if mix_start is None else mix_start, 0

    def configure(self, facts: RunFacts) -> None:
        self.first_mixed_step = round(self.mix_start * facts.total_steps)

    @property
    def logit_scale(self) -> Tensor:
        return torch.tensor(1 / self.temperature)

    def describe(self, global_batch: int) -> LossFacts:
        return LossFacts(negatives=self.queue.size + self.mixed + self.mixed_with_query)

    @property
    def embedded_views(self) -> Collection[str]:
        return self.key_of

    def encode(self, views: Views) -> dict[str, Tensor]:
        """Return the queries and the teacher's keys ("teacher_a", "teacher_b"); one of each unless `symmetric`."""
        queries = self.embed(self.towers, {name: views[name] for name in self.key_of})
        return queries | self._keys({name: views[name] for name in sorted(self.key_of.values())})

    def _keys(self, views: Views) -> dict[str, Tensor]:
        rows = len(next(iter(views.values())))
        order = torch.randperm(rows)
        # Batch norm needs at least two rows per group.
        groups = order.chunk(max(1, min(self.bn_groups, rows // 2)))
        parts = [teacher_rows(self, self.teacher, {name: view[group] for name, view in views.items()}) for group in groups]
        back = order.argsort()
        return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        totals = [self._direction(embeddings, query, f"teacher_{key}") for query, key in self.key_of.items()]
        return LossOutput(torch.stack(totals).sum() / len(embeddings.all_ids))

    def _direction(self, embeddings: Embeddings, query: str, key: str) -> Tensor:
        ids, stale_ids = embeddings.ids, self.queue.ids
        return info_nce(
            embeddings.local[query],
            self.queue.keys,
            query_id_N=ids,
            key_id_M=stale_ids,
            # `info_nce` ignores pairs of the same row. Passing ids as row numbers excludes stale keys of the same image.
            query_row_N=ids,
            key_row_M=stale_ids,
            own_key_ND=embeddings.local[key].detach(),
            scale=1 / self.temperature,
            reduction="sum",
            **self._mixed_negatives(embeddings, query),
        )

    def _mixed_negatives(self, embeddings: Embeddings, query: str) -> dict[str, Any]:
        """Return the arguments of `info_nce` for the mixed negatives; none in a step without them."""
        step, rows = int(self.teacher.steps), embeddings.local[query]
        if not self.mixed + self.mixed_with_query or step < self.first_mixed_step:
            return {}
        return mixed_negatives(
            rows,
            self.queue.keys,
            query_id_N=embeddings.ids,
            key_id_M=self.queue.ids,
            scale=1 / self.temperature,
            hardest=self.hardest,
            pairs=self.mixed,
            with_query=self.mixed_with_query,
            seed=sample_seed(step, ord(query)),
        )

    def commit(self, embeddings: Embeddings, batch: Batch) -> None:
        self.teacher.update(self.towers)
        for key in sorted(self.key_of.values()):
            self.queue.push(embeddings.all[f"teacher_{key}"], embeddings.all_ids)


def _check_mixing(queue: int, mixed: int, mixed_with_query: int, hardest: int | None, mix_start: float | None) -> None:
    """Raise UserError for a number that is out of range, or without effect."""
    for name, count in {"mixed": mixed, "mixed_with_query": mixed_with_query}.items():
        if count < 0:
            raise UserError(f"{name} is {count}: give a whole number from 0")
    if not mixed and not mixed_with_query:
        for name, value in {"hardest": hardest, "mix_start": mix_start}.items():
            if value is not None:
                raise UserError(f"{name} has no effect without mixed or mixed_with_query: set one of them, or leave it out")
        return
    least = 2 if mixed else 1
    if queue < least:
        raise UserError(f"queue is {queue}: give at least {least} key{'s' * (least > 1)}, from which negatives are mixed")
    if hardest is not None and not least <= hardest <= queue:
        raise UserError(f"hardest is {hardest}: give a whole number from {least} to the size of the queue, {queue}")
    if mix_start is not None and not 0 <= mix_start < 1:
        raise UserError(f"mix_start is {mix_start:g}: give a share of the run, from 0 and below 1")
