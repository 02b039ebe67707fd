"""From an untrusted file to upright RGB or grey pixels, within bounds, and from those to a model's input.

The header is checked before a pixel is decoded, only the parsers of common formats are tried, and whatever goes wrong in them
is one `UserError` that names the file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmcl.data.file_part import FilePart
from mmcl.data.source import ImageLike
from mmcl.errors import UserError, first_line
from mmcl.types import Preprocess

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""The Pillow parsers that are tried. Others (PSD, FITS, PDF, EPS, ...) are rare in data sets and had the security holes."""

MAX_PIXELS = 64_000_000
MAX_BYTES = 256 * 2**20

Box = tuple[float, float, float, float]
"""A part of a picture: left, top, right, bottom in pixels."""

_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
_INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def decode(
    image: ImageLike, *, name: str | None = None, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> Image.Image:
    """Reads a picture: first frame, upright by its EXIF orientation, transparency on white, 16 bits per channel cut to 8.

    Args:
        image: a path, an encoded file or its place in another, a PIL image, or uint8 [H, W] or [H, W, C] with C = 1, 3 or 4.
        name: what an error message calls it; by default its path.
        max_pixels: most width x height, checked in the header before anything is decoded.
        max_bytes: largest encoded file.

    Returns:
        A PIL image of mode "RGB" or "L".

    Raises:
        UserError: the file is missing, too large, truncated, corrupt, or in none of `FORMATS`.
    """
    name = name or (str(image) if isinstance(image, str | Path) else "image")
    with _checked(image, name, max_pixels, max_bytes) as opened:
        opened.load()
        orientation = opened.getexif().get(_ORIENTATION_TAG)
        upright = opened.transpose(_TO_UPRIGHT[orientation]) if orientation in _TO_UPRIGHT else opened
        return _to_rgb_or_grey(upright, name)


def measure(image: ImageLike, *, name: str) -> tuple[int, int]:
    """Width and height by the header alone, as stored. Raises UserError where `decode` would, pixels excepted."""
    with _checked(image, name, MAX_PIXELS, MAX_BYTES) as opened:
        return opened.width, opened.height


@contextmanager
def _checked(image: ImageLike, name: str, max_pixels: int, max_bytes: int) -> Iterator[Image.Image]:
    """A picture whose header is within the bounds; what its parser raises in the block becomes a `UserError`."""
    if isinstance(image, np.ndarray):
        image = _from_array(image, name)
    try:
        with _open(image, name, max_bytes) as opened:
            if opened.width * opened.height > max_pixels:
                raise UserError(f"{name}: {opened.width} x {opened.height} pixels, more than the limit of {max_pixels}")
            yield opened
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UserError(f"{name}: not a picture, or in none of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # Hostile files make Pillow's parsers raise almost anything.
        raise UserError(f"{name}: cannot be decoded: {first_line(error)}") from error


def to_tensor(image: Image.Image, preprocess: Preprocess, *, box: Box | None = None) -> Tensor:
    """Resizes a decoded picture to a model's input, before normalisation.

    Args:
        image: of mode "RGB" or "L", as `decode` returns it.
        preprocess: size, channels, interpolation (with antialiasing) and what to do with other aspects.
        box: the part to be resized, whatever `preprocess.resize` says; for random resized crops.

    Returns:
        uint8 [C, size, size].
    """
    mode = "L" if preprocess.channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if box is None and preprocess.resize == "pad":
        image = _pad(image, preprocess)
    else:
        if box is None and preprocess.resize == "shortest":
            box = _centre_box(image.width, image.height, preprocess.size)
        size = (preprocess.size, preprocess.size)
        image = image.resize(size, _INTERPOLATION[preprocess.interpolation], box=box)
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if mode == "L" else pixels.permute(2, 0, 1).contiguous()


def read_pixels(image: ImageLike, preprocess: Preprocess, *, name: str | None = None) -> Tensor:
    """`decode` and `to_tensor` in one: uint8 [C, size, size]. An array that has the model's size already is taken as it is."""
    shape = (preprocess.size, preprocess.size, 3)[: 2 if preprocess.channels == 1 else 3]
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == shape:
        pixels = torch.from_numpy(np.array(image))
        return pixels[None] if preprocess.channels == 1 else pixels.permute(2, 0, 1)
    return to_tensor(decode(image, name=name), preprocess)


def _open(image: Path | str | bytes | FilePart | Image.Image, name: str, max_bytes: int) -> AbstractContextManager[Image.Image]:
    if isinstance(image, Image.Image):
        return nullcontext(image)  # It is the caller's, who may want its other frames.
    if isinstance(image, FilePart):
        size = image.size
    elif isinstance(image, bytes):
        size = len(image)
    else:
        path = Path(image)
        if not path.is_file():
            raise UserError(f"{name}: is not a file" if path.exists() else f"{name}: no such file")
        size = path.stat().st_size
    if size > max_bytes:
        raise UserError(f"{name}: {size} bytes, more than the limit of {max_bytes}")
    if size == 0:
        raise UserError(f"{name}: the file is empty")
    if isinstance(image, FilePart):
        image = image.read()
    return Image.open(io.BytesIO(image) if isinstance(image, bytes) else image, formats=FORMATS)


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)) or array.size == 0:
        raise UserError(
            f"{name}: an array must be uint8 [H, W] or [H, W, C] with C = 1, 3 or 4, not {array.dtype} {list(array.shape)}"
        )
    return Image.fromarray(array)


def _to_rgb_or_grey(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise UserError(f"{name}: floating-point pixels have no known range; save it with 8 bits per channel")
    if image.mode.startswith("I"):
        return _sixteen_to_eight_bits(image, name)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        grey = image.mode in ("L", "LA", "La")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("L" if grey else "RGB")
    mode = "L" if image.mode in ("1", "L") else "RGB"
    return image.copy() if image.mode == mode else image.convert(mode)


def _sixteen_to_eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Greys of 0 to 65535, as in 16-bit PNG and TIFF files; Pillow's own conversion would clip them at 255."""
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
        raise UserError(f"{name}: greys beyond 16 bits ({grey.min()} to {grey.max()}); save it with 8 or 16 bits per channel")
    return Image.fromarray((grey // 257).astype(np.uint8))


def _centre_box(width: int, height: int, size: int) -> Box:
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
    resized = image.resize((width, height), _INTERPOLATION[preprocess.interpolation])
    canvas.paste(resized, ((size - width) // 2, (size - height) // 2))
    return canvas
