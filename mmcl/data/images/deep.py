"""Reading of images of more than 8 bits that Pillow truncates, rescales or cannot open."""

from __future__ import annotations

import io
import math
import sys
import zlib
from typing import Any, TypeGuard

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from mmcl.data.images.levels import check_shape
from mmcl.errors import UserError, first_line, how_to_install

_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Opposite byte order of big-endian, little-endian and native."""
_COLORS = ("RGB", "RGBA", "RGBX", "CMYK", "LAB")
_BITS, _LAYOUT, _IN_PLANES = 258, 284, 2
"""TIFF tags for bits per channel and planar configuration, and the latter's value for separate planes."""
_DEFLATED = (8, 32946)
"""TIFF compressions with ratios of up to a thousand that tifffile decompresses itself."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_tiff(file: bytes) -> bool:
    """True if an encoded image is a TIFF file."""
    return file.startswith(_TIFF)


def is_deep(stored: Image.Image) -> TypeGuard[ImageFile]:
    """True if Pillow will not return the stored values of an opened image; known from the header, before decoding."""
    if not isinstance(stored, ImageFile) or not stored.tile:
        return False
    if stored.format == "PPM":
        return _top(stored) > 255
    return is_misread(stored) or (stored.mode in _COLORS and ";16" in _raw_mode(stored))


def is_misread(stored: Image.Image) -> bool:
    """True if Pillow reads each byte of an opened 16-bit TIFF file as a pixel, as it does for separate planes."""
    if not isinstance(stored, TiffImageFile) or stored.mode not in _COLORS:
        return False
    return max(stored.tag_v2.get(_BITS, (8,))) > 8 and ";16" not in _raw_mode(stored)


def read_deep(file: bytes, stored: ImageFile, name: str) -> np.ndarray:
    """Reads the stored values of an image for which `is_deep` is true, and which is not loaded yet.

    Returns:
        uint16 [H, W] or [H, W, C]; with C = 2 or 4, the last channel is transparency.

    Raises:
        UserError: this kind of file cannot be read at full depth.
    """
    if isinstance(stored, TiffImageFile) and stored.tag_v2.get(_LAYOUT) == _IN_PLANES:
        return read_tiff(file, name, stored.width * stored.height)
    channels, _, order = _raw_mode(stored).partition(";16")
    if stored.format == "PPM":
        return _from_ppm(file, stored, name)
    if channels == "LA":
        # Makes Pillow treat the two bytes of each value as separate channels.
        return _decoded(file, stored, "RGBA").view(">u2").astype(np.uint16)
    if channels not in ("RGB", "RGBA", "RGBX"):
        raise UserError(f"{name}: an image of {channels} in 16 bits cannot be read with an intensity; save it as PNG")
    # Pillow keeps the high byte of every value, according to the given byte order.
    low = _decoded(file, stored, f"{channels};16{_OTHER_ORDER[order]}").astype(np.uint16)
    values = (_decoded(file, stored, _raw_mode(stored)).astype(np.uint16) << 8) | low
    invisible = stored.info.get("transparency")
    if isinstance(invisible, tuple):
        alpha = np.where((values == invisible).all(axis=2, keepdims=True), 0, 65535)
        return np.concatenate([values, alpha.astype(np.uint16)], axis=2)
    return values[..., :3] if channels == "RGBX" else values


def read_tiff(file: bytes, name: str, max_pixels: int, *, pages: bool = False) -> np.ndarray:
    """Reads the values of a TIFF file: [H, W, C].

    Args:
        file: the encoded image.
        name: name in error messages.
        max_pixels: see `check_shape`.
        pages: whether pages of equal size are channels; else the first page is the image.

    Raises:
        UserError: tifffile is missing, or the file cannot be read.
    """
    try:
        import tifffile
    except ImportError:
        raise UserError(
            f"{name}: a TIFF file of many bands, or of 16 bits in planes, needs tifffile: {how_to_install('tiff')}"
        ) from None
    try:
        with tifffile.TiffFile(io.BytesIO(file)) as tiff:
            image = tiff.series[0] if pages else tiff.pages.first
            check_shape(image.shape, max_pixels)
            for page in (image.pages or ()) if isinstance(image, tifffile.TiffPageSeries) else [image]:
                _check_strips(page, max_pixels)
            values, axes = image.asarray(), image.axes
        height, width = (values.shape[axes.index(axis)] for axis in "YX")
        return np.moveaxis(values, [axes.index("Y"), axes.index("X")], [0, 1]).reshape(height, width, -1)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Exception as error:  # Damaged files make the parser raise almost anything.
        fix = ": pip install imagecodecs" if "imagecodecs" in str(error) else ""
        raise UserError(f"{name}: cannot be decoded: {first_line(error)}{fix}") from error


def _check_strips(page: Any, max_pixels: int) -> None:
    """Raises UserError if a strip or tile unpacks to more than its pixels, since tifffile unpacks all of it."""
    check_shape(page.chunks, max_pixels)
    if page.compression not in _DEFLATED:
        return
    size = math.prod(page.chunks) * page.dtype.itemsize
    for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        page.parent.filehandle.seek(offset)
        unpacked = zlib.decompressobj().decompress(page.parent.filehandle.read(length), size + 1)
        if len(unpacked) > size:
            raise UserError(f"a strip of the image unpacks to more than its {size} bytes")


def _decoded(file: bytes, stored: ImageFile, raw_mode: str) -> np.ndarray:
    """Decodes an image with a raw mode other than the file's: uint8 [H, W, C]."""
    with Image.open(io.BytesIO(file), formats=[str(stored.format)]) as image:
        image.tile = [
            tile._replace(args=raw_mode if isinstance(tile.args, str) else (raw_mode, *(tile.args or ())[1:]))
            for tile in image.tile
        ]
        image.info.pop("transparency", None)
        return np.asarray(image)


def _from_ppm(file: bytes, stored: ImageFile, name: str) -> np.ndarray:
    """Reads PNM values as stored; Pillow would rescale the header's largest value to 16 bits."""
    if stored.tile[0].codec_name != "ppm":
        raise UserError(f"{name}: a plain-text PNM file of more than 8 bits cannot be read with an intensity; save it as PNG")
    shape = (stored.height, stored.width) + ((3,) if stored.mode == "RGB" else ())
    values = np.frombuffer(file, ">u2", int(np.prod(shape)), stored.tile[0].offset)
    return values.astype(np.uint16).reshape(shape)


def _raw_mode(stored: ImageFile) -> str:
    args = stored.tile[0].args if stored.tile else None
    return str(args[0]) if isinstance(args, tuple) else str(args)


def _top(stored: ImageFile) -> int:
    """Largest value that a PNM header allows."""
    args = stored.tile[0].args
    return int(args[1]) if isinstance(args, tuple) and len(args) > 1 else 0
