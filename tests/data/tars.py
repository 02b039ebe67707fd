"""Tar shards for tests, written with the standard library."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 6, 4


def picture(gray: int = 128) -> bytes:
    """A PNG file of one gray."""
    buffer = io.BytesIO()
    Image.new("L", (WIDTH, HEIGHT), gray).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]], *, format: int = tarfile.PAX_FORMAT) -> Path:
    """Members in the given order; a list may name one twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pairs(first: int, stop: int) -> dict[str, bytes]:
    """Images of gray 0, 1, ... and captions that say it."""
    return {
        f"{number:04}.{suffix}": content
        for number in range(first, stop)
        for suffix, content in (("png", picture(number)), ("txt", f"gray {number}\nthe gray of {number}".encode()))
    }
