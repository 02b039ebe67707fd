"""A sample of a data source, not yet decoded."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image

from mmcl.data.stored_rows import StoredRow
from mmcl.errors import UserError
from mmcl.files.byte_range import FilePart

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import TypeIs

ImageLike: TypeAlias = "Path | str | bytes | FilePart | Image.Image | np.ndarray | Tensor"
"""An image, read or not: a path, an encoded file or its byte range in another file, a PIL image, or a uint8 array [H, W] or
[H, W, C]. A tensor [C, H, W] is already decoded and resized for a model, and is used unchanged."""

OWN_TEXTS = {"positive": "positives", "negative": "negatives"}
"""Text views with texts other than the captions, and the field of `Sample` that holds those texts."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One item, not yet decoded.

    Attributes:
        name: name in error messages: a path, or a key within its file.
        image: the image, or None for a text-only source.
        captions: all texts that describe the sample; may be empty.
        label: class index, or None.
        positives: texts with the same meaning as the captions, as in entailment pairs.
        negatives: hard negatives: similar texts with another meaning, as in contradiction pairs.
        problem: reason why the sample cannot be used, if the source already knows one.
        row: a row of numbers in place of the image, such as its embedding by another model.

    Example:
        >>> Sample("cat.png", Path("cat.png"), captions=("a cat", "a kitten"), label=3).check().captions
        ('a cat', 'a kitten')
    """

    name: str
    image: ImageLike | None
    captions: tuple[str, ...] = ()
    label: int | None = None
    positives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    problem: str | None = None
    row: StoredRow | None = None

    @property
    def distinct_captions(self) -> tuple[str, ...]:
        """Captions without repetitions, in their order, as rows are stored for them."""
        return self.captions if len(self.captions) < 2 else tuple(dict.fromkeys(self.captions))

    def check(self) -> Sample:
        """Returns the sample itself. Raises UserError if it cannot be used."""
        if self.problem is not None:
            raise UserError(f"{self.name}: {self.problem}")
        return self

    def required_image(self) -> ImageLike:
        """Returns the image as stored. Raises UserError with its name if there is none or it cannot be used."""
        image = self.check().image
        if image is None:
            instead = "; it has a stored row of numbers, which models of `rows` read" if self.row else ""
            raise UserError(f"{self.name}: has no image{instead}")
        return image


def is_tensor(image: ImageLike) -> TypeIs[Tensor]:
    """True for a tensor of torch; it does not import torch, without which there is none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)
