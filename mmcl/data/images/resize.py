"""Resizing of decoded images to a model's input, as arrays; it does not import torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import get_args

import numpy as np
from PIL import Image

from mmcl.data.images.bands import read_bands
from mmcl.data.images.decode import SCALES, Opened, opened
from mmcl.data.sample import ImageLike, is_tensor
from mmcl.errors import UserError
from mmcl.preprocess import CropRounding, Interpolation, Preprocess

Kernel = Callable[[np.ndarray, tuple[int, int], Preprocess], np.ndarray]
"""Resizes levels, uint8 [C, H, W], to a height and width, as `Preprocess.backend` says where that is not "pillow"."""

Box = tuple[int, int, int, int]
"""Box in an image: left, top, right, bottom in pixels."""

OF_PILLOW = {name: Image.Resampling[name.upper()] for name in get_args(Interpolation)}

_WHOLE_PIXELS = 16_000_000
"""Largest resized image in pixels; of a larger one, only the visible part is resized."""


def read_levels(image: ImageLike, preprocess: Preprocess, *, name: str | None = None, kernel: Kernel) -> np.ndarray:
    """Reads an image with `decode` and `resized`: [C, H, W]. Tensors, and arrays that already have the model's size and would
    not be cropped, are used unchanged."""
    if is_tensor(image):
        return _checked_levels(np.asarray(image), preprocess, name or "image")
    if preprocess.channels not in (1, 3):
        bands = read_bands(image, preprocess.channels, preprocess.intensity, name=name or "image")
        return resized(bands, preprocess, kernel=kernel)
    shape = (preprocess.height, preprocess.width, 3)[: 2 if preprocess.channels == 1 else 3]
    keeps_size = preprocess.resize == "none" or preprocess.resize_size in (None, preprocess.size)
    if keeps_size and isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == shape:
        return channels_first(image)
    with opened(image, name=name, intensity=preprocess.intensity) as stored:
        pixels = stored.pixels(_shrink(stored, preprocess))
        return _resize_and_crop(pixels, _resized_size(stored, preprocess), preprocess, kernel)


def resized(image: Image.Image | np.ndarray, preprocess: Preprocess, *, kernel: Kernel) -> np.ndarray:
    """Resizes and crops a decoded image to a model's input size, before normalization.

    If the resized image would have more than 16 million pixels, only the visible part is resized, which may differ by 2 of 255
    levels.

    Args:
        image: image of mode "RGB" or "L", as from `decode`, or bands, as from `read_bands`.
        preprocess: preprocessing of the model.
        kernel: resize of the backends other than "pillow".

    Returns:
        Levels from 0 to 255, [C, H, W]: uint8, or float32 where `preprocess.backend` is "torchvision_float".
    """
    if isinstance(image, np.ndarray):
        return np.concatenate([resized(band, gray, kernel=kernel) for band, gray in by_band(image, preprocess)])
    return _resize_and_crop(image, _resized_size(image, preprocess), preprocess, kernel)


def levels_dtype(preprocess: Preprocess) -> type[np.generic]:
    """Data type of the result of `resized`."""
    return np.float32 if preprocess.backend == "torchvision_float" else np.uint8


def by_band(bands_HWC: np.ndarray, preprocess: Preprocess) -> Iterator[tuple[Image.Image, Preprocess]]:
    """Yields every channel as a gray image, with its preprocessing."""
    for channel in range(preprocess.channels):
        fill = preprocess.fill[channel] if isinstance(preprocess.fill, tuple) else preprocess.fill
        gray = replace(preprocess, channels=1, mean=(0.0,), std=(1.0,), fill=fill, channel_order="rgb")
        yield Image.fromarray(np.ascontiguousarray(bands_HWC[..., channel])), gray


def in_channels(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Converts an image to gray or RGB, as the model takes it."""
    mode = "L" if preprocess.channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def channels_first(image: Image.Image | np.ndarray) -> np.ndarray:
    """Copies an image to uint8 [C, H, W], in channels-last memory."""
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def sides(preprocess: Preprocess) -> tuple[int, int]:
    """Height and width of the model's input."""
    return preprocess.height, preprocess.width


def _checked_levels(levels: np.ndarray, preprocess: Preprocess, name: str) -> np.ndarray:
    shape, dtype = (preprocess.channels, *sides(preprocess)), np.dtype(levels_dtype(preprocess))
    if levels.shape != shape or levels.dtype != dtype:
        wanted, given = f"{dtype} {list(shape)}", f"{levels.dtype} {list(levels.shape)}"
        raise UserError(f"{name}: a tensor is taken as it is and must be {wanted}, not {given}; give an array to be resized")
    return levels


def _shrink(stored: Opened, preprocess: Preprocess) -> int:
    """Largest factor by which an image may be shrunk during decoding with two pixels left per resized pixel."""
    if not (preprocess.shrink_on_load and stored.may_shrink) or preprocess.resize == "none":
        return 1
    height, width = _resized_size(stored, preprocess)
    spare = min(stored.height / height, stored.width / width) / 2
    return max((scale for scale in SCALES if scale <= spare), default=1)


def _resize_and_crop(image: Image.Image, size: tuple[int, int], preprocess: Preprocess, kernel: Kernel) -> np.ndarray:
    image, (height, width) = in_channels(image, preprocess), size
    if height * width > max(_WHOLE_PIXELS, image.height * image.width):
        pixels = _resize_center(image, (height, width), preprocess)
    elif preprocess.backend == "pillow":
        pixels = channels_first(image.resize((width, height), OF_PILLOW[preprocess.interpolation]))
    else:
        # torchvision's own rounds differently for channels-last memory.
        pixels = kernel(np.ascontiguousarray(channels_first(image)), (height, width), preprocess)
    return _crop_or_fill(pixels, preprocess)


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


def _resize_center(image: Image.Image, size: tuple[int, int], preprocess: Preprocess) -> np.ndarray:
    """Resizes an image to height and width `size`, but computes only the part that is visible after the crop."""
    taken = [_overlap(side, to, preprocess.crop_rounding)[0] for side, to in zip(size, sides(preprocess), strict=True)]
    rows, columns = taken
    per_row, per_column = image.height / size[0], image.width / size[1]
    right, bottom = min(columns.stop * per_column, image.width), min(rows.stop * per_row, image.height)
    box = (columns.start * per_column, rows.start * per_row, right, bottom)
    shown = (columns.stop - columns.start, rows.stop - rows.start)
    pixels = channels_first(image.resize(shown, OF_PILLOW[preprocess.interpolation], box=box))
    return pixels.astype(levels_dtype(preprocess), copy=False)


def _crop_or_fill(pixels_CHW: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Crops or pads around the center to the model's size."""
    height, width = sides(preprocess)
    if pixels_CHW.shape[1:] == (height, width):
        return pixels_CHW
    from_rows, to_rows = _overlap(pixels_CHW.shape[1], height, preprocess.crop_rounding)
    from_columns, to_columns = _overlap(pixels_CHW.shape[2], width, preprocess.crop_rounding)
    shown = pixels_CHW[:, from_rows, from_columns]
    if shown.shape[1:] == (height, width):
        return shown
    canvas = np.empty((preprocess.channels, height, width), pixels_CHW.dtype)
    canvas[:] = np.reshape(preprocess.fill, (-1, 1, 1))
    canvas[:, to_rows, to_columns] = shown
    return canvas


def _overlap(side: int, wanted: int, rounding: CropRounding) -> tuple[slice, slice]:
    """Returns the source and target slices for `wanted` pixels around the center of a side."""
    excess = (side - wanted) / 2
    if rounding == "floor":
        start = math.floor(excess)
    else:  # torchvision rounds to even where it crops, and down where it fills
        start = round(excess) if rounding == "round" and excess > 0 else math.trunc(excess)
    first, length = max(start, 0), min(side, wanted)
    return slice(first, first + length), slice(first - start, first - start + length)
