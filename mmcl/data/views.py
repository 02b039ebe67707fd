"""How each image view shows a picture: which part of it, at what size, changed how."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from mmcl.config import DataConfig, ViewConfig
from mmcl.data.augment.policy import Policy
from mmcl.data.crop import RandomResizedCrop
from mmcl.data.decode import to_tensor
from mmcl.errors import unknown_name
from mmcl.types import Preprocess


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageView:
    """One view of every picture.

    Attributes:
        number: of the view among the image views; with (seed, epoch, sample) it decides every draw, so that views differ.
        preprocess: size and channels in which it is shown.
        crop: the part that is shown, drawn at decoding; None shows what `preprocess` leaves.
        augment: what is done to the pictures of a batch, in [0, 1].
    """

    number: int
    preprocess: Preprocess
    crop: RandomResizedCrop | None = None
    augment: Policy | None = None

    def show(self, image: Image.Image, *, seed: int, epoch: int, index: int) -> Tensor:
        """This view of a decoded picture, before augmentation: uint8 [C, size, size]."""
        if self.crop is None:
            return to_tensor(image, self.preprocess)
        box = self.crop.box(image.width, image.height, seed=seed, epoch=epoch, index=index, view=self.number)
        return to_tensor(image, self.preprocess, box=box)


def build_image_views(names: Sequence[str], data: DataConfig, preprocess: Preprocess) -> dict[str, ImageView]:
    """The image views of a method, as `data.crop` and `data.augment` show them, and `data.views` otherwise.

    Args:
        names: of the views, in the order of their numbers.
        preprocess: of the encoder.

    Raises:
        UserError: `data.views` names a view that the method does not have; lists those that it has.
    """
    known = dict.fromkeys([*names, *map(_family, names)])
    for given in data.views:
        if given not in known:
            raise unknown_name("image view", given, known, where="data.views")
    return {name: _build(number, _own(name, data), data, preprocess) for number, name in enumerate(names)}


def _own(name: str, data: DataConfig) -> ViewConfig:
    return data.views.get(name) or data.views.get(_family(name)) or ViewConfig()


def _family(name: str) -> str:
    """The family of small_0, small_1, ... is small; other names are their own."""
    return re.sub(r"_\d+$", "", name)


def _build(number: int, own: ViewConfig, data: DataConfig, preprocess: Preprocess) -> ImageView:
    crop = own.crop or data.crop
    augment = data.augment if own.augment is None else own.augment
    return ImageView(
        number=number,
        preprocess=dataclasses.replace(preprocess, size=own.size or preprocess.size),
        crop=RandomResizedCrop(scale=crop.scale, ratio=crop.ratio) if crop else None,
        augment=Policy.build(augment) if augment else None,
    )
