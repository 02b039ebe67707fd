"""Data types passed between packages: frozen dataclasses, with shapes in their docstrings.

Shape suffixes used throughout: B rows of the global batch, N query rows, M key rows, D embedding width, F feature width,
L tokens, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, device


@dataclass(frozen=True, slots=True)
class Repeats:
    """Which texts of a batch are equal.

    Attributes:
        first: int64 [U], a row of each of the U distinct texts.
        text: int64 [B], the number of each row's text.
    """

    first: Tensor
    text: Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """A batch of tokenized texts, padded at the end to the longest text; a subset of rows is padded to its own longest text.

    Attributes:
        ids: int64 [B, L].
        mask: bool [B, L], true where there is a token; every row has at least one.
        truncated: number of texts cut to the context length; 0 for a subset of rows, for which it is unknown.
        padding: id after the end of a text, with which batches are joined and lengthened.
        repeats: which texts are equal, so that a tower encodes each of them once; None, also for a subset of rows: every row is
            encoded.
    """

    ids: Tensor
    mask: Tensor
    truncated: int = 0
    padding: int = 0
    repeats: Repeats | None = None

    def to(self, device: device | str, *, non_blocking: bool = False) -> Tokens:
        """Copies it to a device."""
        ids, mask = (part.to(device, non_blocking=non_blocking) for part in (self.ids, self.mask))
        repeats = self.repeats and Repeats(
            *(rows.to(device, non_blocking=non_blocking) for rows in (self.repeats.first, self.repeats.text))
        )
        return replace(self, ids=ids, mask=mask, repeats=repeats)

    def pin_memory(self) -> Tokens:
        """Copies it to page-locked memory."""
        return replace(self, ids=self.ids.pin_memory(), mask=self.mask.pin_memory())

    def lengthened(self, length: int) -> Tokens:
        """Pads the rows to a length, which is not less than theirs."""
        from torch.nn.functional import pad

        more = (0, length - self.ids.shape[1])
        return replace(self, ids=pad(self.ids, more, value=self.padding), mask=pad(self.mask, more))

    def with_repeats(self) -> Tokens:
        """Finds out which texts are equal. It reads the ids, which should be on the host.

        Where nine texts in ten are distinct, the batch is returned as it is: little would be saved.
        """
        import torch

        texts_B = [row.tobytes() for row in self.ids.masked_fill(~self.mask, -1).numpy(force=True)]
        first: dict[bytes, int] = {}
        for row, text in enumerate(texts_B):
            first.setdefault(text, row)
        if 10 * len(first) > 9 * len(texts_B):
            return self
        number = {text: place for place, text in enumerate(first)}
        return replace(self, repeats=Repeats(torch.tensor([*first.values()]), torch.tensor([number[text] for text in texts_B])))

    def distinct(self) -> Tokens:
        """Returns every text once, in the length of the batch, after `with_repeats`."""
        if self.repeats is None:
            return self
        return replace(self, ids=self.ids[self.repeats.first], mask=self.mask[self.repeats.first], truncated=0, repeats=None)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | Tensor) -> Tokens:
        ids, mask = self.ids[rows], self.mask[rows]
        longest = int(mask.any(0).sum()) or mask.shape[1]  # the mask may have zero rows
        return replace(self, ids=ids[:, :longest], mask=mask[:, :longest], truncated=0, repeats=None)


@dataclass(frozen=True, slots=True)
class Features:
    """Precomputed encoder outputs in place of inputs: the tower applies only its head to them.

    Attributes:
        rows: [B, F].
    """

    rows: Tensor

    def to(self, device: device | str, *, non_blocking: bool = False) -> Features:
        """Copies it to a device."""
        return Features(self.rows.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Features:
        """Copies it to page-locked memory."""
        return Features(self.rows.pin_memory())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Tensor) -> Features:
        return Features(self.rows[rows])


@dataclass(frozen=True, slots=True)
class Unaugmented:
    """Images whose augmentation is left to the device.

    Attributes:
        pixels: uint8 [B, C, H, W].
        epoch, index: int64 [B], on the host; they determine the random draws of each image.
        augment: maps images, float32 [B, C, H, W] in [0, 1], with `epoch` and `index`, to augmented ones.
    """

    pixels: Tensor
    epoch: np.ndarray
    index: np.ndarray
    augment: Callable[..., Tensor]

    def to(self, device: device | str, *, non_blocking: bool = False) -> Unaugmented:
        """Copies the pixels to a device."""
        return replace(self, pixels=self.pixels.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Unaugmented:
        """Copies the pixels to page-locked memory."""
        return replace(self, pixels=self.pixels.pin_memory())

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: slice | Tensor) -> Unaugmented:
        epoch, index = self.epoch[rows], self.index[rows]
        return replace(self, pixels=self.pixels[rows], epoch=epoch, index=index)


@dataclass(frozen=True, slots=True)
class ImagePatches:
    """Images of which an encoder sees some of the patches; the same number of each.

    Attributes:
        pixels: all pixels, as of other images: float32 [B, C, H, W] in [0, 1]; before `views_on` also uint8, or `Unaugmented`.
        kept: int64 [B, K], the numbers of these patches, row by row of the image.
        patches: number of all patches of an image.
    """

    pixels: Any
    kept: Tensor
    patches: int

    def to(self, device: device | str, *, non_blocking: bool = False) -> ImagePatches:
        """Copies it to a device."""
        pixels, kept = (part.to(device, non_blocking=non_blocking) for part in (self.pixels, self.kept))
        return replace(self, pixels=pixels, kept=kept)

    def pin_memory(self) -> ImagePatches:
        """Copies it to page-locked memory."""
        return replace(self, pixels=self.pixels.pin_memory(), kept=self.kept.pin_memory())

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, rows: slice | Tensor) -> ImagePatches:
        return replace(self, pixels=self.pixels[rows], kept=self.kept[rows])


Input: TypeAlias = "Tensor | Tokens | Features | ImagePatches"
"""Input of a tower: images float32 [B, C, H, W] in [0, 1], some of their patches, texts, or the features of any."""

Views = Mapping[str, Input]
"""Inputs of the towers, by view name.

On their way to the device, images that are not augmented on the host are uint8 or `Unaugmented`, which `views_on` resolves.
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """Input of one training step for one process.

    Attributes:
        views: the towers' inputs by view name, `b` rows each, on the host; `views_on` copies them to a device, in pieces.
        ids: int64 [b]; rows with equal ids are positives of each other, never negatives.
        index: int64 [b]; the rows' indices in the dataset.
        bad_samples: samples that could not be read and were replaced, for the log.
        labels: int64 [b], class indices, -1 for unlabeled rows; None for data without classes.
        bad_rows: positions of the replaced samples in the global batch, in the sample order of the run.
        text_ids: int64 [b, V], equal for equal texts: one column per text view, the last for hard negatives; None without hard
            negatives.
        stored: name -> stored rows [b, E] of the samples, such as those of teachers; of any floating type.
    """

    views: Views
    ids: Tensor
    index: Tensor
    bad_samples: tuple[BadSample, ...] = ()
    labels: Tensor | None = None
    bad_rows: tuple[int, ...] = ()
    text_ids: Tensor | None = None
    stored: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: device | str) -> Batch:
        """Copies all but the views to a device; the copies may still be in progress on return."""
        return self._mapped(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copies it to page-locked memory for asynchronous transfers to a GPU; called by a `DataLoader` with `pin_memory`."""
        pinned = self._mapped(lambda part: part.pin_memory())
        return replace(pinned, views={name: view.pin_memory() for name, view in self.views.items()})

    def _mapped(self, change: Callable[[Any], Any]) -> Batch:
        labels, text_ids = (None if part is None else change(part) for part in (self.labels, self.text_ids))
        stored = {name: change(rows) for name, rows in self.stored.items()}
        return replace(self, ids=change(self.ids), index=change(self.index), labels=labels, text_ids=text_ids, stored=stored)


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that could not be used, and the reason."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Inputs of a loss: this process's rows and the rows of all processes, in rank order, with gradient.

    Attributes:
        local: name -> rows of this process, [b, D]; the names are those that the method's `encode` returns.
        all: name -> rows of all processes, [B, D]; rows `offset` to `offset + b` are the local ones.
        ids: int64 [b], ids of the local rows.
        all_ids: int64 [B], ids of all rows.
        offset: index of this process's first row in `all`.
        all_text_ids: `Batch.text_ids` of every process, [B, V], or None.
        all_index: `Batch.index` of every process, int64 [B]; None if the method was called without.
        all_stored: `Batch.stored` of every process, name -> [B, E].
    """

    local: Mapping[str, Tensor]
    all: Mapping[str, Tensor]
    ids: Tensor
    all_ids: Tensor
    offset: int = 0
    all_text_ids: Tensor | None = None
    all_index: Tensor | None = None
    all_stored: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """b / B: this process's share of a loss that every process computes from all rows."""
        return len(self.ids) / max(len(self.all_ids), 1)


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss and the metrics to log with it.

    Attributes:
        loss: scalar, this process's share. The sum of the shares over all processes is the loss of the global batch.
        metrics: name -> scalar without gradient; also shares, which are summed over the processes.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """Facts about a run that a method may depend on: batch size, length of training and size of the data.

    Attributes:
        global_batch: rows of one step over all processes.
        total_steps: optimizer steps of the whole run, including those before a resume.
        steps_per_epoch: optimizer steps of one pass over the data.
        samples: samples of the training data; `Batch.index` is below it.
    """

    global_batch: int
    total_steps: int
    steps_per_epoch: int
    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LossFacts:
    """Properties of a loss that are known before training; None where unknown.

    Attributes:
        first_loss: approximate first loss of an untrained model, for which all pairs are equally similar.
        negatives: number of negatives per row.
    """

    first_loss: float | None = None
    negatives: int | None = None


class EmbeddingModel(Protocol):
    """Interface of a model for evaluators and search. `mmcl.load_model` returns one; any object with these members is accepted.

    Attributes:
        fingerprint: changes with the architecture, the weights or the preprocessing.
        logit_scale: inverse temperature that turns cosines into logits; None if the model was trained without one.
        logit_bias: added to the logits; None for softmax models, a number for sigmoid ones (SigLIP).
        has_text: whether `encode_text` works.
    """

    @property
    def fingerprint(self) -> str:
        """Changes with the architecture, the weights or the preprocessing."""
        ...

    @property
    def logit_scale(self) -> float | None:
        """Inverse temperature of the logits; None if the model was trained without one."""
        ...

    @property
    def logit_bias(self) -> float | None:
        """Added to the logits; None for softmax models."""
        ...

    @property
    def has_text(self) -> bool:
        """Whether `encode_text` works."""
        ...

    def encode_image(self, images: Any, *, batch_size: int | None = None, progress: bool = False) -> np.ndarray:
        """Embeds a path, PIL image, uint8 array, a list of these, or a data source: float32 [N, D], unit length."""
        ...

    def encode_text(self, texts: Any, *, batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Embeds a string or a list of strings: float32 [N, D], unit length."""
        ...


class ClassifierModel(Protocol):
    """Interface of a classifier trained with labels; `mmcl.load_model` returns one.

    Attributes:
        class_names: one per logit; None if the class names are unknown.
    """

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes, one per logit; None if they are unknown."""
        ...

    def image_logits(self, images: Any, *, batch_size: int | None = None) -> np.ndarray:
        """Computes the logits of images, given as to `EmbeddingModel.encode_image`: float32 [N, C]."""
        ...
