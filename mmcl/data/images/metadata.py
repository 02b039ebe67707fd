"""Metadata of image files: their removal, as damaged ones may prevent the pixels from being read, and their absence."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JFIF, _EXIF, _ADOBE, _COMMENT, _SCAN = 0xE0, 0xE1, 0xEE, 0xFE, 0xDA
_END = b"\xff\xd9"
_FRAMES = (0xC0, 0xC2)
"""Baseline and progressive."""
_TABLES = (0xC4, 0xDB, 0xDD)
"""Of Huffman codes, of quantization, and how often a decoder may start again."""
_BITS = 8
_JFIF_BYTES = 18
"""Of a JFIF segment without a small picture."""


def without_metadata(file: bytes) -> bytes | None:
    """Returns the pixel data and intact EXIF data of a PNG or JPEG file; None for other files."""
    if file.startswith(_PNG):
        return _bare_png(file)
    return _bare_jpeg(file) if file.startswith(_JPEG) else None


def _bare_png(file: bytes) -> bytes:
    kept, at = [_PNG], len(_PNG)
    while at + 8 <= len(file):
        length, kind = int.from_bytes(file[at : at + 4], "big"), file[at + 4 : at + 8]
        chunk = file[at : at + 12 + length]
        is_whole = zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:] if kind == b"eXIf" else kind in _PNG_PIXELS
        if is_whole:
            kept.append(chunk)
        at += 12 + length
    return b"".join(kept)


def _bare_jpeg(file: bytes) -> bytes:
    """Removes application segments and comments, except those of JFIF and Adobe, which state the color space."""
    kept, end = [_JPEG], len(_JPEG)
    for marker, segment in _segments(file):
        end += len(segment)
        is_metadata = (_JFIF < marker <= 0xEF and marker != _ADOBE) or marker == _COMMENT
        if not is_metadata or (marker == _EXIF and segment[4:10] == b"Exif\0\0"):
            kept.append(segment)
    return b"".join(kept) + file[end:]


def is_bare_jpeg(file: bytes) -> bool:
    """Whether a file is a JPEG that every browser shows, gray or color, with nothing in it but the pixels: no camera data, no
    comment, no profile, no small picture, nothing behind the end."""
    segments = list(_segments(file))
    scans = len(_JPEG) + sum(len(segment) for _, segment in segments)
    if not file.startswith(_JPEG) or file.find(_END, scans) != len(file) - len(_END):
        return False
    jfif = [segment for marker, segment in segments if marker == _JFIF]
    frames = [segment for marker, segment in segments if marker in _FRAMES]
    return (
        all(marker in (_JFIF, *_FRAMES, *_TABLES) for marker, _ in segments)
        and list(map(len, jfif)) == [_JFIF_BYTES]
        and [segment[9] for segment in frames if segment[4] == _BITS] in ([1], [3])  # channels
    )


def _segments(file: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the segments of a JPEG file before its first scan: their markers, and what they are with marker and length."""
    at = len(_JPEG)
    while at + 4 <= len(file) and file[at] == 0xFF and file[at + 1] != _SCAN:
        end = at + 2 + int.from_bytes(file[at + 2 : at + 4], "big")
        yield file[at + 1], file[at:end]
        at = end
