"""Identity of a dataset: a digest of all sample contents, independent of their location and file names.

`Source.fingerprint` does not read images, so two datasets with equal lists share it. Results that outlive the process are
cached under `Source.identity`, which reads every image once: the digest is stored below the data root until the path, size,
inode or a time of an image file changes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from mmcl.data.images.decode import MAX_BYTES, decode
from mmcl.data.sample import ImageLike, Sample
from mmcl.data.stored_rows import rows_of_texts
from mmcl.data.threads import in_threads
from mmcl.errors import UserError
from mmcl.files.atomic import write_file
from mmcl.files.byte_range import FilePart, LocalFile
from mmcl.files.digest import digest
from mmcl.files.root import data_root
from mmcl.progress import progress_bar
from mmcl.rng import hash_integers

_RUN = 256
"""Samples that a thread reads at a time."""

Facts = tuple[object, ...]


class Contents(Protocol):
    """All that an identity covers; every `Source` has it."""

    class_names: Sequence[str] | None
    templates: Sequence[str]
    ids: np.ndarray | None
    scores: np.ndarray | None
    groups: np.ndarray | None
    targets: np.ndarray | None
    target_names: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def identity_of(source: Contents) -> str:
    """Hex digest of a source: the images, captions, other texts and labels of all samples in order, and its `ids`, `scores`,
    `groups`, `targets`, `class_names` and `templates`.

    File names and locations are not included: a copy of a folder, or the same data on a server, has the same identity. Remote
    images are read again when the URL, the size or the server's version of the content, such as an ETag, changes. An unreadable
    image counts as missing.
    """
    in_files = False

    def mark(image: ImageLike) -> Facts:
        nonlocal in_files
        in_files |= _is_marked(image)
        return _mark(image)

    marks = _digest_of(source, mark)
    if not in_files:
        return marks
    kept = data_root(None) / "index" / f"identity-{marks[:32]}.txt"
    with suppress(OSError, ValueError):
        if re.fullmatch("[0-9a-f]{64}", found := kept.read_text()):
            return found
    identity = _digest_of(source, _content)
    with suppress(UserError):  # If the cache cannot be written, the images are read again next time.
        write_file(kept, identity)
    return identity


def content_digest(image: ImageLike) -> str:
    """Hex digest of an image that is in memory, an array or PIL image."""
    return digest(*_content(image))


def spread_rows(size: int, count: int) -> np.ndarray:
    """Returns all rows from 0 to `size` - 1, or about `count` if there are more, in a fixed random choice: int64, ascending."""
    if size <= count:
        return np.arange(size)
    return np.unique(hash_integers(np.arange(count)) % np.uint64(size)).astype(np.int64)


def _digest_of(source: Contents, facts_of: Callable[[ImageLike], Facts]) -> str:
    def of_run(start: int) -> str:
        return digest(*(_sample(source, row, facts_of) for row in range(start, min(start + _RUN, len(source)))))

    starts = range(0, len(source), _RUN)
    runs = progress_bar(in_threads(of_run, starts), total=len(starts), shown=len(starts) > 400, desc="digest", unit="run")
    arrays = (None if array is None else array.tobytes() for array in (source.ids, source.scores))
    groups = () if source.groups is None else ("groups", source.groups.tobytes())
    targets = () if source.targets is None else ("targets", _texts(source.target_names), source.targets.tobytes())
    return digest(len(source), *arrays, *groups, *targets, _texts(source.class_names), _texts(source.templates), *runs)


def _sample(source: Contents, row: int, facts_of: Callable[[ImageLike], Facts]) -> str:
    try:
        sample = source[row].check()
    except UserError:
        return "unusable"
    try:
        image = None if sample.image is None else digest(*facts_of(sample.image))
    except (ValueError, OSError):  # UserError is a ValueError; so is the error for an invalid path.
        image = "unreadable"
    rows = tuple(row.identity for row in (sample.row, *rows_of_texts(sample.captions)) if row is not None)
    return digest(*_texts_and_label(sample), image, *([rows] if rows else []))


def _texts_and_label(sample: Sample) -> Facts:
    label = None if sample.label is None else int(sample.label)
    return _texts(sample.captions), _texts(sample.positives), _texts(sample.negatives), label


def _texts(texts: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if texts is None else tuple(map(str, texts))


def _is_marked(image: ImageLike) -> bool:
    """True if a file can be identified without reading it; for a remote file, if the server gives a version."""
    return isinstance(image, str | Path) or (isinstance(image, FilePart) and bool(image.file.version))


def _mark(image: ImageLike) -> Facts:
    """Identifies a file without reading it, by its path, size, inode and times; all other images by their content."""
    if not _is_marked(image):
        return _content(image)
    if isinstance(image, str | Path):
        return _file_mark(image)
    assert isinstance(image, FilePart)
    file = image.file
    place = _file_mark(file.path) if isinstance(file, LocalFile) else (file.path, file.size, file.version)
    return *place, image.offset, image.size


def _file_mark(path: str | Path) -> Facts:
    stat = os.stat(path)
    return os.path.abspath(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _content(image: ImageLike) -> Facts:
    if isinstance(image, str | Path):
        if not os.path.isfile(image) or os.path.getsize(image) > MAX_BYTES:
            raise ValueError(f"{image} is not a regular file, or is larger than the limit")
        return (Path(image),)
    if isinstance(image, FilePart):
        return (image.read(),)
    if isinstance(image, Image.Image):
        # Grays of more than 8 bits have no levels without a model's intensity setting.
        pixels = image if image.mode.startswith(("F", "I")) else decode(image)
        return pixels.mode, pixels.size, pixels.tobytes()
    if isinstance(image, np.ndarray):
        return image.shape, image.dtype.str, image.tobytes()
    return (image,)
