"""A folder of images, described by a captions file, by a text file beside each image, or by class subfolders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmcl.data.captions import caption_lines
from mmcl.data.columns import captions_of, find_columns, image_of
from mmcl.data.source import Sample, Source, digest, required_path
from mmcl.data.table_file import read_table
from mmcl.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
CAPTION_FILES = ("captions.csv", "captions.tsv", "captions.jsonl", "metadata.csv", "metadata.jsonl")


class FolderSource(Source):
    """All images below a folder, in the order of their paths; hidden files and folders, and linked folders, are left out.

    - With one of `CAPTION_FILES` in it: the images that the file lists, with its captions.
    - With `name.txt` beside `name.jpg`: every line of the text file is a caption.
    - With all images in two or more subfolders, and no captions file: the first subfolder is the label.

    Args:
        path: the folder.
        captions: name of the captions file in it, if it is none of the usual.

    Raises:
        UserError: there is no image, or the captions file names an image that is not there.
    """

    def __init__(self, path: str | None, root: str | None, *, captions: str | None = None):
        self.path = required_path(path, "folder")
        if not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; give the folder, or choose the data source 'table'")
        captions_file = find_captions_file(self.path, captions)
        # No sample is held: of millions they would take gigabytes.
        self._names, self._captions = _listed(self.path, captions_file) if captions_file else _found(self.path)
        subfolders = [name.partition("/")[0] if "/" in name else None for name in self._names]
        if captions_file is None and None not in subfolders and len(set(subfolders)) > 1:
            self.class_names = sorted(filter(None, set(subfolders)))
            label_of = {name: label for label, name in enumerate(self.class_names)}
            self._labels = np.array([label_of[subfolder] for subfolder in subfolders if subfolder is not None], np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        image = self.path / self._names[index]
        return Sample(str(image), image, self._captions[index], None if self.class_names is None else int(self._labels[index]))

    @property
    def labels(self) -> np.ndarray | None:
        return None if self.class_names is None else self._labels

    @property
    def fingerprint(self) -> str:
        """Of paths within the folder, file sizes and captions, so that a copy of the folder has the same."""
        return digest(self._names, [_size(self.path / name) for name in self._names], self._captions)


def _listed(folder: Path, captions_file: Path) -> tuple[list[str], list[tuple[str, ...]]]:
    """Names of the images that the file lists, in its order, and the captions of each."""
    captions: dict[str, list[str]] = {}
    table = read_table(captions_file)
    columns = find_columns(table.column_names, {}, str(captions_file))
    for kind, column in (("images", columns.image), ("captions", columns.caption)):
        if column is None:
            raise UserError(f"{captions_file}: has no column of {kind}; name it {kind[:-1]}")
    rows = zip(table[columns.image].to_pylist(), table[columns.caption].to_pylist(), strict=True)
    for number, (cell, caption) in enumerate(rows, 1):
        name = image_of(cell)
        if not isinstance(name, str) or not (folder / name).is_file():
            raise UserError(f"{captions_file}, row {number}: no image {name!r} in {folder}")
        captions.setdefault(name, []).extend(captions_of(caption))
    if not captions:
        raise UserError(f"{captions_file}: has no rows")
    return list(captions), [tuple(texts) for texts in captions.values()]


def _found(folder: Path) -> tuple[list[str], list[tuple[str, ...]]]:
    """Names of all images, as paths from the folder on, and the captions beside each."""
    files = list(_files(folder))
    names = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
    if not names:
        raise UserError(f"{folder}: no image in it; looked for {', '.join(IMAGE_SUFFIXES)}")
    names.sort(key=lambda name: name.split("/"))
    texts = {name for name in files if name.endswith(".txt")}
    beside = ((name, f"{name.rpartition('.')[0]}.txt") for name in names)
    return names, [_captions_in(folder / text) if text in texts else () for name, text in beside]


def _files(folder: Path) -> Iterator[str]:
    """Paths from the folder on, "/" between their parts; nothing hidden. Raises UserError for a folder that cannot be read."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}")

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(place).relative_to(folder)
        yield from ((inside / name).as_posix() for name in files if not name.startswith("."))


def find_captions_file(folder: Path, name: str | None = None) -> Path | None:
    """The captions file of a folder. Raises UserError when the given one is missing, or when there are several."""
    if name is not None:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no captions file {name!r} in it")
        return folder / name
    found = [folder / usual for usual in CAPTION_FILES if (folder / usual).is_file()]
    if len(found) > 1:
        raise UserError(f"{folder}: both {found[0].name} and {found[1].name} are in it; set `captions` to one of them")
    return found[0] if found else None


def _captions_in(text: Path) -> tuple[str, ...]:
    try:
        return caption_lines(text.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{text}: is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{text}: cannot be read: {error.strerror}") from None


def _size(file: Path) -> int | None:
    """Bytes; None of a link that leads nowhere, which is a bad sample."""
    try:
        return file.stat().st_size
    except OSError:
        return None
