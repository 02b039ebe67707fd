"""Small images for pages: of a bounded size in pixels and in bytes, whatever the data bring."""

from __future__ import annotations

import base64
import io

from PIL import Image, ImageOps

from mmcl.drawing import contained

SIDE = 128
"""Longest side of a thumbnail of an example, in pixels."""
MAX_BYTES = 8_000
"""Of a thumbnail, before its base64 encoding, which adds a third."""
_QUALITIES = (80, 60, 40, 20, 5, 0)
_THINNEST = 1 / 8


def data_uri(image: Image.Image) -> str:
    """The image as a data URI in WEBP of at most `SIDE` pixels and `MAX_BYTES` bytes.

    A side shorter than an eighth of the other is padded with white to that, so that a banner or a column can be seen at all.

    Example:
        >>> data_uri(Image.new("RGB", (4000, 30), "red"))[:23]
        'data:image/webp;base64,'
    """
    small = contained(_on_white(image), SIDE)
    thinnest = round(max(small.size) * _THINNEST)
    if min(small.size) < thinnest:
        small = ImageOps.pad(small, (max(small.width, thinnest), max(small.height, thinnest)), color="white")
    return f"data:image/webp;base64,{base64.b64encode(_webp(small, MAX_BYTES)).decode()}"


def from_data_uri(uri: str) -> Image.Image:
    """The image of a data URI that `data_uri` made."""
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def square(image: Image.Image, side: int) -> Image.Image:
    """The whole image on a white square."""
    return ImageOps.pad(_on_white(image), (side, side), color="white")


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")


def _webp(image: Image.Image, max_bytes: int) -> bytes:
    """The image at the best quality that fits; the last one fits for every image of `SIDE` pixels."""
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality)
        if buffer.tell() <= max_bytes:
            break
    return buffer.getvalue()
