"""Images as a model's input: tensors of levels, resized by Pillow or torchvision."""

from __future__ import annotations

import numpy as np
import pyarrow
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmcl.data.images.resize import (
    OF_PILLOW,
    Box,
    by_band,
    channels_first,
    in_channels,
    levels_dtype,
    read_levels,
    resized,
    sides,
)
from mmcl.data.sample import ImageLike
from mmcl.errors import UserError
from mmcl.preprocess import TORCHVISION_LANCZOS, Preprocess

_OF_TORCHVISION = {"nearest": "nearest-exact"}
"""torchvision's names of interpolations that differ from Pillow's."""


def read_pixels(image: ImageLike, preprocess: Preprocess, *, name: str | None = None) -> Tensor:
    """Reads an image with `decode` and `to_tensor`: [C, H, W]. Tensors, and arrays that already have the model's size and would
    not be cropped, are used unchanged."""
    return torch.from_numpy(read_levels(image, preprocess, name=name, kernel=resize_by_torchvision))


def to_tensor(image: Image.Image | np.ndarray, preprocess: Preprocess) -> Tensor:
    """Resizes and crops a decoded image to a model's input size, before normalization.

    Bit for bit equal to torchvision, open_clip, timm and transformers with the settings in `preprocess`, except for images of
    an extreme aspect, see `resized`.

    Args:
        image: image of mode "RGB" or "L", as from `decode`, or bands, as from `read_bands`.
        preprocess: preprocessing of the model.

    Returns:
        Levels from 0 to 255, [C, H, W]: uint8, or float32 where `preprocess.backend` is "torchvision_float".
    """
    return torch.from_numpy(resized(image, preprocess, kernel=resize_by_torchvision))


def pixel_dtype(preprocess: Preprocess) -> torch.dtype:
    """Data type of the result of `to_tensor`."""
    return torch.float32 if levels_dtype(preprocess) is np.float32 else torch.uint8


def check_resize(preprocess: Preprocess) -> None:
    """Raises UserError for a resize that the installed libraries do not support."""
    by_torchvision = preprocess.backend != "pillow" and preprocess.resize != "none"
    if by_torchvision and preprocess.interpolation == "lanczos" and torch.__version__ < TORCHVISION_LANCZOS:
        raise UserError(
            f"preprocess: interpolation 'lanczos' by {preprocess.backend} needs torch {TORCHVISION_LANCZOS}, "
            f"and {torch.__version__} is installed; install it, or give backend 'pillow', which differs by some levels"
        )


def resize_by_torchvision(levels_CHW: np.ndarray, size: tuple[int, int], preprocess: Preprocess) -> np.ndarray:
    """Resizes levels, uint8 [C, H, W] in contiguous memory, to a height and width, for the backends of torchvision."""
    check_resize(preprocess)
    from torchvision.transforms import InterpolationMode  # slow to import
    from torchvision.transforms.v2.functional import resize

    pixels = torch.from_numpy(levels_CHW)
    if preprocess.backend == "torchvision_float":
        pixels = pixels / 255
    mode = InterpolationMode(_OF_TORCHVISION.get(preprocess.interpolation, preprocess.interpolation))
    scaled: Tensor = resize(pixels, list(size), interpolation=mode, antialias=True)
    return (scaled * 255 if preprocess.backend == "torchvision_float" else scaled).numpy()


def part_to_tensor(image: Image.Image | np.ndarray, preprocess: Preprocess, box: Box) -> Tensor:
    """Resizes a part of a decoded image to the model's size, regardless of `preprocess.resize`: uint8 [C, H, W].

    Uses torch's uint8 kernel, which matches Pillow's up to one level of 256 in less than half the time.
    """
    if isinstance(image, np.ndarray):
        return torch.cat([part_to_tensor(band, gray, box) for band, gray in by_band(image, preprocess)])
    image, size, mode = in_channels(image.crop(box), preprocess), sides(preprocess), preprocess.interpolation
    if mode not in ("bilinear", "bicubic"):
        return torch.from_numpy(channels_first(image.resize(size[::-1], OF_PILLOW[mode])))
    return F.interpolate(_borrowed(image)[None], size, mode=mode, antialias=True)[0, : preprocess.channels]


def _borrowed(image: Image.Image) -> Tensor:
    """Read-only view of an image's memory: uint8 [C, H, W]; C is 4 for three channels, as Pillow stores them."""
    try:
        pixels = pyarrow.array(image)
    except ValueError:  # Pillow stores a very large image in several blocks.
        return torch.from_numpy(channels_first(image))
    values = torch.from_dlpack(pixels if image.mode == "L" else pixels.values)
    return values.view(image.height, image.width, -1).permute(2, 0, 1)
