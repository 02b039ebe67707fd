"""JSON Lines tables: one object per line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmcl.data.sources.tables.arrow_types import JsonType
from mmcl.data.sources.tables.csv_table import PROBLEMS
from mmcl.errors import UserError, first_line
from mmcl.files.text_file import text_lines

PIECE = 10_000


def json_batches(path: Path, encoding: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Reads the file twice, first for the columns and then for the cells. A column with only texts becomes a text column; other
    columns store their cells as JSON, so types are not guessed from the first rows and may differ between cells.

    A line that is not a record does not affect others: its row is empty except for `PROBLEMS`, which gives the reason.

    Raises:
        UserError: most lines are not records; names the first.
    """
    is_text: dict[str, bool] = {}
    total, problems = 0, []
    for rows in _pieces(path, encoding):
        total += len(rows)
        for row in rows:
            problems += [row[PROBLEMS]] if PROBLEMS in row else []
            for key, cell in row.items():
                is_text[key] = is_text.get(key, True) and (cell is None or isinstance(cell, str))
    if 2 * len(problems) > total:
        raise UserError(f"{path}, {problems[0]}")
    schema = pa.schema([(key, pa.string() if is_text[key] else JsonType()) for key in is_text])
    return schema, (pa.record_batch([_column(rows, field) for field in schema], schema) for rows in _pieces(path, encoding))


def _column(rows: list[dict[str, Any]], field: pa.Field) -> pa.Array:
    cells = [row.get(field.name) for row in rows]
    if field.type == pa.string():
        return pa.array(cells, field.type)
    texts = [None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells]
    return pa.ExtensionArray.from_storage(field.type, pa.array(texts, pa.string()))


def _pieces(path: Path, encoding: str) -> Iterator[list[dict[str, Any]]]:
    rows = (_row(number, line) for number, line in text_lines(path, encoding) if line.strip())
    while piece := list(itertools.islice(rows, PIECE)):
        yield piece


def _row(number: int, line: str) -> dict[str, Any]:
    """Parses the record on a line, or returns the reason why there is none."""
    try:
        row = json.loads(line, object_pairs_hook=_object)
        if "\\ud" in line.lower():  # JSON may contain lone surrogates, which a table and a tokenizer cannot encode.
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return {PROBLEMS: f"line {number} holds half a character (a lone surrogate); write the whole"}
    except (ValueError, RecursionError) as error:
        return {PROBLEMS: f"line {number} is not JSON: {first_line(error)}; a line must hold one whole record"}
    if not isinstance(row, dict) or PROBLEMS in row:
        return {PROBLEMS: f"line {number} must be an object with the keys image and caption"}
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"the key {twice!r} occurs twice in an object")
    return made
