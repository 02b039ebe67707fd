"""Reading of table files: small ones into memory, large ones through a memory-mapped copy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmcl.data.sources.tables.arrow_types import plain_batch, plain_schema
from mmcl.data.sources.tables.csv_table import PROBLEMS, csv_batches, is_delimited
from mmcl.data.sources.tables.json_table import json_batches
from mmcl.errors import UserError, first_line
from mmcl.files.atomic import staged, write_file
from mmcl.files.digest import digest
from mmcl.files.disk_cache import cached_file
from mmcl.files.listing import LFS_POINTER
from mmcl.files.parquet import PIECE_ROWS, parquet_batches
from mmcl.files.text_file import find_encoding, text_lines

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".txt")
LARGE = 2**25

Batches = tuple[pa.Schema, Iterator[pa.RecordBatch]]


def is_table(path: str | Path) -> bool:
    """True if a file is a table, by its suffix in any case."""
    return str(path).lower().endswith(SUFFIXES)


def open_table(path: Path, cache: Path, *, encoding: str | None = None, header: Sequence[str] | None = None) -> pa.Table:
    """Reads a table as `read_table` does, but memory-maps a copy of a file above 32 MB.

    Args:
        path: the file.
        cache: folder of the copies; a copy is valid for the file's size and time.
        encoding, header: see `read_table`.

    Raises:
        UserError: the file is not a table, or its copy cannot be written.
    """
    if path.stat().st_size < LARGE:
        return read_table(path, encoding=encoding, header=header)
    copy = cached_file(path, cache, f"table 3 {encoding} {header and list(header)}", ".arrow")
    if not copy.exists():
        try:
            with staged(copy) as stage:
                _copy(_batches(path, encoding, header), stage)
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise UserError(f"{path}: cannot be copied to {copy}: {first_line(error)}") from None
    return pa.ipc.open_file(pa.memory_map(str(copy))).read_all()


def file_digest(path: Path, cache: Path) -> str:
    """Digest of a file's content, cached for files above 32 MB. Raises UserError if the cache cannot be written."""
    if path.stat().st_size < LARGE:
        return digest(path)
    kept = cached_file(path, cache, "digest", ".txt")
    if not kept.exists():
        write_file(kept, digest(path))
    return kept.read_text()


def read_table(path: Path, *, encoding: str | None = None, header: Sequence[str] | None = None) -> pa.Table:
    """Reads a table into memory. Its columns have `plain_type` types; the cells of text files are texts or JSON.

    Args:
        path: a .csv, .tsv, .jsonl, .ndjson, .parquet or .txt file.
        encoding: encoding of a text file; default: that of its byte order mark, else UTF-8.
        header: column names of a .csv, .tsv or .txt file without a header line.

    Raises:
        UserError: the file is invalid (names it and, for text, the line), or a .parquet file unpacks to more than the limit.
    """
    try:
        schema, batches = _batches(path, encoding, header)
        return pa.Table.from_batches(batches, schema)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]}: {first_line(error)}") from None


def without_problems(table: pa.Table) -> tuple[pa.Table, dict[int, str]]:
    """Splits off the problems: returns the table, in which unusable rows have null cells, and row -> reason for those rows."""
    if PROBLEMS not in table.column_names:
        return table, {}
    problems = table[PROBLEMS]
    rows = np.flatnonzero(np.asarray(pc.is_valid(problems)))
    return table.drop_columns(PROBLEMS), {int(row): problems[int(row)].as_py() for row in rows}


def _copy(table: Batches, target: Path) -> None:
    """Copies batch by batch, so that only one batch is in memory."""
    schema, batches = table
    with pa.ipc.new_file(str(target), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _batches(path: Path, encoding: str | None, header: Sequence[str] | None) -> Batches:
    """Reads a table in batches. Raises UserError, immediately or with any batch."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: a table must be one of {', '.join(SUFFIXES)}")
    if header is not None and suffix not in (".csv", ".tsv", ".txt"):
        raise UserError(f"{path}: `header` is for .csv, .tsv and .txt files; remove it, as this one names its columns itself")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{path}: is a pointer of Git LFS; fetch the file by `git lfs pull`")
    if suffix == ".parquet":
        if encoding is not None:
            raise UserError(f"{path}: `encoding` is for text files; remove it")
        return _parquet_batches(path)
    found = find_encoding(path, encoding)
    if suffix in (".jsonl", ".ndjson"):
        return json_batches(path, found)
    if suffix == ".txt" and header is None and not is_delimited(path, found):
        return _line_batches(path, found)
    return csv_batches(path, found, header)


def _parquet_batches(path: Path) -> Batches:
    schema, batches = parquet_batches(path)
    return plain_schema(schema), map(plain_batch, batches)


def _line_batches(path: Path, encoding: str) -> Batches:
    """Reads one caption per non-empty line."""
    schema = pa.schema([("text", pa.string())])
    lines = (line for _, line in text_lines(path, encoding) if line.strip())
    pieces = iter(lambda: list(itertools.islice(lines, PIECE_ROWS)), [])
    return schema, (pa.record_batch([pa.array(piece, pa.string())], schema=schema) for piece in pieces)
