"""Distillation of a classifier on unlabeled images (Chen et al., "SimCLRv2", 2020, section 2.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, ImagePatches, LossOutput, Views


class Distillation(Method):
    r"""Train a student to match the class probabilities of a trained classifier (equation 2 of the paper).

    The loss is $-\sum_x \sum_y P^T(y | x; \tau) \log P^S(y | x; \tau)$ over the batch, divided by the batch size, with
    $P(y | x; \tau) = \mathrm{softmax}(\mathrm{logits} / \tau)$. The head of the image tower outputs the logits, as in
    `Supervised`; labels are not read. The gradient is zero when the student equals its teacher.

    Args:
        towers: "image", the student.
        teacher: image tower of the trained classifier that `teacher` of the configuration names; it stays in evaluation mode
            and receives no gradient.
        tau: temperature of both softmaxes.

    Raises:
        UserError: there is no teacher, or its number of classes differs from the student's.
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

    @property
    def committed_parameters(self) -> list[nn.Parameter]:
        return []  # the teacher never changes

    def train(self, mode: bool = True) -> Distillation:
        super().train(mode)
        self.teacher.eval()
        return self

    def encode(self, views: Views) -> dict[str, Tensor]:
        """Return the student's logits, and as "teacher" the teacher's, which sees whole images."""
        view = views["image"]
        with torch.no_grad():
            teacher_BC = self.teacher(view.pixels if isinstance(view, ImagePatches) else view, unit=False)
        return super().encode(views) | {"teacher": teacher_BC}

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        student_BC, teacher_BC = embeddings.local["image"], embeddings.local["teacher"]
        target_BC = (teacher_BC / self.tau).softmax(1)
        total = cross_entropy(student_BC / self.tau, target_BC, reduction="sum")
        agreed = (student_BC.argmax(1) == teacher_BC.argmax(1)).sum()
        rows = len(embeddings.all_ids)
        return LossOutput(total / rows, {"agreement": agreed / rows})
