"""A csv, tsv, jsonl, parquet or txt file with a row per sample: an image (a path, or the encoded picture) and its texts."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmcl.data.columns import captions_of, find_columns, image_of, number_labels, scores_of
from mmcl.data.file_part import find_file
from mmcl.data.remote import Copies
from mmcl.data.root import data_root
from mmcl.data.servers import is_url
from mmcl.data.source import Sample, Source, digest, given_path
from mmcl.data.table_file import file_digest, open_table
from mmcl.data.table_rows import distinct, grouped_rows, is_text
from mmcl.errors import UserError


class TableSource(Source):
    """Samples from one file. It is held in memory in Arrow's compact form, which worker processes share; a file above 32 MB is
    copied once to a mapped one, which opens in a moment and takes no memory of its own.

    Rows with the same image path are one sample with several texts; a cell of texts may also be a list. Two images are not
    told apart by their captions where those are equal: equal captions are positives. Without images a row is a sample of texts
    alone; a .txt file is one column of captions, a line each.

    Args:
        path: the file; a tab or a comma separates the columns of a .csv or .tsv, whichever its header has. A URL too (http,
            https, s3, gs, hf): the file is copied once.
        root: copies of large files are kept in its subfolder "index", of files on servers in "remote".
        image_column, caption_column, label_column: by default the usual names ("image", "filepath", "caption", "text", ...).
        positive_column, negative_column: further texts, see `Sample`; by default the usual names ("positive", "sentence2",
            "negative", "hard_neg", ...).
        score_column: how alike people find caption and positive, a number; by default "score", where there are positives.
        image_root: folder that image paths are relative to; by default that of the file. A table on a server
            needs it, if it names its pictures by path.
        cache_gb: room for copies of files on servers; the least recently used go.

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
        cache_gb: float = 100.0,
    ):
        self._file = find_file(given_path(path, "table"), Copies.below(root, cache_gb))
        self.path, local = self._file.path, self._file.local()
        self._image_root = Path(image_root) if image_root else local.parent
        self._cache = data_root(root) / "index"
        table = open_table(local, self._cache)
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
        columns = find_columns(table.column_names, given, self.path)
        if columns.image and not image_root and is_url(self.path) and is_text(table.schema.field(columns.image).type):
            raise UserError(f"{self.path}: names its pictures by path; set `image_root` to the folder where they are")
        self._images = table[columns.image] if columns.image else None
        self._texts = {field: table[column] for field, column in columns.texts.items()}
        self._rows, sample = grouped_rows(self._images, len(table), local, columns.image, self._cache)
        self._first_row = np.append(np.flatnonzero(np.diff(sample, prepend=-1)), len(table))
        self._labels: np.ndarray | None = None
        if columns.label:
            self._labels, self.class_names = _labels_of(table[columns.label])
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
            label=None if self._labels is None or self._labels[row] < 0 else int(self._labels[row]),
            **texts,
        )

    @cached_property
    def labels(self) -> np.ndarray | None:
        if self._labels is None or (self._labels < 0).all():
            return None
        return self._labels[self._rows[self._first_row[:-1]]]

    @property
    def fingerprint(self) -> str:
        return digest(file_digest(self._file.local(), self._cache), *self._fingerprint_parts)


def _labels_of(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Class numbers, int64, -1 where the cell is empty, and the classes' names."""
    code, values = distinct(column)
    numbers, names = number_labels(values.to_pylist())
    number_of = np.array([-1 if number is None else number for number in numbers] + [-1], np.int64)
    return number_of[code], names
