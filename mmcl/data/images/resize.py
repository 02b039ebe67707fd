"""Resizing of decoded images, or parts of them, to a model's input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import numpy as np
import pyarrow
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmcl.data.images.bands import read_bands
from mmcl.data.images.decode import SCALES, Opened, opened
from mmcl.data.sample import ImageLike
from mmcl.errors import UserError
from mmcl.preprocess import TORCHVISION_LANCZOS, CropRounding, Interpolation, Preprocess

Box = tuple[int, int, int, int]
"""Box in an image: left, top, right, bottom in pixels."""

_OF_PILLOW = {name: Image.Resampling[name.upper()] for name in get_args(Interpolation)}
_OF_TORCHVISION = {"nearest": "nearest-exact"}
"""torchvision's names of interpolations that differ from Pillow's."""

_WHOLE_PIXELS = 16_000_000
"""Largest resized image in pixels; of a larger one, only the visible part is resized."""


def read_pixels(image: ImageLike, preprocess: Preprocess, *, name: str | None = None) -> Tensor:
    """Reads an image with `decode` and `to_tensor`: [C, H, W]. Tensors, and arrays that already have the model's size and would
    not be cropped, are used unchanged."""
    if isinstance(image, Tensor):
        return _checked_pixels(image, preprocess, name or "image")
    if preprocess.channels not in (1, 3):
        bands = read_bands(image, preprocess.channels, preprocess.intensity, name=name or "image")
        return to_tensor(bands, preprocess)
    shape = (preprocess.height, preprocess.width, 3)[: 2 if preprocess.channels == 1 else 3]
    keeps_size = preprocess.resize == "none" or preprocess.resize_size in (None, preprocess.size)
    if keeps_size and isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == shape:
        return _channels_first(image)
    with opened(image, name=name, intensity=preprocess.intensity) as stored:
        pixels = stored.pixels(_shrink(stored, preprocess))
        return _resize_and_crop(pixels, _resized_size(stored, preprocess), preprocess)


def _shrink(stored: Opened, preprocess: Preprocess) -> int:
    """Largest factor by which an image may be shrunk during decoding with two pixels left per resized pixel."""
    if not (preprocess.shrink_on_load and stored.may_shrink) or preprocess.resize == "none":
        return 1
    height, width = _resized_size(stored, preprocess)
    spare = min(stored.height / height, stored.width / width) / 2
    return max((scale for scale in SCALES if scale <= spare), default=1)


def _checked_pixels(pixels: Tensor, preprocess: Preprocess, name: str) -> Tensor:
    shape, dtype = (preprocess.channels, *_sides(preprocess)), pixel_dtype(preprocess)
    if pixels.shape != shape or pixels.dtype != dtype:
        wanted, given = f"{dtype} {list(shape)}", f"{pixels.dtype} {list(pixels.shape)}"
        raise UserError(f"{name}: a tensor is taken as it is and must be {wanted}, not {given}; give an array to be resized")
    return pixels


def to_tensor(image: Image.Image | np.ndarray, preprocess: Preprocess) -> Tensor:
    """Resizes and crops a decoded image to a model's input size, before normalisation.

    Bit for bit equal to torchvision, open_clip, timm and transformers with the settings in `preprocess`. If the resized image
    would have more than 16 million pixels, only the visible part is resized, which may differ by 2 of 255 levels.

    Args:
        image: image of mode "RGB" or "L", as from `decode`, or bands, as from `read_bands`.
        preprocess: preprocessing of the model.

    Returns:
        Levels from 0 to 255, [C, H, W]: uint8, or float32 where `preprocess.backend` is "torchvision_float".
    """
    if isinstance(image, np.ndarray):
        return torch.cat([to_tensor(band, grey) for band, grey in _by_band(image, preprocess)])
    return _resize_and_crop(image, _resized_size(image, preprocess), preprocess)


def _resize_and_crop(image: Image.Image, size: tuple[int, int], preprocess: Preprocess) -> Tensor:
    image, (height, width) = _in_channels(image, preprocess), size
    if height * width > max(_WHOLE_PIXELS, image.height * image.width):
        pixels = _resize_centre(image, (height, width), preprocess)
    elif preprocess.backend == "pillow":
        pixels = _channels_first(image.resize((width, height), _OF_PILLOW[preprocess.interpolation]))
    else:
        pixels = _resize_by_torchvision(image, (height, width), preprocess)
    return _crop_or_fill(pixels, preprocess)


def _by_band(bands_HWC: np.ndarray, preprocess: Preprocess) -> Iterator[tuple[Image.Image, Preprocess]]:
    """Yields every channel as a grey image, with its preprocessing."""
    for channel in range(preprocess.channels):
        fill = preprocess.fill[channel] if isinstance(preprocess.fill, tuple) else preprocess.fill
        grey = replace(preprocess, channels=1, mean=(0.0,), std=(1.0,), fill=fill, channel_order="rgb")
        yield Image.fromarray(np.ascontiguousarray(bands_HWC[..., channel])), grey


def pixel_dtype(preprocess: Preprocess) -> torch.dtype:
    """Data type of the result of `to_tensor`."""
    return torch.float32 if preprocess.backend == "torchvision_float" else torch.uint8


def _resized_size(image: Image.Image | Opened, preprocess: Preprocess) -> tuple[int, int]:
    """Height and width after the resize and before the crop."""
    height, width, target = image.height, image.width, preprocess.resize_size or preprocess.size
    if preprocess.resize == "none":
        return height, width
    if preprocess.resize == "shortest" and isinstance(target, int):  # torchvision's rule, which rounds down
        short = min(height, width)
        return int(target * height / short), int(target * width / short)
    to_height, to_width = target if isinstance(target, tuple) else (target, target)
    if preprocess.resize == "squash":
        return to_height, to_width
    # Rounds as timm and open_clip do when they fit an image into a frame or cover a frame that is not square.
    ratio = (max if preprocess.resize == "pad" else min)(height / to_height, width / to_width)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def check_resize(preprocess: Preprocess) -> None:
    """Raises UserError for a resize that the installed libraries do not support."""
    by_torchvision = preprocess.backend != "pillow" and preprocess.resize != "none"
    if by_torchvision and preprocess.interpolation == "lanczos" and torch.__version__ < TORCHVISION_LANCZOS:
        raise UserError(
            f"preprocess: interpolation 'lanczos' by {preprocess.backend} needs torch {TORCHVISION_LANCZOS}, "
            f"and {torch.__version__} is installed; install it, or give backend 'pillow', which differs by some levels"
        )


def _resize_by_torchvision(image: Image.Image, size: tuple[int, int], preprocess: Preprocess) -> Tensor:
    check_resize(preprocess)
    from torchvision.transforms import InterpolationMode  # slow to import
    from torchvision.transforms.v2.functional import resize

    pixels = _channels_first(image).contiguous()  # its kernel rounds differently for channels-last memory
    if preprocess.backend == "torchvision_float":
        pixels = pixels / 255
    mode = InterpolationMode(_OF_TORCHVISION.get(preprocess.interpolation, preprocess.interpolation))
    resized: Tensor = resize(pixels, list(size), interpolation=mode, antialias=True)
    return resized * 255 if preprocess.backend == "torchvision_float" else resized


def _resize_centre(image: Image.Image, size: tuple[int, int], preprocess: Preprocess) -> Tensor:
    """Resizes an image to height and width `size`, but computes only the part that is visible after the crop."""
    taken = [_overlap(side, to, preprocess.crop_rounding)[0] for side, to in zip(size, _sides(preprocess), strict=True)]
    rows, columns = taken
    per_row, per_column = image.height / size[0], image.width / size[1]
    right, bottom = min(columns.stop * per_column, image.width), min(rows.stop * per_row, image.height)
    box = (columns.start * per_column, rows.start * per_row, right, bottom)
    shown = (columns.stop - columns.start, rows.stop - rows.start)
    pixels = _channels_first(image.resize(shown, _OF_PILLOW[preprocess.interpolation], box=box))
    return pixels.to(pixel_dtype(preprocess))


def _crop_or_fill(pixels_CHW: Tensor, preprocess: Preprocess) -> Tensor:
    """Crops or pads around the centre to the model's size."""
    height, width = _sides(preprocess)
    from_rows, to_rows = _overlap(pixels_CHW.shape[1], height, preprocess.crop_rounding)
    from_columns, to_columns = _overlap(pixels_CHW.shape[2], width, preprocess.crop_rounding)
    shown = pixels_CHW[:, from_rows, from_columns]
    if shown.shape[1:] == (height, width):
        return shown
    fill = torch.tensor(preprocess.fill, dtype=pixels_CHW.dtype).reshape(-1, 1, 1)
    canvas = fill.repeat(preprocess.channels // len(fill), height, width)
    canvas[:, to_rows, to_columns] = shown
    return canvas


def _overlap(side: int, wanted: int, rounding: CropRounding) -> tuple[slice, slice]:
    """Returns the source and target slices for `wanted` pixels around the centre of a side."""
    excess = (side - wanted) / 2
    if rounding == "floor":
        start = math.floor(excess)
    else:  # torchvision rounds to even where it crops, and down where it fills
        start = round(excess) if rounding == "round" and excess > 0 else math.trunc(excess)
    first, length = max(start, 0), min(side, wanted)
    return slice(first, first + length), slice(first - start, first - start + length)


def _sides(preprocess: Preprocess) -> tuple[int, int]:
    return preprocess.height, preprocess.width


def part_to_tensor(image: Image.Image | np.ndarray, preprocess: Preprocess, box: Box) -> Tensor:
    """Resizes a part of a decoded image to the model's size, regardless of `preprocess.resize`: uint8 [C, H, W].

    Uses torch's uint8 kernel, which matches Pillow's up to one level of 256 in less than half the time.
    """
    if isinstance(image, np.ndarray):
        return torch.cat([part_to_tensor(band, grey, box) for band, grey in _by_band(image, preprocess)])
    image, size, mode = _in_channels(image.crop(box), preprocess), _sides(preprocess), preprocess.interpolation
    if mode not in ("bilinear", "bicubic"):
        return _channels_first(image.resize(size[::-1], _OF_PILLOW[mode]))
    return F.interpolate(_borrowed(image)[None], size, mode=mode, antialias=True)[0, : preprocess.channels]


def _borrowed(image: Image.Image) -> Tensor:
    """Read-only view of an image's memory: uint8 [C, H, W]; C is 4 for three channels, as Pillow stores them."""
    try:
        pixels = pyarrow.array(image)
    except ValueError:  # Pillow stores a very large image in several blocks.
        return _channels_first(image)
    values = torch.from_dlpack(pixels if image.mode == "L" else pixels.values)
    return values.view(image.height, image.width, -1).permute(2, 0, 1)


def _in_channels(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    mode = "L" if preprocess.channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _channels_first(image: Image.Image | np.ndarray) -> Tensor:
    """Copies an image to uint8 [C, H, W], in channels-last memory."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
