"""What an index keeps of an image beside its vector: size, date and a small picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from PIL import Image
from torch import Tensor

from mmcl.data.images.bands import decode_to_show
from mmcl.data.images.decode import SCALES, opened
from mmcl.data.images.levels import File, read_file
from mmcl.data.images.metadata import is_bare_jpeg
from mmcl.data.images.tensors import read_pixels, to_tensor
from mmcl.data.sample import ImageLike
from mmcl.drawing import contained
from mmcl.files.byte_range import FilePart
from mmcl.preprocess import Preprocess

_THUMB_BYTES = 16 * 1024
"""Most bytes of a file that is its own small picture."""
THUMB = 256
"""Longest side of the small picture, in pixels."""
_QUALITY = 80
"""Of JPEG. WebP of the same size is hardly better, and takes nine times as long, more than reading the image."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts about one image.

    Attributes:
        width, height: of the upright image, in pixels.
        taken: date of the photograph, without a zone; None if not known.
        thumb: the image at no more than 256 pixels a side, as JPEG; None if it was not asked for.
    """

    width: int
    height: int
    taken: datetime | None
    thumb: bytes | None = None


def read_with_facts(image: ImageLike, name: str, preprocess: Preprocess, *, thumb: bool) -> tuple[Tensor, ImageFacts]:
    """Reads an image as `read_pixels` does, and the facts about it, as `read_facts` does.

    A file is decoded once, unless the model has it shrunk while it is decoded. Raises UserError with its name if it cannot be
    read.
    """
    is_file = isinstance(image, str | Path | bytes | FilePart)
    if not is_file or preprocess.channels not in (1, 3) or preprocess.shrink_on_load:
        return read_pixels(image, preprocess, name=name), read_facts(image, name, preprocess, thumb=thumb)
    with opened(image, name=name, intensity=preprocess.intensity) as stored:
        width, height, taken = stored.width, stored.height, stored.taken
        pixels = stored.pixels()
        return to_tensor(pixels, preprocess), ImageFacts(width, height, taken, _thumb(image, pixels) if thumb else None)


def read_facts(image: ImageLike, name: str, preprocess: Preprocess | None, *, thumb: bool) -> ImageFacts:
    """Reads the facts about an image. Raises UserError with its name if it cannot be read.

    Args:
        image: the image.
        name: for the message.
        preprocess: preprocessing of the model whose levels and bands are shown, if any.
        thumb: whether to make the small picture.
    """
    channels, intensity = (3, None) if preprocess is None else (preprocess.channels, preprocess.intensity)
    if channels not in (1, 3):
        shown = decode_to_show(image, name=name, channels=channels, intensity=intensity)
        return ImageFacts(shown.width, shown.height, None, to_thumb(shown) if thumb else None)
    with opened(image, name=name, intensity=intensity) as stored:
        width, height, taken = stored.width, stored.height, stored.taken
        spare = max(width, height) / THUMB if stored.may_shrink else 1
        scale = max((scale for scale in SCALES if scale <= spare), default=1)
        return ImageFacts(width, height, taken, _thumb(image, stored.pixels(scale)) if thumb else None)


def _thumb(image: ImageLike, pixels: Image.Image) -> bytes:
    """The small picture of an image with these pixels: the file itself, if it is one already."""
    if max(pixels.size) <= THUMB and isinstance(image, File):
        content = read_file(image)
        if len(content) <= _THUMB_BYTES and is_bare_jpeg(content):
            return content
    return to_thumb(pixels)


def to_thumb(image: Image.Image) -> bytes:
    """Encodes an image of mode "RGB" or "L", of at most 256 pixels a side: JPEG."""
    return to_jpeg(image, THUMB, _QUALITY)


def to_jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    """Encodes an image of mode "RGB" or "L", of at most `side` pixels a side: JPEG, without metadata."""
    if max(image.size) > side:
        image = contained(image, side, resample=Image.Resampling.BILINEAR)
    written = io.BytesIO()
    image.save(written, "JPEG", quality=quality, comment="")  # or that of the file is taken over
    return written.getvalue()
