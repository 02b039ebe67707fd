"""Table files: small ones are read, large ones are copied once to a file that is mapped."""

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
    """`read_table`, but a file above 32 MB is mapped from a copy, which takes no memory of its own.

    Args:
        path: the file.
        cache: folder of the copies; one belongs to the file's size and time.
        encoding, header: see `read_table`.

    Raises:
        UserError: the file is no table, or its copy cannot be written.
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
    """Of a file's content; that of a file above 32 MB is kept, so that it is read once. Raises UserError where it cannot be."""
    if path.stat().st_size < LARGE:
        return digest(path)
    kept = cached_file(path, cache, "digest", ".txt")
    if not kept.exists():
        write_file(kept, digest(path))
    return kept.read_text()


def read_table(path: Path, *, encoding: str | None = None, header: Sequence[str] | None = None) -> pa.Table:
    """Reads a table into memory. Its columns have types of `plain_type`; the cells of text files are texts, or JSON.

    Args:
        path: a .csv, .tsv, .jsonl, .ndjson, .parquet or .txt file.
        encoding: of a text file; by default what its byte order mark says, else UTF-8.
        header: names of the columns of a .csv, .tsv or .txt file whose first line is a row.

    Raises:
        UserError: names the file and, where it is text, the line; or a .parquet unpacks to more than is read.
    """
    try:
        schema, batches = _batches(path, encoding, header)
        return pa.Table.from_batches(batches, schema)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]}: {first_line(error)}") from None


def without_problems(table: pa.Table) -> tuple[pa.Table, dict[int, str]]:
    """A table as it was read, and its rows that cannot be used, with the reason. Their cells are null."""
    if PROBLEMS not in table.column_names:
        return table, {}
    problems = table[PROBLEMS]
    rows = np.flatnonzero(np.asarray(pc.is_valid(problems)))
    return table.drop_columns(PROBLEMS), {int(row): problems[int(row)].as_py() for row in rows}


def _copy(table: Batches, target: Path) -> None:
    """Piece by piece, so that no more than a piece is in memory."""
    schema, batches = table
    with pa.ipc.new_file(str(target), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _batches(path: Path, encoding: str | None, header: Sequence[str] | None) -> Batches:
    """A table in pieces. Raises UserError, now or with any piece."""
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
    """A caption on every line that is not empty."""
    schema = pa.schema([("text", pa.string())])
    lines = (line for _, line in text_lines(path, encoding) if line.strip())
    pieces = iter(lambda: list(itertools.islice(lines, PIECE_ROWS)), [])
    return schema, (pa.record_batch([pa.array(piece, pa.string())], schema=schema) for piece in pieces)
