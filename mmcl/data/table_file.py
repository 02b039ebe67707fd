"""Table files: small ones are read, large ones are copied once to a file that is mapped."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mmcl.data.kept import cached_file, staged
from mmcl.data.source import digest
from mmcl.errors import UserError, first_line

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")
LARGE = 2**25
PIECE = 10_000


def open_table(path: Path, cache: Path) -> pa.Table:
    """`read_table`, but a file above 32 MB is mapped from a copy, which takes no memory of its own; a .txt file never is.

    Args:
        path: the file.
        cache: folder of the copies; one belongs to the file's size and time.

    Raises:
        UserError: the file is no table, or its copy cannot be written.
    """
    if path.suffix not in (".csv", ".tsv", ".jsonl", ".parquet") or path.stat().st_size < LARGE:
        return read_table(path)
    copy = cached_file(path, cache, "table", ".arrow")
    if not copy.exists():
        try:
            stage = staged(copy)
            _copy(path, stage)
            stage.replace(copy)
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise UserError(f"{path}: cannot be copied to {copy}: {first_line(error)}") from None
    return pa.ipc.open_file(pa.memory_map(str(copy))).read_all()


def file_digest(path: Path, cache: Path) -> str:
    """Of a file's content; that of a file above 32 MB is kept, so that it is read once. Raises UserError where it cannot be."""
    if path.stat().st_size < LARGE:
        return digest(path)
    kept = cached_file(path, cache, "digest", ".txt")
    if not kept.exists():
        content = digest(path)
        try:
            stage = staged(kept)
            stage.write_text(content)
            stage.replace(kept)
        except OSError as error:
            raise UserError(f"{kept}: cannot be written: {first_line(error)}") from None
    return kept.read_text()


def _copy(path: Path, target: Path) -> None:
    """Piece by piece, so that no more than a piece is in memory."""
    read = {".parquet": _parquet_batches, ".jsonl": _jsonl_batches}.get(path.suffix, _csv_batches)
    schema, batches = read(path)
    with pa.ipc.new_file(str(target), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _parquet_batches(path: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    file = pa.parquet.ParquetFile(path, memory_map=True)
    return file.schema_arrow, file.iter_batches()


def _csv_batches(path: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    reader = pa.csv.open_csv(path, **_csv_options(path))
    return reader.schema, iter(reader)


def read_table(path: Path) -> pa.Table:
    """Reads a .csv, .tsv, .jsonl, .parquet or .txt file. Raises UserError with the file and, where it is text, the line."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: a table must be one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".parquet":
            return pa.parquet.read_table(path)
        if path.suffix == ".txt":
            return pa.table({"text": [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]})
        if path.suffix == ".jsonl":
            schema, batches = _jsonl_batches(path)
            return pa.Table.from_batches(batches, schema)
        return pa.csv.read_csv(path, **_csv_options(path))
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]}: {first_line(error)}") from None


def _csv_options(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline()
    if not header.strip():
        raise UserError(f"{path}: is empty; its first line must name the columns")
    parse = pa.csv.ParseOptions(delimiter="\t" if "\t" in header and "," not in header else ",", newlines_in_values=True)
    with pa.csv.open_csv(path, parse_options=parse) as reader:
        names = reader.schema.names
    # All columns are texts: a caption "12" is no number and "NA" is not missing.
    convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    return {"parse_options": parse, "convert_options": convert}


def _jsonl_batches(path: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Reads the file twice, for the columns and their types and then for the cells. Raises UserError with the line."""
    listed: set[str] = set()
    schema = pa.schema([])
    for rows in _jsonl_pieces(path):
        keys = dict.fromkeys(key for row in rows for key in row)
        listed |= {key for row in rows for key, cell in row.items() if isinstance(cell, list)}
        types = ((key, pa.infer_type([cell for row in rows for cell in _cells(row.get(key))])) for key in keys)
        schema = pa.unify_schemas([schema, pa.schema(types)], promote_options="permissive")
    # One caption and several may stand in the same column: every cell is a list where one is.
    schema = pa.schema([(field.name, pa.list_(field.type) if field.name in listed else field.type) for field in schema])

    def batches() -> Iterator[pa.RecordBatch]:
        for rows in _jsonl_pieces(path):
            columns = {key: [_as_list(row.get(key)) if key in listed else row.get(key) for row in rows] for key in schema.names}
            yield pa.record_batch([pa.array(columns[field.name], field.type) for field in schema], schema=schema)

    return schema, batches()


def _jsonl_pieces(path: Path) -> Iterator[list[dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        rows = (_json_row(path, number, line) for number, line in enumerate(file, 1) if line.strip())
        while piece := list(itertools.islice(rows, PIECE)):
            yield piece


def _json_row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if "\\ud" in line.lower():  # JSON can spell halves of characters; a table, and a tokenizer, cannot.
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}, line {number}: holds half a character (a lone surrogate); write the whole") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number}: is not JSON: {first_line(error)}") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number}: must be an object with the keys image and caption")
    return row


def _cells(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else [cell]


def _as_list(cell: Any) -> list[Any] | None:
    return None if cell is None else _cells(cell)
