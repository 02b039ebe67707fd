"""A collection as `sync` sees it: its images in order, each with the state of its file, and the columns of the user's own."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from mmcl.data.identity import content_digest
from mmcl.data.names import relative, unique
from mmcl.data.open import guess_source, open_source
from mmcl.data.sample import ImageLike, Sample
from mmcl.data.source import SampleList, Source
from mmcl.data.sources.tables.table_file import read_table, without_problems
from mmcl.errors import UserError
from mmcl.files.byte_range import FilePart, LocalFile
from mmcl.files.digest import digest
from mmcl.files.listing import suffix_of, valid_name
from mmcl.search.arrow import TYPES, kind_of
from mmcl.search.items import Kind, check_columns, id_of
from mmcl.terminal import listed

Given = str | Path | Sequence[str | Path] | Source
_NAMES = ("image", "path", "file", "filename", "file_name")
"""Names of the column of a table of own columns that names the image."""
NOWHERE = (-1, 0, 0)
_SMALL_BYTES = 2**15
_JPEG, _JPEG_SUFFIXES = b"\xff\xd8", (".jpg", ".jpeg")
_FORMS: Sequence[tuple[Kind, re.Pattern[str], Callable[[str], Any]]] = (
    ("whole", re.compile(r"[-+]?\d{1,18}"), int),
    ("number", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"), float),
    ("truth", re.compile("true|false"), lambda text: text == "true"),
    ("date", re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?)?"), datetime.fromisoformat),
)
"""Kinds of the cells of a text file, by their form."""


class Entry(NamedTuple):  # made for every image, and three times as fast as a frozen dataclass
    """One image of a collection.

    Attributes:
        id, path: as in `Item`.
        sample: the image and its captions, not yet decoded.
        look: size in bytes, and mtime and ctime in nanoseconds, of its file; `NOWHERE` if it is not there, None if it has no
            file, so that only its content tells whether it has changed.
        label: name of its class, or None.
        meta: columns of the user's own.
        file: content of the image's file, if it has been read.
    """

    id: str
    path: str
    sample: Sample
    look: tuple[int, int, int] | None
    label: str | None
    meta: Mapping[str, Any]
    file: bytes | None = None

    @property
    def image(self) -> ImageLike | None:
        """The image, from memory if its file has been read."""
        return self.sample.image if self.file is None else self.file

    @property
    def digest(self) -> bytes:
        """Digest of the texts and columns."""
        if self.meta:
            return bytes.fromhex(digest(self.sample.captions, self.label, sorted(self.meta.items())))
        return _digest_of_texts(tuple(self.sample.captions), self.label)


@lru_cache(2**12)
def _digest_of_texts(captions: tuple[str, ...], label: str | None) -> bytes:
    """Digest without columns; most images of a folder without captions have the same one."""
    return bytes.fromhex(digest(captions, label, []))


@dataclass(frozen=True)
class Collection:
    """A collection of images.

    Attributes:
        source: the images; None if there are none any more.
        name: for messages; the path as it was given, if it is one.
        root: absolute folder that paths are relative to, ending in "/"; "" if there is none.
        kind: name of the source of `path`, such as "folder"; "" for a source or a list that was given.
        columns: own columns, by path; `column_kinds` has their types.
        unreadable: folders that cannot be listed, relative to the root, with the reason.
    """

    source: Source | None
    name: str
    root: str = ""
    kind: str = ""
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    column_kinds: Mapping[str, Kind] = field(default_factory=dict)
    unreadable: Sequence[tuple[str, str]] = ()

    def __iter__(self) -> Iterator[Entry]:
        source = self.source
        if source is None:
            return
        names, samples = itertools.tee(map(source.__getitem__, range(len(source))))
        paths = unique(relative(sample.name, source.places) for sample in names)
        for sample, path in zip(samples, paths, strict=True):
            label = None if sample.label is None or source.class_names is None else str(source.class_names[sample.label])
            yield Entry(id_of(path), path, sample, look_of(sample.image), label, self.columns.get(path, {}))

    def __len__(self) -> int:
        return 0 if self.source is None else len(self.source)


def open_collection(given: Given, *, kind: str = "", columns: str | Path | None = None) -> Collection:
    """Opens a collection. One whose folder is missing or empty has no source.

    Args:
        given: a folder or table of images, a list of image files, or a source.
        kind: name of the source that reads a folder or table; by default it is found out.
        columns: a table of own columns; its column `image` or `path` names images as `Item.path` does.

    Raises:
        UserError: the collection cannot be read.
    """
    own, kinds = ({}, {}) if columns is None else read_columns(Path(columns))
    if isinstance(given, Source):
        place = given.places[0] if given.places else ""
        root = _folder(place) if place.endswith("/") and os.path.isdir(place) else ""
        return Collection(given, "the collection", root, "", own, kinds)
    if not isinstance(given, str | Path):
        return Collection(FileList(given) if given else None, "the collection", "", "", own, kinds)
    name, place = str(given), os.path.expanduser(str(given))
    if kind == "folder" and not _has_anything(place):
        return Collection(None, name, _folder(place), kind, own, kinds)
    kind = kind or guess_source(place)
    source = open_source(kind, place)
    root = _folder(place) if os.path.isdir(place) else ""
    return Collection(source, name, root, kind, own, kinds, getattr(source, "unreadable", ()))


class FileList(SampleList):
    """A list of image files."""

    def __init__(self, paths: Sequence[str | Path]):
        self._samples = [Sample(valid_name(path), Path(path)) for path in paths]

    @property
    def fingerprint(self) -> str:
        return digest([sample.name for sample in self._samples])


def look_of(image: ImageLike | None) -> tuple[int, int, int] | None:
    """Returns the state of an image's file; see `Entry`."""
    if isinstance(image, str | Path):
        place, size = str(image), -1
    elif isinstance(image, FilePart):
        if not isinstance(image.file, LocalFile):
            return image.size, int(digest(image.file.version)[:15], 16), image.offset
        place, size = image.file.path, image.size
    else:
        return NOWHERE if image is None else None
    try:
        stat = os.stat(place)
    except OSError:
        return NOWHERE
    return stat.st_size if size < 0 else size, stat.st_mtime_ns, stat.st_ctime_ns


def with_small_file(entry: Entry) -> Entry:
    """Returns an entry with the content of its file, if that is a small JPEG: opening it costs as much as decoding it, and
    hash, pixels and small picture all need it."""
    image = entry.sample.image
    is_small = entry.look is not None and 0 < entry.look[0] <= _SMALL_BYTES
    if not (is_small and isinstance(image, str | Path) and suffix_of(str(image)) in _JPEG_SUFFIXES):
        return entry
    try:
        with open(image, "rb") as file:
            content = file.read()
    except OSError:
        return entry  # Whatever reads it next says why it cannot be read.
    return entry._replace(file=content) if content.startswith(_JPEG) else entry


def sha_of(image: ImageLike | None) -> bytes | None:
    """Returns the SHA-256 of an image's bytes, or of its pixels in memory; None if it cannot be read."""
    try:
        if isinstance(image, str | Path):
            with open(image, "rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        if isinstance(image, FilePart):
            image = image.read()
        if isinstance(image, bytes):
            return hashlib.sha256(image).digest()
        return None if image is None else bytes.fromhex(content_digest(image))
    except (OSError, UserError):
        return None


def read_columns(table: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Kind]]:
    """Reads own columns from a table: by path, and the type of each.

    Raises:
        UserError: the table cannot be read, no column names the images, or a column has a name or type that own ones cannot
            have.
    """
    content, problems = without_problems(read_table(table))
    if problems:
        row, reason = next(iter(problems.items()))
        raise UserError(f"{table}, row {row + 1}: {reason}")
    key = next((name for name in _NAMES if name in content.column_names), None)
    if key is None:
        raise UserError(f"{table}: no column names the images; call one of them image (it has {listed(content.column_names)})")
    names = [name for name in content.column_names if name != key]
    check_columns(names, str(table))
    kinds: dict[str, Kind] = {}
    cells: dict[str, list[Any]] = {}
    for name in names:
        kind = kind_of(content[name].type)
        if kind is None:
            raise UserError(f"{table}: column {name} is of type {content[name].type}; give texts, numbers, dates, ...")
        kinds[name], cells[name] = (
            _typed(content[name]) if kind == "text" else (kind, content[name].cast(TYPES[kind]).to_pylist())
        )
    rows: dict[str, dict[str, Any]] = {}
    for row, path in enumerate(content[key].to_pylist()):
        if str(path) in rows:
            raise UserError(f"{table}: {path} has several rows; give each image one")
        rows[str(path)] = {name: cells[name][row] for name in names}
    return rows, kinds


def _typed(column: pa.ChunkedArray) -> tuple[Kind, list[Any]]:
    """Returns the kind that all texts of a column can be read as, and its values; an empty cell is missing."""
    cells = [text or None for text in column.to_pylist()]
    given = [text for text in cells if text is not None]
    for kind, form, value in _FORMS:
        if given and all(form.fullmatch(text) for text in given):
            with suppress(ValueError):
                return kind, [None if text is None else value(text) for text in cells]
    return "text", cells


def _folder(place: str) -> str:
    return valid_name(os.path.abspath(place)).rstrip("/") + "/"


def _has_anything(folder: str) -> bool:
    with suppress(OSError), os.scandir(folder) as entries:
        return any(not entry.name.startswith(".") for entry in entries)
    return False
