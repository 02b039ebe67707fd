"""Removal of damaged metadata from image files, which may prevent the pixels from being read."""

from __future__ import annotations

import zlib

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JFIF, _EXIF, _ADOBE, _COMMENT, _SCAN = 0xE0, 0xE1, 0xEE, 0xFE, 0xDA


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
    kept, at = [_JPEG], len(_JPEG)
    while at + 4 <= len(file) and file[at] == 0xFF and file[at + 1] != _SCAN:
        marker, length = file[at + 1], int.from_bytes(file[at + 2 : at + 4], "big")
        segment = file[at : at + 2 + length]
        is_metadata = (_JFIF < marker <= 0xEF and marker != _ADOBE) or marker == _COMMENT
        if not is_metadata or (marker == _EXIF and segment[4:10] == b"Exif\0\0"):
            kept.append(segment)
        at += 2 + length
    return b"".join(kept) + file[at:]
