"""Image views: crop, size and augmentation.

The crop is chosen from the header of a file, so that a JPEG is decoded only at the resolution that its crops need.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from mmcl.config import DataConfig, ViewConfig
from mmcl.data.augment.pipeline import AugmentationPipeline
from mmcl.data.images.bands import read_bands
from mmcl.data.images.crop import RandomResizedCrop
from mmcl.data.images.decode import SCALES, opened
from mmcl.data.images.resize import Box
from mmcl.data.images.tensors import part_to_tensor, to_tensor
from mmcl.data.sample import ImageLike
from mmcl.errors import unknown_name
from mmcl.preprocess import Preprocess


class Part(NamedTuple):
    """The part of an image that a view shows.

    Attributes:
        box: left, top, right, bottom, each a multiple of `scale`; None for the whole image.
        scale: factor by which the image may be shrunk before cropping and still have a pixel for each output pixel.
    """

    box: Box | None
    scale: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageView:
    """One view of every image.

    Attributes:
        number: index among the image views; with (seed, epoch, sample) it determines all draws, so that views differ.
        preprocess: size and channels of the view.
        crop: random crop during decoding; None uses only `preprocess`.
        augment: augmentations of the images of a batch, in [0, 1].
    """

    number: int
    preprocess: Preprocess
    crop: RandomResizedCrop | None = None
    augment: AugmentationPipeline | None = None

    def part(self, width: int, height: int, *, seed: int, epoch: int, index: int) -> Part:
        """Returns the visible part of an image of a given size.

        An image without a crop is decoded in full, as in evaluation, so that results match those of other toolkits.
        """
        if self.crop is None:
            return Part(None, 1)
        box = self.crop.box(width, height, seed=seed, epoch=epoch, index=index, view=self.number)
        spare = min((box[2] - box[0]) // self.preprocess.width, (box[3] - box[1]) // self.preprocess.height)
        scale = max((scale for scale in SCALES if scale <= spare), default=1)
        left, top, right, bottom = (side - side % scale for side in box)
        return Part((left, top, right, bottom), scale)

    def cut(self, pixels: Image.Image | np.ndarray, box: Box | None, scale: int) -> Tensor:
        """Cuts the visible part from an image, or its bands, shrunk by `scale`: [C, H, W]."""
        if box is None:
            return to_tensor(pixels, self.preprocess)
        left, top, right, bottom = (side // scale for side in box)
        return part_to_tensor(pixels, self.preprocess, (left, top, right, bottom))


def make_views(
    image: ImageLike, views: Mapping[str, ImageView], *, name: str | None = None, seed: int, epoch: int, index: int
) -> dict[str, Tensor]:
    """Reads all views of an image, before augmentation: [C, H, W].

    Args:
        image: decoded once for all views, at the coarsest scale that suffices for each.
        views: by name.
        name: name of the image in error messages.
        seed, epoch, index: these and the number of a view determine the part that it shows.

    Raises:
        UserError: the image cannot be read; see `decode`.
    """
    preprocess = next(iter(views.values())).preprocess

    def parts_of(width: int, height: int) -> dict[str, Part]:
        return {key: view.part(width, height, seed=seed, epoch=epoch, index=index) for key, view in views.items()}

    if preprocess.channels not in (1, 3):
        bands = read_bands(image, preprocess.channels, preprocess.intensity, name=name or "image")
        parts = parts_of(bands.shape[1], bands.shape[0])
        return {key: view.cut(bands, parts[key].box, 1) for key, view in views.items()}
    with opened(image, name=name, intensity=preprocess.intensity) as header:
        parts = parts_of(header.width, header.height)
        scale = min(part.scale for part in parts.values()) if header.may_shrink else 1
        pixels = header.pixels(scale)
    return {key: view.cut(pixels, parts[key].box, scale) for key, view in views.items()}


def build_image_views(names: Sequence[str], data: DataConfig, preprocess: Preprocess) -> dict[str, ImageView]:
    """Builds the image views of a method from `data.crop` and `data.augment`, with the overrides in `data.views`.

    Args:
        names: names of the views, in the order of their numbers.
        preprocess: preprocessing of the encoder.

    Raises:
        UserError: `data.views` names a view that the method does not have; lists the valid names.
    """
    known = dict.fromkeys([*names, *map(_family, names)])
    for given in data.views:
        if given not in known:
            raise unknown_name("image view", given, known, where="data.views")
    return {name: _build(number, _own(name, data), data, preprocess) for number, name in enumerate(names)}


def _own(name: str, data: DataConfig) -> ViewConfig:
    return data.views.get(name) or data.views.get(_family(name)) or ViewConfig()


def _family(name: str) -> str:
    """Returns the family of a view: "small" for small_0, small_1, ..., else the name itself."""
    return re.sub(r"_\d+$", "", name)


def _build(number: int, own: ViewConfig, data: DataConfig, preprocess: Preprocess) -> ImageView:
    crop = own.crop or data.crop
    augment = data.augment if own.augment is None else own.augment
    return ImageView(
        number=number,
        preprocess=preprocess.at(own.size) if own.size else preprocess,
        crop=RandomResizedCrop(scale=crop.scale, ratio=crop.ratio) if crop else None,
        augment=AugmentationPipeline.build(augment) if augment else None,
    )
