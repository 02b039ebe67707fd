"""A csv, tsv, jsonl, parquet or txt file with a row per sample: an image (a path, or the encoded picture) and its texts."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mmcl.data.columns import captions_of, find_columns, image_of, number_labels, scores_of
from mmcl.data.source import Sample, Source, digest, label_array, required_path
from mmcl.errors import UserError, first_line

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")


class TableSource(Source):
    """Samples from one file. It is held in memory in Arrow's compact form, which worker processes share.

    Rows with the same image path are one sample with several texts; a cell of texts may also be a list. Two images are not
    told apart by their captions where those are equal: equal captions are positives. Without images a row is a sample of texts
    alone; a .txt file is one column of captions, a line each.

    Args:
        path: the file; a tab or a comma separates the columns of a .csv or .tsv, whichever its header has.
        image_column, caption_column, label_column: by default the usual names ("image", "filepath", "caption", "text", ...).
        positive_column, negative_column: further texts, see `Sample`; by default the usual names ("positive", "sentence2",
            "negative", "hard_neg", ...).
        score_column: how alike people find caption and positive, a number; by default "score", where there are positives.
        image_root: folder that image paths are relative to; by default that of the file.

    Raises:
        UserError: names the file and the line, or lists the columns.
    """

    def __init__(
        self,
        path: str | None,
        root: str | None,
        *,
        image_column: str | None = None,
        caption_column: str | None = None,
        label_column: str | None = None,
        positive_column: str | None = None,
        negative_column: str | None = None,
        score_column: str | None = None,
        image_root: str | None = None,
    ):
        self.path = required_path(path, "table")
        self._image_root = Path(image_root) if image_root else self.path.parent
        table = read_table(self.path)
        if len(table) == 0:
            raise UserError(f"{self.path}: has no rows")
        given = {
            "image": image_column,
            "caption": caption_column,
            "label": label_column,
            "positive": positive_column,
            "negative": negative_column,
            "score": score_column,
        }
        columns = find_columns(table.column_names, given, str(self.path))
        self._images = table[columns.image] if columns.image else None
        self._texts = {field: table[column] for field, column in columns.texts.items()}
        self._rows, self._first_row = _group_rows(self._images, len(table))
        self._labels: list[int | None] | None = None
        if columns.label:
            labels, self.class_names = number_labels(table[columns.label].to_pylist())
            self._labels = labels
        if columns.score:
            scores = scores_of(table[columns.score].to_pylist(), f"{self.path}: {columns.score}")
            self.scores = scores[self._rows[self._first_row[:-1]]]
        self._fingerprint_parts = (columns, str(image_root))

    def __len__(self) -> int:
        return len(self._first_row) - 1

    def __getitem__(self, index: int) -> Sample:
        rows = self._rows[self._first_row[index] : self._first_row[index + 1]]
        row = int(rows[0])
        image = None if self._images is None else image_of(self._images[row].as_py())
        if isinstance(image, str):
            image = str(self._image_root / image)
        texts: dict[str, Any] = {
            field: tuple(text for r in rows for text in captions_of(cells[int(r)].as_py()))
            for field, cells in self._texts.items()
        }
        return Sample(
            name=image if isinstance(image, str) else f"{self.path}, row {row + 1}",
            image=image,
            label=self._labels[row] if self._labels else None,
            **texts,
        )

    @cached_property
    def labels(self) -> np.ndarray | None:
        return label_array(self._labels[self._rows[first]] for first in self._first_row[:-1]) if self._labels else None

    @property
    def fingerprint(self) -> str:
        return digest(self.path.read_bytes(), *self._fingerprint_parts)


def read_table(path: Path) -> pa.Table:
    """Reads a .csv, .tsv, .jsonl, .parquet or .txt file. Raises UserError with the file and, where it is text, the line."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: a table must be one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".parquet":
            return pa.parquet.read_table(path)
        if path.suffix == ".txt":
            return pa.table({"text": [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]})
        return _read_jsonl(path) if path.suffix == ".jsonl" else _read_csv(path)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]}: {first_line(error)}") from None


def _read_csv(path: Path) -> pa.Table:
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline()
    if not header.strip():
        raise UserError(f"{path}: is empty; its first line must name the columns")
    parse = pa.csv.ParseOptions(delimiter="\t" if "\t" in header and "," not in header else ",", newlines_in_values=True)
    with pa.csv.open_csv(path, parse_options=parse) as reader:
        names = reader.schema.names
    # All columns are texts: a caption "12" is no number and "NA" is not missing.
    convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    return pa.csv.read_csv(path, parse_options=parse, convert_options=convert)


def _read_jsonl(path: Path) -> pa.Table:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: is not JSON: {error.msg}") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: must be an object with the keys image and caption")
            rows.append(row)
    keys = dict.fromkeys(key for row in rows for key in row)
    return pa.table({key: pa.array(_all_lists([row.get(key) for row in rows])) for key in keys})


def _all_lists(cells: list[Any]) -> list[Any]:
    """Makes every cell a list where one is: one caption and several may stand in the same column."""
    if any(isinstance(cell, list) for cell in cells):
        return [cell if isinstance(cell, list) or cell is None else [cell] for cell in cells]
    return cells


def _group_rows(images: pa.ChunkedArray | None, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows in the order of their image's first appearance, and where each one's begin; encoded images count as distinct."""
    if images is None or not (pa.types.is_string(images.type) or pa.types.is_large_string(images.type)):
        return np.arange(total), np.arange(total + 1)
    code = images.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    # A missing path is nobody's twin.
    code = np.where(code < 0, len(code) + np.arange(len(code)), code)
    first, inverse = np.unique(code, return_index=True)[1], np.unique(code, return_inverse=True)[1]
    appearance = first[inverse]
    rows = np.argsort(appearance, kind="stable")
    starts = np.flatnonzero(np.diff(appearance[rows], prepend=-1))
    return rows, np.append(starts, len(rows))
