"""Distillation of a classifier on images without labels (Chen et al., "SimCLRv2", 2020, section 2.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, LossOutput, Views


class Distillation(Method):
    r"""The student learns the probabilities that a trained classifier gives (equation 2 of the paper).

    $-\sum_x \sum_y P^T(y | x; \tau) \log P^S(y | x; \tau)$ over the batch, by its size, with
    $P(y | x; \tau) = \mathrm{softmax}(\mathrm{logits} / \tau)$. The head of the image tower gives the logits, as in
    `Supervised`; labels are not read. A student that equals its teacher has no gradient.

    Args:
        towers: "image", the student.
        teacher: the trained classifier's image tower, from `teacher` of the configuration; in evaluation mode for good, and
            without gradient.
        tau: temperature of both softmaxes.

    Raises:
        UserError: there is no teacher, or it tells another number of classes apart.
    """

    views: Mapping[str, Literal["image", "text"]] = {"image": "image"}
    embedding: ClassVar[Literal["projection", "features"]] = "features"
    unit_rows: ClassVar[bool] = False
    takes_teacher: ClassVar[bool] = True
    test_args: ClassVar[Mapping[str, Any]] = {"tau": 0.05}

    def __init__(self, towers: nn.ModuleDict, teacher: Tower | None = None, *, tau: float = 1.0):
        super().__init__(towers)
        if teacher is None:
            raise UserError("distillation needs a teacher: set `teacher` to the run directory of a trained classifier")
        if teacher.embed_dim != self.classes:
            raise UserError(
                f"the teacher tells {teacher.embed_dim} classes apart and image.head {self.classes}: "
                f"set image.head.args.embed_dim to {teacher.embed_dim}"
            )
        self.teacher = teacher.requires_grad_(False).eval()
        self.tau = tau

    @property
    def classes(self) -> int:
        return self.tower("image").embed_dim

    def train(self, mode: bool = True) -> Distillation:
        super().train(mode)
        self.teacher.eval()
        return self

    def encode(self, views: Views) -> dict[str, Tensor]:
        """The student's logits, and the teacher's as "teacher"."""
        with torch.no_grad():
            teacher_BC = self.teacher(views["image"], unit=False)
        return super().encode(views) | {"teacher": teacher_BC}

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        student_BC, teacher_BC = embeddings.local["image"], embeddings.local["teacher"]
        target_BC = (teacher_BC / self.tau).softmax(1)
        total = cross_entropy(student_BC / self.tau, target_BC, reduction="sum")
        agreed = (student_BC.argmax(1) == teacher_BC.argmax(1)).sum()
        rows = len(embeddings.all_ids)
        return LossOutput(total / rows, {"agreement": agreed / rows})
