"""Images that two sources share, byte for byte."""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from mmcl.data.identity import content_digest
from mmcl.data.sample import ImageLike
from mmcl.data.source import Source
from mmcl.data.threads import in_threads
from mmcl.errors import UserError
from mmcl.files.byte_range import FilePart
from mmcl.files.digest import digest

Key = tuple[str, int]


def shared_images(one: Source, other: Source) -> list[int]:
    """Returns the rows of one source whose image, byte for byte, is in another too; ascending.

    Only files whose sizes are in both are read.
    """
    ours, theirs = _by_size(one), _by_size(other)
    sizes = ours.keys() & theirs.keys()
    there = set(_digests(other, [row for size in sizes for row in theirs[size]]).values())
    here = _digests(one, [row for size in sizes for row in ours[size]])
    return sorted(row for row, found in here.items() if found is not None and found in there)


def _by_size(source: Source) -> dict[Key, list[int]]:
    rows: dict[Key, list[int]] = defaultdict(list)
    for row in range(len(source)):
        image = source[row].image
        if image is not None and (key := _size(image)) is not None:
            rows[key].append(row)
    return rows


def _size(image: ImageLike) -> Key | None:
    """What is equal for equal images, and found without reading a file."""
    if isinstance(image, str | Path):
        with suppress(OSError):
            return "bytes", os.stat(image).st_size
        return None
    if isinstance(image, FilePart):
        return "bytes", image.size
    if isinstance(image, bytes):
        return "bytes", len(image)
    return "pixels", len(getattr(image, "tobytes", bytes)())


def _digests(source: Source, rows: list[int]) -> dict[int, str | None]:
    def read(place: int) -> str | None:
        return _digest(source[rows[place]].image)

    return dict(zip(rows, in_threads(read, range(len(rows))), strict=True))


def _digest(image: ImageLike | None) -> str | None:
    try:
        if isinstance(image, str | Path):
            return digest(Path(image).read_bytes())
        if isinstance(image, FilePart):
            return digest(image.read())
        return None if image is None else digest(image) if isinstance(image, bytes) else content_digest(image)
    except (OSError, UserError):
        return None
