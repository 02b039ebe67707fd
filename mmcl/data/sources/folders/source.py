"""A folder of images, described by a captions file, by a text file beside each image, or by class subfolders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmcl.data.source import Sample, Source, required_path
from mmcl.data.sources.folders.captions_file import Described, ImageNames, possible_captions_files, read_captions_file
from mmcl.data.sources.folders.layout import Layout, by_argument, find_layout
from mmcl.data.sources.sidecar import MAX_TEXT_BYTES, RECORD_SUFFIX, find_sidecars, read_captions
from mmcl.data.sources.tables.column_names import is_missing, number_labels
from mmcl.data.usage import Usage, count_unused, counts_to_text, incomplete
from mmcl.errors import UserError, first_line
from mmcl.files.digest import digest
from mmcl.files.listing import IMAGE_SUFFIXES, Listing, is_image, is_split, list_files, reason_unused, suffix_of, valid_name
from mmcl.terminal import counted

_IMAGE_FOLDERS = frozenset(("images", "image", "imgs", "img", "jpegimages", "photos", "pictures"))
"""Names of folders of images of any class, beside which others lie, such as masks."""


class FolderSource(Source):
    """All images in a folder and below, in the order of their paths; hidden files, and those of operating systems, are no
    part of it.

    - With a captions file in it (`captions`, `metadata` or `results`, also `captions_NAME`, as .csv, .tsv, .jsonl or .parquet,
      or `captions_NAME.json` as COCO writes it, also in or beside the folder `annotations`): the images that the file names,
      with its captions, or its labels.
    - With `name.txt`, `name.caption`, `name.0.txt`, ... or `name.jpg.txt` beside `name.jpg`: every line is a caption; so is
      the field "caption", or another usual one, of a `name.json`.
    - With all images in two or more subfolders, and no captions file: the first subfolder is the label. A folder around these
      is passed over. The numbered folders of img2dataset are no labels, nor are a folder called "images" and those beside it.

    An image that is missing, or a text that cannot be read, is a bad sample. `usage` says what in the folder is not used.

    Args:
        path: the folder.
        split: the subfolder, of a folder with several such as train and test, or the part of the captions file; "all" makes no
            distinction.
        captions: path of the captions file from the folder on, if it is none of the usual, or if there are several.

    Raises:
        UserError: there is no image, or it must be said which split or captions file is meant.
    """

    def __init__(self, path: str | None, root: str | None, *, split: str | None = None, captions: str | None = None):
        self.path = required_path(path, "folder")
        if not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; give the folder, or choose the data source 'table'")
        self.places = (f"{valid_name(self.path)}/",)
        listing = list_files(self.path)
        layout = find_layout(self.path, listing.names, split=split, captions=captions)
        names = [name for name in listing.names if name.startswith(layout.split)]
        content = _listed(self.path, names, layout, layout.captions) if layout.captions else _found(self.path, names)
        ours = [name for name in listing.names if not layout.is_of_others(name)] if layout.split else names
        # No sample is held: of millions they would take gigabytes.
        self._names, self._captions, self._problems = content.names, content.captions, content.problems
        self._unreadable = listing.unreadable
        labels, self._notes = (content.labels, content.notes) if layout.captions else _class_folders(content, layout.part)
        if any(label is not None for label in labels):
            numbers, self.class_names = number_labels(labels)
            self._labels = np.array([-1 if number is None else number for number in numbers], np.int64)
        self._usage = _usage(ours, listing, content, layout)
        if self.class_names is None and not any(content.captions):
            self._notes = [*self._notes, *(_without_texts(layout.captions) if layout.captions else _unread(ours))]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        image = self.path / self._names[index]
        label = -1 if self.class_names is None else int(self._labels[index])
        return Sample(
            valid_name(image),
            image,
            self._captions[index],
            None if label < 0 else label,
            problem=self._problems.get(index if index >= 0 else len(self) + index),
        )

    @property
    def labels(self) -> np.ndarray | None:
        return None if self.class_names is None else self._labels

    @property
    def usage(self) -> Sequence[Usage]:
        """Of the files in the folder, those that are samples."""
        return [self._usage]

    @property
    def notes(self) -> Sequence[str]:
        return self._notes

    @property
    def warnings(self) -> Sequence[str]:
        bare = {"no caption": sum(not texts for texts in self._captions)}
        return [*super().warnings, *incomplete(len(self), "images", bare, len(self._problems))]

    def broken_files(self) -> Iterator[str]:
        yield from (f"{valid_name(self.path / name)}: cannot be read: {reason}" for name, reason in self._unreadable)
        names = (str(self.path / name) for name in self._names if not name.isascii())
        yield from (f"{valid_name(name)}: its name is not UTF-8; rename it" for name in names if valid_name(name) != name)

    @property
    def fingerprint(self) -> str:
        """Of paths within the folder, file sizes, captions and labels, so that a copy of the folder has the same."""
        labels = None if self.class_names is None else (self.class_names, self._labels.tolist())
        return digest(self._names, [_size(self.path / name) for name in self._names], self._captions, labels)


@dataclass(slots=True)
class _Content:
    """The samples of a folder.

    Attributes:
        names, captions, labels: of every image; paths are from the folder on.
        problems: why an image cannot be used, by its number.
        texts: the files that were read for captions.
        notes: what to say of them when a run starts.
    """

    names: list[str] = field(default_factory=list)
    captions: list[tuple[str, ...]] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)
    texts: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, captions: tuple[str, ...] = (), problem: str | None = None) -> None:
        if problem is not None:
            self.problems[len(self.names)] = problem
        self.names.append(name)
        self.captions.append(captions)
        self.labels.append(None)


def _listed(folder: Path, names: Sequence[str], layout: Layout, path: Path) -> _Content:
    """The images that a captions file names, in its order."""
    inside = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else ""
    place = inside[: inside.rfind("/") + 1]
    images, content = ImageNames(names, place), _Content(texts={inside})
    number: dict[str, int] = {}
    second_labels = []
    for line in read_captions_file(path):
        found = None if line.image is None else images.find(line.image)
        if found is None and layout.split and not inside.startswith(layout.split):
            continue  # Of another split, whose images are not looked for.
        name = found or (f"{place}{path.name}, row {line.row}" if line.image is None else (Path(place) / line.image).as_posix())
        if name not in number:
            number[name] = len(number)
            content.add(name, problem=None if found else _missing(folder / name, line, path))
        content.captions[number[name]] += line.captions
        label = content.labels[number[name]]
        if is_missing(label):
            content.labels[number[name]] = line.label
        elif not is_missing(line.label) and line.label != label:
            second_labels.append(line.row)
    if second_labels:
        rows = f"{counted(len(second_labels), 'row')} of {path.name}"
        content.notes.append(f"a second label of an image is not used: {rows} (row {second_labels[0]})")
    if len(content.problems) == len(content.names):
        first = f"none of the images that it names is in {folder}; the first is {content.names[0]}" if number else "has no rows"
        raise UserError(f"{path}: {first}")
    return content


def _missing(image: Path, line: Described, captions: Path) -> str | None:
    """What is wrong with an image that is not among the files of the folder; it may be outside of it."""
    if line.image is None:
        return line.problem or f"{captions.name} names no image in this row"
    return None if os.path.exists(image) else f"no such file; {captions.name} names it in row {line.row}"


def _found(folder: Path, names: Sequence[str]) -> _Content:
    """All images, and the captions beside each."""
    content, sidecars = _Content(), find_sidecars(names)
    for name in filter(is_image, names):
        captions: dict[str, None] = {}
        problem = None
        for text in sidecars.get(name, ()):
            try:
                found = _captions_in(folder / text)
            except UserError as error:
                problem, found = str(error), ()
            captions |= dict.fromkeys(found)
            # A text or record without captions, such as the boxes of an annotation tool, is none of ours.
            content.texts |= {text} if found else set()
        content.add(name, tuple(captions), problem)
    if not content.names:
        there = counts_to_text(count_unused((reason_unused(name), name) for name in names))
        raise UserError(
            f"{folder}: no image in it that can be read, only {there or 'nothing'}; looked for {', '.join(IMAGE_SUFFIXES)}"
        )
    return content


def _captions_in(text: Path) -> tuple[str, ...]:
    """The captions in a file beside an image; none in a record that is no description. Raises UserError for a text."""
    suffix = suffix_of(text.name)
    try:
        with text.open("rb") as file:
            raw = file.read(MAX_TEXT_BYTES + 1)
        if len(raw) > MAX_TEXT_BYTES:
            raise ValueError(f"has more bytes than the limit of {MAX_TEXT_BYTES}")
        return read_captions(suffix, raw)
    except (ValueError, RecursionError) as error:
        if suffix == RECORD_SUFFIX:
            return ()
        reason = "is not UTF-8; convert it, e.g. by iconv" if isinstance(error, UnicodeDecodeError) else first_line(error)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    raise UserError(f"its text {valid_name(text.name)} {reason}")


def _class_folders(content: _Content, part: str) -> tuple[list[str | None], list[str]]:
    """The subfolder of every image as its class, or None, and what to say where there are no classes for one reason."""
    folders = [name[len(part) :].split("/")[:-1] for name in content.names]
    if all(path and is_split(path[0]) for path in folders):  # All splits together: classes are those below.
        folders = [path[1:] for path in folders]
    classes = [path[0] if path else None for path in folders]
    present = {name for name in classes if name is not None}
    strays = [name for name, path in zip(content.names, folders, strict=True) if not path]
    described = any(content.captions)
    numbered = all(len(name) >= 5 and name.isdecimal() for name in present)
    general = sorted(name for name in present if name.lower() in _IMAGE_FOLDERS)
    if len(present) > 1 and not strays and not general and not (numbered and described):
        return classes, []
    nothing: list[str | None] = [None] * len(classes)
    if described or not (present or part) or is_split(part.split("/")[-2] if part else ""):
        return nothing, []
    if general and len(present) > 1:
        one, another = general[0], min(present - {general[0]})
        return nothing, [f"no labels: {one}/ beside {another}/ is no class; if they hold other kinds of images, give {one}/"]
    if present:
        some = f"{len(strays):,} of {counted(len(classes), 'image')} in no subfolder ({valid_name(strays[0])})"
        return nothing, [f"no labels: {some}; were all in subfolders, these would be their classes"]
    return nothing, [f"no labels: all images are in one folder, {valid_name(part)}"]


def _without_texts(captions: Path) -> list[str]:
    return [f"{captions.name} names images and has no captions and no labels; call their field `caption` or `label`"]


def _unread(names: Sequence[str]) -> list[str]:
    """A line that names files which may hold the captions that no image has."""
    files = possible_captions_files(names)
    if not files:
        return []
    more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
    choice = f"if it does, choose it by {by_argument('captions', files[0])}"
    return [f"no captions: {files[0]}{more} may describe the images, and is not read; {choice}"]


def _usage(names: Sequence[str], listing: Listing, content: _Content, layout: Layout) -> Usage:
    used = content.texts.union(content.names).intersection(names)
    not_named = f"not in {layout.captions.name}" if layout.captions else ""
    unused = [(not_named if is_image(name) else reason_unused(name), name) for name in names if name not in used]
    unused += [("folders that cannot be read", name) for name, _ in listing.unreadable]
    unused += [("linked folders that are entered anyway", name) for name in listing.linked]
    return Usage(unit="files", used=len(used), unused=count_unused(unused))


def _size(file: Path) -> int | None:
    """Bytes; None of a link that leads nowhere, which is a bad sample."""
    try:
        return file.stat().st_size
    except OSError:
        return None
