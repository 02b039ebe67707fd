"""What an index keeps of an image beside its vector: size, date and a small picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import datetime

from PIL import Image

from mmcl.data.images.bands import decode_to_show
from mmcl.data.images.decode import SCALES, opened
from mmcl.data.sample import ImageLike
from mmcl.drawing import contained
from mmcl.preprocess import Preprocess

THUMB = 256
"""Longest side of the small picture, in pixels."""
_QUALITY, _EFFORT = 75, 0
"""Of WebP. More effort saves a tenth of the bytes, and takes several times as long as reading the image."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts about one image.

    Attributes:
        width, height: of the upright image, in pixels.
        taken: date of the photograph, without a zone; None if not known.
        thumb: the image at no more than 256 pixels a side, as WebP; None if it was not asked for.
    """

    width: int
    height: int
    taken: datetime | None
    thumb: bytes | None = None


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
        return ImageFacts(shown.width, shown.height, None, _thumb(shown) if thumb else None)
    with opened(image, name=name, intensity=intensity) as stored:
        width, height, taken = stored.width, stored.height, stored.taken
        spare = max(width, height) / THUMB if stored.may_shrink else 1
        scale = max((scale for scale in SCALES if scale <= spare), default=1)
        return ImageFacts(width, height, taken, _thumb(stored.pixels(scale)) if thumb else None)


def _thumb(image: Image.Image) -> bytes:
    if max(image.size) > THUMB:
        image = contained(image, THUMB, resample=Image.Resampling.BILINEAR)
    written = io.BytesIO()
    image.save(written, "WEBP", quality=_QUALITY, method=_EFFORT)
    return written.getvalue()
