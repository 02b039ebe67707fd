"""Tables with one row per sample: an image (a path or the encoded file) and its texts, as csv, tsv, jsonl, parquet or txt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmcl.data.source import given_path
from mmcl.data.sources.tables.arrow_source import ArrowSource
from mmcl.data.sources.tables.column_names import Columns, find_columns, find_targets
from mmcl.data.sources.tables.image_urls import LOOKED_AT, find_url_column
from mmcl.data.sources.tables.table_file import LARGE, file_digest, open_table, without_problems
from mmcl.data.sources.tables.table_rows import sample_rows
from mmcl.errors import UserError
from mmcl.files.byte_range import find_file
from mmcl.files.digest import digest
from mmcl.files.disk_cache import cached_array, cached_file
from mmcl.files.remote import Copies
from mmcl.files.remote_filesystem import is_url
from mmcl.files.root import data_root


class TableSource(ArrowSource):
    """Samples from one table file. It is held in memory in Arrow format, shared by worker processes; a file above 32 MB is
    copied once to a memory-mapped file, which opens quickly and takes no memory of its own.

    Rows with the same image form one sample with several texts, see `sample_rows`. A text cell may also be a list, and there
    may be several caption columns: caption_0, caption_1, ... Equal captions of different images are positives of each other.
    A table may also have only images or only texts; with only texts, each row is a sample. A .txt file is a single column of
    captions, one per line, unless its first line names an image and a caption column. A row of a .csv or .tsv with too few or
    too many fields is a bad sample, and so is a line of a .jsonl that is not a record.

    Args:
        path: the file. The separator of a .csv or .tsv is a comma, tab, semicolon or bar, detected from its first line. May
            also be a URL (http, https, s3, gs, hf), which is copied once.
        root: copies of large files are stored in its subfolder "index", those of remote files in "remote".
        image_column, caption_column, label_column: default: the usual names ("image", "filepath", "caption", "text", ...).
        positive_column, negative_column: further texts, see `Sample`; default: the usual names ("positive", "sentence2",
            "negative", "hard_neg", ...).
        score_column: numeric human similarity ratings of caption and positive; default: "score", if there are positives.
        group_column: what makes samples dependent on each other, such as the patient, the video or the photographer: no split
            divides a group, and intervals count it as one draw; default: none. No cell may be empty.
        target_columns: columns with the answers to yes/no questions about the images, which `prompt_pairs` evaluates: 1 or
            true, 0 or false; -1 or empty if unknown. Their names are those of the questions; default: none.
        image_root: folder that image paths are relative to; default: the folder of the file. Required for a remote table with
            image paths.
        encoding: encoding of a text file, such as "cp1252", "gbk" or "utf-16"; default: that of its byte order mark, else
            UTF-8.
        header: column names of a .csv, .tsv or .txt without a header line.
        cache_gb: size limit of the copies of remote files; the least recently used are deleted.

    Raises:
        UserError: the table is invalid; names the file and the line, or lists the columns.
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
        group_column: str | None = None,
        target_columns: Sequence[str] = (),
        image_root: str | None = None,
        encoding: str | None = None,
        header: Sequence[str] | None = None,
        cache_gb: float = 100.0,
    ):
        self._file = find_file(given_path(path, "table"), Copies.below(root, cache_gb))
        self.path, local = self._file.path, self._file.local()
        self._cache = data_root(root) / "index"
        table, problems = without_problems(open_table(local, self._cache, encoding=encoding, header=header))
        if len(table) == 0:
            raise UserError(f"{self.path}: has no rows")
        given = {
            "image": image_column,
            "caption": caption_column,
            "label": label_column,
            "positive": positive_column,
            "negative": negative_column,
            "score": score_column,
            "group": group_column,
        }
        columns = find_columns(table.column_names, given, self.path)
        columns = replace(columns, targets=find_targets(table.column_names, target_columns, self.path))
        reading = [option for option in (encoding, header) if option is not None]
        grouped = () if group_column is None else ("group", group_column)
        asked = ("targets", *target_columns) if target_columns else ()
        self._fingerprint_parts = (columns, str(image_root), *reading, *grouped, *asked)
        folder = None if is_url(self.path) else local.parent
        rows = self._sample_rows(table, columns, local, f"rows 3 of {columns} {reading}")
        place = Path(image_root) if image_root else folder
        names = table.column_names
        urls = find_url_column(names, lambda name: table.column(names.index(name)).slice(0, LOOKED_AT).to_pylist())
        super().__init__(table, columns, rows, name=self.path, image_root=place, problems=problems, url_column=urls)

    def _sample_rows(self, table: pa.Table, columns: Columns, local: Path, what: str) -> np.ndarray:
        """Returns `sample_rows`, cached in a file for tables above 32 MB, since it is slow for millions of rows."""
        if local.stat().st_size < LARGE:
            return sample_rows(table, columns)
        return cached_array(cached_file(local, self._cache, what, ".npy"), lambda: sample_rows(table, columns))

    @property
    def fingerprint(self) -> str:
        return digest(file_digest(self._file.local(), self._cache), *self._fingerprint_parts)
