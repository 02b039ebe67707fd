"""Captions files, which list the images of a folder with their captions: tables, or JSON as in COCO."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmcl.data.sources.sidecar import find_sidecars
from mmcl.data.sources.tables.column_names import USUAL_NAMES, Columns, captions_of, find_columns, find_targets, image_of
from mmcl.data.sources.tables.table_file import read_table, without_problems
from mmcl.errors import UserError, first_line
from mmcl.files.listing import composed, is_image, suffix_of, without_suffix
from mmcl.files.text_file import find_encoding, text_lines

_USUAL = re.compile(
    r"(?:captions?|metadata|results)(?:[-_.].*)?\.(?:csv|tsv|jsonl|ndjson|parquet)|captions?(?:[-_.].*)?\.(?:json|txt)"
    r"|(?!.*\.lemma\.).*\.token(?:\.txt)?",  # The lemma files beside Flickr's captions do not contain sentences.
    re.IGNORECASE,
)
_USUAL_ENDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".json", ".txt", ".token")
"""Ends of all names that `_USUAL` fits; most files of a folder have another one, and are passed over by it."""
_KINDS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_TOKEN = re.compile(r"(.+)#\d+\t(.*)")
"""A line of Flickr's caption files: image, number of the caption, caption."""

_NAME_COLUMNS = (
    "call that of the images `image`, or give the table itself with `image_column` and `image_root`; a file that does not "
    "describe the images needs another name"
)

_LINE_BYTES = 2**16

ANNOTATIONS = "annotations"
"""COCO's folder with the captions of its sibling image folders."""


@dataclass(frozen=True, slots=True)
class Described:
    """One row of a captions file.

    Attributes:
        row: row number, from 1.
        image: name of the image in the file; None if missing.
        captions: content of the caption cell.
        label: content of the label cell.
        group: content of the group cell.
        targets: contents of the cells with answers.
        problem: why the row cannot be used, if known.
    """

    row: int
    image: str | None
    captions: tuple[Any, ...]
    label: Any = None
    group: Any = None
    targets: tuple[Any, ...] = ()
    problem: str | None = None


def usual_captions_files(folder: Path, names: Sequence[str], part: str) -> list[str]:
    """Finds the captions files in a part of a folder, or in a subfolder of it without images, such as "annotations".

    Args:
        folder: the whole folder.
        names: all files in it.
        part: path of the part; "" or ending in "/".
    """
    possible = (name for name in names if name.lower().endswith(_USUAL_ENDS))
    inside = (name for name in possible if name.startswith(part) and name[len(part) :].count("/") <= 1)
    usual = [name for name in inside if _USUAL.fullmatch(name.rpartition("/")[2])]
    if not usual:
        return []
    images = {without_suffix(name) for name in names if is_image(name)}
    below = (name[len(part) :] for name in images if name.startswith(part))
    holding_images = {part + name.partition("/")[0] for name in below if "/" in name}
    meant = (name for name in usual if name.rpartition("/")[0] not in holding_images and without_suffix(name) not in images)
    return [name for name in meant if _is_meant(folder / name)]


def possible_captions_files(names: Sequence[str]) -> list[str]:
    """Returns the files that, by their names, could contain captions of several images."""
    others = [name for name in names if not is_image(name)]
    possible = [name for name in others if suffix_of(name) in _KINDS or _USUAL.fullmatch(name.rpartition("/")[2])]
    beside = {text for texts in find_sidecars(names).values() for text in texts} if possible else set()
    return [name for name in possible if name not in beside]


def captions_above(folder: Path) -> Path | None:
    """Finds COCO's captions of an image folder: `captions_NAME.json` beside it, or in the sibling folder "annotations"."""
    name, above = f"captions_{folder.absolute().name}.json", folder.absolute().parent
    return next((place for place in (above / ANNOTATIONS / name, above / name) if place.is_file()), None)


def read_captions_file(path: Path, asked: Columns) -> Iterator[Described]:
    """Yields the rows of a captions file.

    Args:
        path: the file.
        asked: the columns that the user named: of the group and the targets.

    Raises:
        UserError: the file cannot be read, does not name images, or has no such column; says what is missing.
    """
    is_json, is_token = suffix_of(path.name) == ".json", path.name.lower().endswith((".token", ".token.txt"))
    if (is_json or is_token) and (first := first_named(asked)):
        argument, column = first
        raise UserError(f"{path}: has no columns, and so none for `{argument}`; write it as a .csv with {column!r}")
    return _from_json(path) if is_json else _from_token(path) if is_token else _from_table(path, asked)


def first_named(asked: Columns) -> tuple[str, str] | None:
    """Returns the argument that names a column of the group or of the targets, and the column; None if there is none."""
    targets = ("target_columns", asked.targets[0]) if asked.targets else None
    return targets if asked.group is None else ("group_column", asked.group)


class ImageNames:
    """Matches the image names in a captions file to existing files.

    A name is a path relative to the folder of the captions file or to the whole folder, or the end of a path if only one file
    matches, since many lists omit the image folder or the suffix. Accents may be composed or decomposed; "./" and "\\" are
    accepted.

    Args:
        names: existing files, as paths relative to the whole folder.
        part: folder of the captions file; "" or ending in "/".
    """

    def __init__(self, names: Sequence[str], part: str):
        self._part, self._names = part, set(names)
        self._composed = {composed(name): name for name in names if not name.isascii()}

    def find(self, name: str) -> str | None:
        """Returns the matching file; None if there is no match or more than one."""
        plain = posixpath.normpath(name if name in self._names else name.replace("\\", "/"))
        for path in (posixpath.normpath(self._part + plain), plain):
            if path in self._names:
                return path
            if composed(path) in self._composed:
                return self._composed[composed(path)]
        tail = f"/{composed(plain)}"
        last = tail.rpartition("/")[2]
        fitting = [path for path in self._by_last.get(last, ()) if composed(path).endswith(tail)]
        fitting = fitting or [path for path in self._by_stem.get(last, ()) if f"/{without_suffix(path)}".endswith(tail)]
        return fitting[0] if len(fitting) == 1 else None

    @cached_property
    def _by_last(self) -> dict[str, list[str]]:
        """Files by their names without folders; built on first use."""
        files: dict[str, list[str]] = {}
        for name in self._names:
            files.setdefault(composed(name.rpartition("/")[2]), []).append(name)
        return files

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """Images by their names without folders and suffixes."""
        images: dict[str, list[str]] = {}
        for name in filter(is_image, self._names):
            images.setdefault(without_suffix(name.rpartition("/")[2]), []).append(name)
        return images


def _is_meant(path: Path) -> bool:
    """True if a file with a usual name is a captions file according to its first line; other files may have such names."""
    name = path.name.lower()
    if name.endswith((".token", ".token.txt")):
        return _TOKEN.match(_first_line(path)) is not None
    if name.startswith("results") or name.endswith(".txt"):
        words = {word.strip(' "').lower() for word in re.split(r"[,;|\t]", _first_line(path))}
        return bool(words.intersection(USUAL_NAMES["image"]) and words.intersection(USUAL_NAMES["caption"]))
    return True


def _first_line(path: Path) -> str:
    with path.open("rb") as file:
        return file.readline(_LINE_BYTES).decode("utf-8-sig", "replace").rstrip("\r\n")


def _from_token(path: Path) -> Iterator[Described]:
    for row, line in text_lines(path, find_encoding(path, None)):
        match = _TOKEN.fullmatch(line)
        if match is not None:
            yield Described(row, match[1], captions_of(match[2]))
        elif line.strip():
            raise UserError(f"{path}, line {row}: must be an image, # and a number, a tab and a caption")


def _from_table(path: Path, asked: Columns) -> Iterator[Described]:
    table, problems = without_problems(read_table(path))
    columns = find_columns(table.column_names, {"group": asked.group}, str(path), fix=_NAME_COLUMNS)
    if columns.image is None:
        found = ", ".join(table.column_names)
        raise UserError(f"{path}: which column names the images? Its columns are {found}; {_NAME_COLUMNS}")
    nothing = [None] * len(table)
    cells = (columns.image, columns.label, columns.group)
    images, labels, groups = (table[column].to_pylist() if column else nothing for column in cells)
    texts = [table[column].to_pylist() for column in columns.captions]
    targets = [table[column].to_pylist() for column in find_targets(table.column_names, asked.targets, str(path))]
    for row, (cell, label, group) in enumerate(zip(images, labels, groups, strict=True), 1):
        try:
            image, problem = image_of(cell), problems.get(row - 1)
        except UserError as error:
            image, problem = None, str(error)
        if isinstance(image, bytes):
            raise UserError(f"{path}: holds images, not names of images; open it as a table, not its folder")
        captions = tuple(text for column in texts for text in captions_of(column[row - 1]))
        answers = tuple(column[row - 1] for column in targets)
        yield Described(row, None if image is None else str(image), captions, label, group, answers, problem)


def _from_json(path: Path) -> Iterator[Described]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON: {first_line(error)}") from None
    try:
        pairs = list(_json_pairs(content, str(path)))
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path}: has neither COCO's images and annotations with captions, nor Karpathy's images with sentences, nor a "
            'list of images with captions, nor captions by the names of images; write {"a.jpg": "a caption", ...}'
        ) from None
    for row, (image, captions) in enumerate(pairs, 1):
        yield Described(row, image, captions_of(captions))


def _texts_in(cells: list[Any]) -> Any:
    return cells[0] if len(cells) == 1 else [text for cell in cells for text in captions_of(cell)]


def _json_pairs(content: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Yields names and captions from COCO's or Karpathy's format, a list of records, or a mapping from names to captions."""
    if isinstance(content, dict) and isinstance(content.get("images"), list) and "annotations" not in content:
        for image in content["images"]:
            yield posixpath.join(image.get("filepath", ""), image["filename"]), image["sentences"]
        return
    if isinstance(content, dict) and "annotations" in content:
        captions: dict[Any, list[Any]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        yield from ((image["file_name"], captions[image["id"]]) for image in content["images"])
        return
    if isinstance(content, list):
        columns = find_columns(list(content[0] if content else ()), {}, where, fix=_NAME_COLUMNS)
        content = [(record[columns.image], _texts_in([record[name] for name in columns.captions])) for record in content]
    for image, texts in content.items() if isinstance(content, dict) else content:
        if not isinstance(image, str) or not isinstance(texts, str | list):
            raise TypeError
        yield image, texts
