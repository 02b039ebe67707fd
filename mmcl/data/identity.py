"""The identity of a dataset: a digest of all that its samples show, wherever they lie and whatever they are called.

`Source.fingerprint` reads no image, so that two datasets under equal lists have the same one. Results that outlive the process
are kept under `Source.identity`, which reads every image once: the digest is kept below the data root until the path, size,
inode or a time of some image file changes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmcl.data.images.decode import MAX_BYTES, decode
from mmcl.data.images.image_cache import in_threads
from mmcl.data.source import ImageLike, Sample, Source
from mmcl.errors import UserError
from mmcl.files.atomic import write_file
from mmcl.files.byte_range import FilePart, LocalFile
from mmcl.files.digest import digest
from mmcl.files.root import data_root
from mmcl.rng import hash_integers

_RUN = 256
"""Samples that a thread reads at a time."""

Facts = tuple[object, ...]


def identity_of(source: Source) -> str:
    """Hex digest of a source: the images, captions, other texts and labels of all samples in their order, and its `ids`,
    `scores`, `class_names` and `templates`.

    Names and places of files are no part of it: a copied folder is the same data, and so is one on a server, whose images are
    read again when the URL, the size or the server's mark of the content, such as an ETag, is new. An image that cannot be read
    counts as missing.
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
    with suppress(UserError):  # Where nothing can be written, the images are read again next time.
        write_file(kept, identity)
    return identity


def spread_rows(size: int, count: int) -> np.ndarray:
    """All rows from 0 to `size` - 1, or about `count` of more, drawn once and for all: int64, ascending."""
    if size <= count:
        return np.arange(size)
    return np.unique(hash_integers(np.arange(count)) % np.uint64(size)).astype(np.int64)


def _digest_of(source: Source, facts_of: Callable[[ImageLike], Facts]) -> str:
    def of_run(start: int) -> str:
        return digest(*(_sample(source, row, facts_of) for row in range(start, min(start + _RUN, len(source)))))

    starts = range(0, len(source), _RUN)
    runs = tqdm(in_threads(of_run, starts), "digest", len(starts), unit="run", disable=None if len(starts) > 400 else True)
    arrays = (None if array is None else array.tobytes() for array in (source.ids, source.scores))
    return digest(len(source), *arrays, _texts(source.class_names), _texts(source.templates), *runs)


def _sample(source: Source, row: int, facts_of: Callable[[ImageLike], Facts]) -> str:
    try:
        sample = source[row].check()
    except UserError:
        return "unusable"
    try:
        image = None if sample.image is None else digest(*facts_of(sample.image))
    except (ValueError, OSError):  # A UserError is a ValueError, and so is a path that no system takes.
        image = "unreadable"
    return digest(*_said(sample), image)


def _said(sample: Sample) -> Facts:
    label = None if sample.label is None else int(sample.label)
    return _texts(sample.captions), _texts(sample.positives), _texts(sample.negatives), label


def _texts(texts: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if texts is None else tuple(map(str, texts))


def _is_marked(image: ImageLike) -> bool:
    """True if a file can be told from another without reading it: by a server's mark, where it gives one."""
    return isinstance(image, str | Path) or (isinstance(image, FilePart) and bool(image.file.version))


def _mark(image: ImageLike) -> Facts:
    """What tells without reading a file that it is the one that was read before; of all else, the content."""
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
            raise ValueError(f"{image} is nothing that is decoded, and must not be read: it may be a pipe, or have no end")
        return (Path(image),)
    if isinstance(image, FilePart):
        return (image.read(),)
    if isinstance(image, Image.Image):
        # Greys beyond 8 bits have no levels but by a model's intensity.
        pixels = image if image.mode.startswith(("F", "I")) else decode(image)
        return pixels.mode, pixels.size, pixels.tobytes()
    if isinstance(image, np.ndarray):
        return image.shape, image.dtype.str, image.tobytes()
    return (image,)
