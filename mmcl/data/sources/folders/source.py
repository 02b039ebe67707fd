"""Folders of images with a captions file, a text file beside each image, or class subfolders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmcl.data.captions import text_hash
from mmcl.data.identity import spread_rows
from mmcl.data.sample import Sample
from mmcl.data.source import Source, required_path
from mmcl.data.sources.folders.captions_file import (
    Described,
    ImageNames,
    first_named,
    possible_captions_files,
    read_captions_file,
)
from mmcl.data.sources.folders.layout import Layout, by_argument, find_layout
from mmcl.data.sources.sidecar import MAX_TEXT_BYTES, RECORD_SUFFIX, find_sidecars, read_captions
from mmcl.data.sources.tables.answers import answer_of
from mmcl.data.sources.tables.column_names import Columns, group_of, is_missing, number_labels
from mmcl.data.usage import Usage, count_unused, counts_to_text, incomplete
from mmcl.errors import UserError, first_line
from mmcl.files.digest import digest
from mmcl.files.listing import IMAGE_SUFFIXES, Listing, is_image, is_split, list_files, reason_unused, suffix_of, valid_name
from mmcl.terminal import counted

_ALL_SIZES, _SOME_SIZES = 100_000, 1_000
_IMAGE_FOLDERS = frozenset(("images", "image", "imgs", "img", "jpegimages", "photos", "pictures"))
"""Names of folders with images of all classes, which may have siblings such as masks."""


class FolderSource(Source):
    """All images in a folder and its subfolders, sorted by path; hidden files and those of operating systems are ignored.

    - With a captions file in it (`captions`, `metadata` or `results`, also `captions_NAME`, as .csv, .tsv, .jsonl or .parquet,
      or `captions_NAME.json` as written by COCO, also in or beside the folder `annotations`): the images listed in the file,
      with its captions or labels.
    - With `name.txt`, `name.caption`, `name.0.txt`, ... or `name.jpg.txt` beside `name.jpg`: every line is a caption. In a
      `name.json`, the captions are in the field "caption" or another usual one.
    - With all images in two or more subfolders, and no captions file: the first subfolder is the label. A folder that contains
      all of these is skipped. The numbered folders of img2dataset, a folder called "images" and its siblings are not labels.

    A missing image or an unreadable text is a bad sample. `usage` reports unused files.

    Args:
        path: the folder.
        split: subfolder of a folder with several splits such as train and test, or the split in the captions file; "all"
            combines them.
        captions: path of the captions file relative to the folder, if it has an unusual name or there are several.
        group_column, target_columns: columns of the captions file, as in `TableSource`.

    Raises:
        UserError: the folder has no images, the split or captions file is ambiguous, a group is missing, or a target is no
            answer.
    """

    def __init__(
        self,
        path: str | None,
        root: str | None,
        *,
        split: str | None = None,
        captions: str | None = None,
        group_column: str | None = None,
        target_columns: Sequence[str] = (),
    ):
        self.path = required_path(path, "folder")
        if not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; give the folder, or choose the data source 'table'")
        self.places = (f"{valid_name(self.path)}/",)
        self._prefix = str(self.path / "_")[:-1]
        listing = list_files(self.path)
        layout = find_layout(self.path, listing.names, split=split, captions=captions)
        names = [name for name in listing.names if name.startswith(layout.split)]
        asked = Columns(group=group_column, targets=tuple(target_columns))
        content = _content(self.path, names, layout, asked)
        ours = [name for name in listing.names if not layout.is_of_others(name)] if layout.split else names
        # Samples are not stored: millions of them would take gigabytes.
        self._names, self._captions, self._problems = content.names, content.captions, content.problems
        self._unreadable = listing.unreadable
        if group_column is not None:
            own = (content.groups.get(row, text_hash(f"\0{name}")) for row, name in enumerate(content.names))
            self.groups = np.fromiter(own, np.int64, len(content.names))
        if asked.targets:
            self.targets, self.target_names = np.array(content.answers, np.int8), asked.targets
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
        name = self._names[index]
        image = name if name.startswith("/") else self._prefix + name  # a hundred times as fast as by `Path`
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
        """Files in the folder, and those used as samples."""
        return [self._usage]

    @property
    def unreadable(self) -> Sequence[tuple[str, str]]:
        """Folders in it that cannot be listed, relative to it, with the reason."""
        return self._unreadable

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

    @cached_property
    def fingerprint(self) -> str:
        """Digest of relative paths, file sizes, captions, labels, groups and targets, equal for a copy of the folder.

        Of more than 100,000 images, the sizes of 1,000: on a network file system, those of ten million take half an hour.
        """
        labels = None if self.class_names is None else (self.class_names, self._labels.tolist())
        seen = spread_rows(len(self), len(self) if len(self) <= _ALL_SIZES else _SOME_SIZES)
        sizes = [_size(self.path / self._names[row]) for row in seen.tolist()]
        groups = () if self.groups is None else (self.groups.tobytes(),)
        targets = () if self.targets is None else ("targets", *self.target_names, self.targets.tobytes())
        return digest(self._names, sizes, self._captions, labels, *groups, *targets)


@dataclass(slots=True)
class _Content:
    """Contents of a folder.

    Attributes:
        names, captions, labels: values of every image; names are paths relative to the folder.
        groups: image index -> its group, if there are groups.
        answers: answers of every image to yes/no questions, if any are asked.
        problems: image index -> why it cannot be used.
        texts: files that were read for captions.
        notes: notes to print when a run starts.
    """

    names: list[str] = field(default_factory=list)
    captions: list[tuple[str, ...]] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    groups: dict[int, int] = field(default_factory=dict)
    answers: list[list[int]] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)
    texts: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, captions: tuple[str, ...] = (), problem: str | None = None) -> None:
        if problem is not None:
            self.problems[len(self.names)] = problem
        self.names.append(name)
        self.captions.append(captions)
        self.labels.append(None)


def _content(folder: Path, names: Sequence[str], layout: Layout, asked: Columns) -> _Content:
    """Collects the images of a captions file, or all. Raises UserError if there is none that could have the columns."""
    if layout.captions is not None:
        return _listed(folder, names, layout, layout.captions, asked)
    if first := first_named(asked):
        argument, column = first
        raise UserError(f"{folder}: no captions file in it, and so no column {column!r} for `{argument}`; add one")
    return _found(folder, names)


def _listed(folder: Path, names: Sequence[str], layout: Layout, path: Path, asked: Columns) -> _Content:
    """Collects the images listed in a captions file, in its order."""
    inside = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else ""
    place = inside[: inside.rfind("/") + 1]
    images, content = ImageNames(names, place), _Content(texts={inside})
    number: dict[str, int] = {}
    second_labels = []
    for line in read_captions_file(path, asked):
        found = None if line.image is None else images.find(line.image)
        if found is None and layout.split and not inside.startswith(layout.split):
            continue  # Rows of other splits are skipped without a check of their images.
        name = found or (f"{place}{path.name}, row {line.row}" if line.image is None else (Path(place) / line.image).as_posix())
        if name not in number:
            number[name] = len(number)
            content.add(name, problem=None if found else _missing(folder / name, line, path))
            content.answers.append([-1] * len(asked.targets))
        if line.problem is None:
            if asked.group is not None:
                _join_group(content, number[name], line, f"{path}: {asked.group}, row {line.row}")
            _join_answers(content, number[name], line, asked.targets, path)
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


def _join_group(content: _Content, image: int, line: Described, where: str) -> None:
    """Adds the group of a row. Raises UserError if it is empty, or not that of another row of the image."""
    group = group_of(line.group, where)
    if content.groups.setdefault(image, group) != group:
        raise UserError(f"{where}: gives {content.names[image]} a second group; an image belongs to one")


def _join_answers(content: _Content, image: int, line: Described, questions: Sequence[str], path: Path) -> None:
    """Adds the answers of a row. Raises UserError if a cell is none, or another row of the image answers differently."""
    known = content.answers[image]
    for number, (question, cell) in enumerate(zip(questions, line.targets, strict=True)):
        where = f"{path}: {question}, row {line.row}"
        answer = answer_of(cell, where)
        if min(answer, known[number]) >= 0 and answer != known[number]:
            raise UserError(f"{where} and another one answer differently for {content.names[image]}")
        known[number] = max(answer, known[number])


def _missing(image: Path, line: Described, captions: Path) -> str | None:
    """Returns the problem of an image that is not in the listing; None if it exists outside the folder."""
    if line.image is None:
        return line.problem or f"{captions.name} names no image in this row"
    return None if os.path.exists(image) else f"no such file; {captions.name} names it in row {line.row}"


def _found(folder: Path, names: Sequence[str]) -> _Content:
    """Collects all images and the captions beside each."""
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
            # A text or record without captions, such as boxes from an annotation tool, is ignored.
            content.texts |= {text} if found else set()
        content.add(name, tuple(captions), problem)
    if not content.names:
        there = counts_to_text(count_unused((reason_unused(name), name) for name in names))
        problem = f"no image in it that can be read, only {there}" if there else "is empty"
        raise UserError(f"{folder}: {problem}; looked for {', '.join(IMAGE_SUFFIXES)}")
    return content


def _captions_in(text: Path) -> tuple[str, ...]:
    """Reads the captions in a file beside an image; a record without captions gives none. Raises UserError for a bad text."""
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
    """Returns the class of every image, from its subfolder, or None; and notes if classes are omitted for a reason."""
    places = [name[len(part) :].rpartition("/")[0] for name in content.names]
    parts = {place: place.split("/") if place else [] for place in set(places)}
    folders = [parts[place] for place in places]
    if all(path and is_split(path[0]) for path in folders):  # All splits are combined: the classes are one level below.
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
        return nothing, [f"no labels: {one}/ beside {another}/ is not a class; if they hold other kinds of images, give {one}/"]
    if present:
        some = f"{len(strays):,} of {counted(len(classes), 'image')} in no subfolder ({valid_name(strays[0])})"
        return nothing, [f"no labels: {some}; were all in subfolders, these would be their classes"]
    return nothing, [f"no labels: all images are in one folder, {valid_name(part)}"]


def _without_texts(captions: Path) -> list[str]:
    return [f"{captions.name} names images and has no captions and no labels; call their field `caption` or `label`"]


def _unread(names: Sequence[str]) -> list[str]:
    """Returns a note that names unread files that may contain captions, if no image has any."""
    files = possible_captions_files(names)
    if not files:
        return []
    more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
    choice = f"if it does, choose it by {by_argument('captions', files[0])}"
    return [f"no captions: {files[0]}{more} may describe the images, and is not read; {choice}"]


def _usage(names: Sequence[str], listing: Listing, content: _Content, layout: Layout) -> Usage:
    used = content.texts.union(content.names)
    not_named = f"not in {layout.captions.name}" if layout.captions else ""
    unused = [(not_named if is_image(name) else reason_unused(name), name) for name in names if name not in used]
    count = len(names) - len(unused)
    unused += [("folders that cannot be read", name) for name, _ in listing.unreadable]
    unused += [("linked folders that are entered anyway", name) for name in listing.linked]
    return Usage(unit="files", used=count, unused=count_unused(unused))


def _size(file: Path) -> int | None:
    """File size in bytes; None for a broken link, which is a bad sample."""
    try:
        return file.stat().st_size
    except OSError:
        return None
