"""Source over the rows of an Arrow table."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmcl.data.captions import text_hash
from mmcl.data.sample import ImageLike, Sample
from mmcl.data.source import Source
from mmcl.data.sources.tables.answers import ANSWERS, not_an_answer
from mmcl.data.sources.tables.arrow_types import JsonType
from mmcl.data.sources.tables.column_names import Columns, captions_of, image_of, number_labels, scores_of
from mmcl.data.sources.tables.image_urls import how_to_download, is_url_of_image
from mmcl.data.sources.tables.table_rows import distinct, missing_cells
from mmcl.data.usage import EXAMPLES, Unused, Usage, count_unused
from mmcl.errors import UserError
from mmcl.files.listing import in_any_form
from mmcl.terminal import counted

LOOKED_FOR = 100_000
"""Largest table whose image files are checked for existence when a run opens it; `verify` checks tables of any size."""

_LOOKED_INTO = 100
"""Maximum number of folders beside a table in which its images are searched."""

_NUMBERS = re.compile(r"|Unnamed: \d+|__index_level_\d+__")
"""Names of the row-number column that pandas adds."""


class ArrowSource(Source):
    """Samples from a table: rows with the same image form one sample with several texts; every other row is a sample.

    Args:
        table: a table of `plain_type` types; it stays in Arrow format, without conversion to Python objects.
        columns: roles of its columns.
        rows: grouping of rows into samples, as returned by `sample_rows`.
        name: name of the data, a prefix of sample names.
        image_root: folder that image paths are relative to; None without one.
        class_names: names of the classes, if the label column contains class indices, -1 for none.
        all_columns: all columns of the data, if `table` has only some of them.
        problems: row -> why it cannot be used.
        url_column: column with image URLs, if no column has the images.

    Raises:
        UserError: image paths are relative but there is no folder, images are given by URL, or a label, score, group or
            target is invalid.
    """

    def __init__(
        self,
        table: pa.Table,
        columns: Columns,
        rows: np.ndarray,
        *,
        name: str,
        image_root: Path | None,
        class_names: Sequence[str] | None = None,
        all_columns: Sequence[str] | None = None,
        problems: Mapping[int, str] | None = None,
        url_column: str | None = None,
    ):
        self._name, self._image_root, self._problems = name, image_root, dict(problems or {})
        self.places = (f"{name}, ", *([f"{image_root}/"] if image_root else []))
        self._url_column = None if columns.image else url_column
        self._columns, self._all_columns = columns, list(all_columns or table.column_names)
        self._images = table[columns.image] if columns.image else None
        self._texts = {field: [table[column] for column in names] for field, names in columns.texts.items()}
        self._rows, sample = rows
        self._first_row = np.append(np.flatnonzero(np.diff(sample, prepend=-1)), len(table))
        self._labels: np.ndarray | None = None
        self._has_second_label: np.ndarray | None = None
        if columns.label:
            where = f"{name}: {columns.label}"
            cells = table[columns.label]
            label_N, self.class_names = _class_numbers(cells, class_names, where) if class_names else _labels_of(cells, where)
            self._labels, self._has_second_label = _sample_labels(label_N, *rows)
        if columns.score:
            scores = scores_of(table[columns.score], f"{name}: {columns.score}", self._problems)
            self.scores = scores[self._rows[self._first_row[:-1]]]
        if columns.group:
            self.groups = _sample_groups(table[columns.group], rows, f"{name}: {columns.group}", self._problems)
        if columns.targets:
            answers = [_sample_answers(table[column], rows, f"{name}: {column}") for column in columns.targets]
            self.targets, self.target_names = np.stack(answers, axis=1), columns.targets
        self._check_paths()

    def __len__(self) -> int:
        return len(self._first_row) - 1

    def __getitem__(self, index: int) -> Sample:
        rows = self._rows[self._first_row[index] : self._first_row[index + 1]]
        row = int(rows[0])
        image, problem = self._image(row)
        if isinstance(image, str):
            image = str(self._place(image))
        texts: dict[str, Any] = {
            field: tuple(text for r in rows for cells in columns for text in captions_of(cells[int(r)].as_py()))
            for field, columns in self._texts.items()
        }
        return Sample(
            name=image if isinstance(image, str) else f"{self._name}, row {row + 1}",
            image=image,
            label=None if self._labels is None or self._labels[index] < 0 else int(self._labels[index]),
            problem=self._problems.get(row, problem),
            **texts,
        )

    @cached_property
    def labels(self) -> np.ndarray | None:
        if self._labels is None or (self._labels < 0).all():
            return None
        return self._labels

    @property
    def usage(self) -> Sequence[Usage]:
        """Usage of columns and rows."""
        asked = self._columns.names
        present = [column for column in self._all_columns if not _NUMBERS.fullmatch(column)]
        left = count_unused(("other", column) for column in present if column not in asked)
        used = sum(column in asked for column in present)
        return [Usage(unit="columns", used=used, unused=left), self._rows_used]

    @property
    def notes(self) -> Sequence[str]:
        if self._url_column is None:
            return ()
        command = how_to_download(self._name, self._url_column, self._columns.caption)
        return [
            f"texts alone: the images are URLs, in the column {self._url_column}; download them, and give images/: {command}"
        ]

    @property
    def warnings(self) -> Sequence[str]:
        return [*super().warnings, *self._misplaced()] if len(self) <= LOOKED_FOR else super().warnings

    def broken_files(self) -> Iterator[str]:
        return self._misplaced()

    def _misplaced(self) -> Iterator[str]:
        """Yields a warning if none of the image files exist, so that the paths are relative to another folder."""
        images = (self._image(int(self._rows[row]))[0] for row in self._first_row[:-1])
        paths = (image for image in images if isinstance(image, str))
        first = next(paths, None)
        if first is None or any(os.path.isfile(self._place(path)) for path in itertools.chain([first], paths)):
            return
        folder = _folder_with(first, self._image_root or Path())
        fix = f"set `image_root` to {folder}" if folder else "set `image_root` to the folder that its paths start from"
        yield (
            f"{self._name}: none of the images that it names is there; the first was looked for at {self._place(first)}; {fix}"
        )

    @cached_property
    def _rows_used(self) -> Usage:
        captions = self._texts.get("captions")
        reasons = {
            "broken": self._with_problem(),
            "without image": None if self._images is None else missing_cells(self._images),
            "without caption": np.logical_and.reduce([missing_cells(cells) for cells in captions]) if captions else None,
            "without file": self._without_file() if len(self) <= LOOKED_FOR else None,
            "with a second label of their image": self._has_second_label,
        }
        unused: dict[str, Unused] = {}
        used = np.ones(len(self._rows), bool)
        for reason, rows in reasons.items():
            if rows is not None and (rows & used).any():
                numbers = np.flatnonzero(rows & used) + 1
                unused[reason] = Unused(len(numbers), tuple(f"row {number}" for number in numbers[:EXAMPLES]))
                used &= ~rows
        return Usage(unit="rows", used=int(used.sum()), unused=unused)

    def _with_problem(self) -> np.ndarray:
        """Mask of rows known to be unusable: bool [N]."""
        rows = np.zeros(len(self._rows), bool)
        rows[list(self._problems)] = True
        return rows

    def _without_file(self) -> np.ndarray:
        """Mask of rows whose image file does not exist: bool [N]."""
        missing = np.zeros(len(self._rows), bool)
        for sample in range(len(self)):
            rows = self._rows[self._first_row[sample] : self._first_row[sample + 1]]
            image = self._image(int(rows[0]))[0]
            missing[rows] = isinstance(image, str) and not os.path.isfile(self._place(image))
        return missing

    def _place(self, path: str) -> Path:
        return in_any_form((self._image_root or Path()) / path)

    def _image(self, row: int) -> tuple[ImageLike | None, str | None]:
        """Returns the image of a row, with paths not yet joined to the folder, and its problem, if any."""
        try:
            return None if self._images is None else image_of(self._images[row].as_py()), None
        except UserError as error:
            return None, str(error)

    def _check_paths(self) -> None:
        """Checks only the first path, which represents all."""
        images = (self._image(row)[0] for row in range(min(len(self._rows), 100)))
        path = next((image for image in images if isinstance(image, str)), None)
        if path and is_url_of_image(path):
            assert self._columns.image
            command = how_to_download(self._name, self._columns.image, self._columns.caption)
            raise UserError(f"{self._name}: names its images by URL ({path:.60}); download them, and give images/: {command}")
        if path and self._image_root is None and not Path(path).is_absolute():
            raise UserError(f"{self._name}: names its images by path ({path:.60}); set `image_root` to the folder they are in")


def _folder_with(path: str, folder: Path) -> Path | None:
    """Finds the folder, inside or above another one, in which a relative path exists."""
    entries = os.scandir(folder) if folder.is_dir() else ()
    inside = itertools.islice((entry for entry in entries if entry.is_dir()), _LOOKED_INTO)
    near = [folder.parent, *sorted(Path(entry.path) for entry in inside)]
    return next((place for place in near if (place / path).is_file()), None)


def _sample_labels(label_N: np.ndarray, rows: np.ndarray, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First label of every sample, int64, -1 if it has none; and mask of rows with a different label, bool [N]."""
    labels = label_N[rows]
    present = np.flatnonzero(labels >= 0)[::-1]
    first = np.full(sample[-1] + 1, -1, np.int64)
    first[sample[present]] = labels[present]  # In reverse order, so that the first row is written last.
    is_second = np.empty(len(rows), bool)
    is_second[rows] = (labels >= 0) & (labels != first[sample])
    return first, is_second


def _class_numbers(column: pa.ChunkedArray, names: Sequence[str], where: str) -> tuple[np.ndarray, Sequence[str]]:
    """Returns stored class indices, int64. Raises UserError for an index without a name."""
    numbers = column.fill_null(-1).to_numpy().astype(np.int64)
    if len(numbers) and numbers.max() >= len(names):
        raise UserError(f"{where}: holds {numbers.max()}, and the largest class number is {len(names) - 1}")
    return numbers, list(names)


def _sample_groups(column: pa.ChunkedArray, sample_rows: np.ndarray, where: str, broken: Collection[int]) -> np.ndarray:
    """Group of every sample, int64, see `group_of`; a broken row is its own.

    Raises:
        UserError: a row has no group, or two rows of one image have different groups.
    """
    rows, sample = sample_rows
    number_N, names = _labels_of(column, where, "group")
    is_empty = number_N < 0
    is_empty[list(broken)] = False
    if is_empty.any():
        first, count = int(is_empty.argmax()) + 1, int(is_empty.sum())
        raise UserError(
            f"{where}: {count:,} of {counted(len(rows), 'row')} without a group, the first is row {first}; fill in the cells, "
            "or remove these rows"
        )
    group_N = np.array([*(text_hash(group) for group in names), -1], np.int64)[number_N]
    for row in broken:
        group_N[row] = text_hash(f"{where}, row {row + 1}")
    group = group_N[rows]
    first_S: np.ndarray = group[np.flatnonzero(np.diff(sample, prepend=-1))]
    second = np.flatnonzero(group != first_S[sample])
    if len(second):
        raise UserError(f"{where}: row {rows[second].min() + 1} gives an image a second group; an image belongs to one")
    return first_S


def _sample_answers(column: pa.ChunkedArray, sample_rows: np.ndarray, where: str) -> np.ndarray:
    """Answer of every sample to a yes/no question: int8, 1 yes, 0 no, -1 unknown.

    Raises:
        UserError: a cell is not an answer, or two rows of one image answer differently.
    """
    rows, sample = sample_rows
    number_N, texts = _labels_of(column, where, "target")
    wrong = [text for text in texts if text not in ANSWERS]
    if wrong:
        row = int(np.flatnonzero(number_N == texts.index(wrong[0]))[0]) + 1
        raise not_an_answer(wrong[0], f"{where}, row {row}")
    answer = np.array([*(ANSWERS[text] for text in texts), -1], np.int8)[number_N][rows]
    answer_S = np.full(sample[-1] + 1, -1, np.int8)
    np.maximum.at(answer_S, sample, answer)
    second = np.flatnonzero((answer >= 0) & (answer != answer_S[sample]))
    if len(second):
        raise UserError(f"{where}: row {rows[second].min() + 1} and another one answer differently for one image")
    return answer_S


def _labels_of(column: pa.ChunkedArray, where: str, what: str = "label") -> tuple[np.ndarray, Sequence[str]]:
    """Returns class indices, int64, -1 for empty cells, and the class names."""
    try:
        if column.type == JsonType():
            code, texts = distinct(pa.chunked_array([chunk.storage for chunk in column.chunks]))
            values = [json.loads(text.as_py()) for text in texts]
        else:
            code, found = distinct(column)
            values = found.to_pylist()
    except pa.ArrowNotImplementedError:
        raise UserError(f"{where}: holds {column.type}; a {what} is one text or number") from None
    numbers, names = number_labels(values, where, what)
    number_of = np.array([-1 if number is None else number for number in numbers] + [-1], np.int64)
    return number_of[code], names
