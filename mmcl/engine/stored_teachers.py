"""Distillation from stored teachers: models that have encoded the training data once, before the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import permutations

import torch
from torch import Tensor

from mmcl.config import Config, DistillationConfig
from mmcl.core.distillation import TeacherRows, distillation_loss, sigmoid_distillation_loss
from mmcl.core.precision import unit_rows
from mmcl.data.sample import OWN_TEXTS
from mmcl.errors import UserError
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, LossOutput

_WHERE = "train.distillation."
_UNUSED = DistillationConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTeacher:
    """A teacher whose rows are in `Batch.stored`.

    Attributes:
        name: its rows are "name/image" and, of texts, "name/text".
        scale: inverse temperature of its logits.
        bias: bias of its logits; None for a softmax teacher.
        has_text: whether rows of texts are stored; without, it compares images with each other.
    """

    name: str
    scale: float
    bias: float | None
    has_text: bool


class DistilledLoss:
    r"""Mix the loss of a method with the divergence of its similarities from those of teachers, over all pairs of the batch.

    With the weight $\lambda$, the loss is $(1 - \lambda)$ times that of the method plus $\lambda$ times the mean over both
    directions of the divergence from the mean of the teachers' targets (Vasu et al., "MobileCLIP", 2024, section 3). Teachers
    without rows of texts compare every image with those of other samples; where there are teachers of both kinds, each kind
    counts half. The student's logits have the temperature of its method, and its bias: with one, it learns the teachers'
    sigmoids.

    With neighbors as targets, every teacher compares images with images and, with rows of texts, texts with texts, and the mean
    of all these softmaxes is the target in both directions (Gao et al., "SoftCLIP", 2024, which compares parts of images): the
    texts of the neighbors of an image are its positives, too.

    The rows are gathered before, and `Method.loss` is pure: the gradient stays that of one process and one batch. The metrics
    are those of the method, its loss as "method_loss", and "distillation_loss".

    Args:
        method: see `check_teachers`.
        teachers: at least one.
        config: its weight is lambda, above 0.
    """

    def __init__(self, method: Method, teachers: Sequence[StoredTeacher], config: DistillationConfig):
        self.method, self.own_loss, self.weight = method, method.loss, config.weight
        self.of_neighbors = config.targets == "neighbors"
        images, texts = embedded(method, "image"), embedded(method, "text")
        of_texts = [one for one in teachers if one.has_text or self.of_neighbors]
        of_images = [one for one in teachers if one not in of_texts]
        between_images = list(permutations(images, 2)) or [(view, view) for view in images]
        self.groups = []
        if of_texts:
            self.groups.append((of_texts, [(images[0], texts[0]), (texts[0], images[0])]))
        if of_images:
            self.groups.append((of_images, between_images))

    def __call__(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        """Return this process's share of the mixed loss; arguments as for `Method.loss`."""
        own = self.own_loss(embeddings, batch)
        parts = [self._divergence(embeddings, *group) for group in self.groups]
        taught = torch.stack(parts).mean() / len(embeddings.all_ids)
        metrics = {"method_loss": own.loss.detach(), "distillation_loss": taught.detach()}
        return LossOutput((1 - self.weight) * own.loss + self.weight * taught, {**own.metrics, **metrics})

    def _divergence(
        self, embeddings: Embeddings, teachers: Sequence[StoredTeacher], directions: Sequence[tuple[str, str]]
    ) -> Tensor:
        """Return the divergence from a group of teachers, summed over the rows of this process: the mean of the directions."""
        scale, bias = self.method.logit_scale, self.method.logit_bias
        assert scale is not None, "check_teachers refuses methods without a temperature"
        if bias is not None:
            image, text = directions[0]  # every pair counts once
            rows = [self._rows(embeddings, one, "image", "text") for one in teachers]
            return sigmoid_distillation_loss(
                embeddings.local[image], embeddings.all[text], teachers=rows, scale=scale, bias=bias, reduction="sum"
            )
        sums = [self._direction(embeddings, teachers, query, key, scale) for query, key in directions]
        return torch.stack(sums).mean()

    def _direction(
        self, embeddings: Embeddings, teachers: Sequence[StoredTeacher], query: str, key: str, scale: Tensor
    ) -> Tensor:
        numbers: dict[str, Tensor] = {}
        if self.method.views[query] == self.method.views[key]:
            assert embeddings.all_index is not None, "the engine gives the index of every row"
            numbers = {"query_row_N": embeddings.all_index[_own(embeddings)], "key_row_M": embeddings.all_index}
        return distillation_loss(
            embeddings.local[query],
            embeddings.all[key],
            teachers=[
                self._rows(embeddings, one, *sides)
                for one in teachers
                for sides in self._compared(one, self.method.views[query], self.method.views[key])
            ],
            scale=scale,
            reduction="sum",
            **numbers,  # type: ignore[arg-type]
        )

    def _compared(self, teacher: StoredTeacher, query: str, key: str) -> list[tuple[str, str]]:
        """Return the sides, "image" or "text", that a teacher compares for queries and keys of some sides."""
        if not self.of_neighbors:
            return [(query, key)]
        return [("image", "image"), ("text", "text")] if teacher.has_text else [("image", "image")]

    def _rows(self, embeddings: Embeddings, teacher: StoredTeacher, query: str, key: str) -> TeacherRows:
        # Stored in float16, they are of unit length only to rounding.
        query_BE, key_BE = (unit_rows(embeddings.all_stored[f"{teacher.name}/{side}"]) for side in (query, key))
        return TeacherRows(query_BE[_own(embeddings)], key_BE, teacher.scale, teacher.bias or 0.0)


def _own(embeddings: Embeddings) -> slice:
    return slice(embeddings.offset, embeddings.offset + len(embeddings.ids))


def embedded(method: Method, tower: str) -> list[str]:
    """Return the views whose rows are embeddings by a tower, "image" or "text"; of texts, only captions."""
    return [view for view in method.embedded_views if method.views[view] == tower and view not in OWN_TEXTS]


def is_teachable(method: Method) -> bool:
    """Return True if a method compares embeddings of images by cosines and a temperature, as teachers do."""
    return bool(embedded(method, "image")) and method.unit_rows and method.logit_scale is not None


def check_teachers(config: Config, method: Method, teachers: Sequence[StoredTeacher]) -> None:
    """Raise UserError if a run cannot use its stored teachers with this method, or has settings without effect."""
    distillation, name = config.train.distillation, config.method.name
    if not teachers:
        settings = (field.name for field in fields(distillation))
        given = next((one for one in settings if getattr(distillation, one) != getattr(_UNUSED, one)), None)
        if given:
            raise UserError(f"{_WHERE}{given} has no effect without data.embeddings: give a folder of `mmcl embed`")
        return
    if not distillation.weight:
        raise UserError(f"data.embeddings is not used: set {_WHERE}weight above 0, or remove it")
    if not is_teachable(method):
        raise UserError(
            f"data.embeddings: method {name} does not compare images by cosines and a temperature, as teachers do; remove it, "
            "or take a method such as clip, siglip or simclr"
        )
    if distillation.targets == "neighbors":
        _check_neighbors(config, method)
    if method.logit_bias is not None:
        for one in teachers:
            if not one.has_text or one.bias is None:
                lack = "no rows of captions" if not one.has_text else "no bias"
                raise UserError(
                    f"data.embeddings: the sigmoids of {name} need a sigmoid teacher of images and captions, such as SigLIP, "
                    f"and {one.name} has {lack}; take method clip"
                )


def _check_neighbors(config: Config, method: Method) -> None:
    where, name = f"{_WHERE}targets is neighbors", config.method.name
    if not embedded(method, "text"):
        raise UserError(f"{where}, and teachers of {name}, which has no captions, compare images with images anyway: remove it")
    if method.logit_bias is not None:
        raise UserError(f"{where}, which a softmax can learn, and the sigmoids of {name} cannot; take method clip")
    if config.train.distillation.temperature is None:
        raise UserError(
            f"{where}, and {_WHERE}temperature is missing: a model's own is for images against captions; set it, as to 0.1"
        )
