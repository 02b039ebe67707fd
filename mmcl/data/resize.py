"""From decoded pixels to a model's input: the whole of a picture as `Preprocess` says, or a part of it."""

from __future__ import annotations

import numpy as np
import pyarrow
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmcl.data.decode import decode
from mmcl.data.source import ImageLike
from mmcl.types import Preprocess

Box = tuple[int, int, int, int]
"""A part of a picture: left, top, right, bottom in pixels."""

_OF_PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def read_pixels(image: ImageLike, preprocess: Preprocess, *, name: str | None = None) -> Tensor:
    """`decode` and `to_tensor` in one: uint8 [C, size, size]. An array that has the model's size already is taken as it is."""
    shape = (preprocess.size, preprocess.size, 3)[: 2 if preprocess.channels == 1 else 3]
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == shape:
        return _channels_first(image)
    return to_tensor(decode(image, name=name), preprocess)


def to_tensor(image: Image.Image, preprocess: Preprocess) -> Tensor:
    """Resizes a decoded picture to a model's input, before normalisation, bit for bit as Pillow does.

    Args:
        image: of mode "RGB" or "L", as `decode` returns it.
        preprocess: size, channels, interpolation (with antialiasing) and what to do with other aspects.

    Returns:
        uint8 [C, size, size].
    """
    image = _in_channels(image, preprocess)
    if preprocess.resize == "pad":
        return _channels_first(_pad(image, preprocess))
    box = _centre_box(image.width, image.height, preprocess.size) if preprocess.resize == "shortest" else None
    size = (preprocess.size, preprocess.size)
    return _channels_first(image.resize(size, _OF_PILLOW[preprocess.interpolation], box=box))


def part_to_tensor(image: Image.Image, preprocess: Preprocess, box: Box) -> Tensor:
    """Cuts out a part of a decoded picture and resizes it, whatever `preprocess.resize` says: uint8 [C, size, size].

    By torch, whose kernel for bytes gives what Pillow's gives, but for one level of 256, in less than half the time.
    """
    image, size = _in_channels(image.crop(box), preprocess), (preprocess.size, preprocess.size)
    mode = preprocess.interpolation
    if mode == "nearest":
        return _channels_first(image.resize(size, _OF_PILLOW[mode]))
    return F.interpolate(_borrowed(image)[None], size, mode=mode, antialias=True)[0, : preprocess.channels]


def _borrowed(image: Image.Image) -> Tensor:
    """A picture's own memory, to be read only: uint8 [C, H, W], C being 4 where it has three channels, as Pillow keeps them."""
    try:
        pixels = pyarrow.array(image)
    except ValueError:  # The rows of a very large picture lie in several blocks.
        return _channels_first(image)
    values = torch.from_dlpack(pixels if image.mode == "L" else pixels.values)
    return values.view(image.height, image.width, -1).permute(2, 0, 1)


def _in_channels(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    mode = "L" if preprocess.channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _channels_first(image: Image.Image | np.ndarray) -> Tensor:
    """A copy: uint8 [C, H, W], whose memory still has the channels last."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _centre_box(width: int, height: int, size: int) -> tuple[float, float, float, float]:
    """The square that remains when the shorter side is resized to `size` and the centre cropped, in source pixels.

    Resizing this box is the same as resizing everything and cropping, without the memory that a very long picture would take.
    """
    short = min(width, height)
    resized_width, resized_height = int(size * width / short), int(size * height / short)
    left, top = round((resized_width - size) / 2), round((resized_height - size) / 2)
    x, y = width / resized_width, height / resized_height
    return left * x, top * y, min((left + size) * x, width), min((top + size) * y, height)


def _pad(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    size, long = preprocess.size, max(image.size)
    width, height = (max(1, round(side * size / long)) for side in image.size)
    canvas = Image.new(image.mode, (size, size), "white")
    resized = image.resize((width, height), _OF_PILLOW[preprocess.interpolation])
    canvas.paste(resized, ((size - width) // 2, (size - height) // 2))
    return canvas
