"""Bounded reading of Parquet files, in batches: a few bytes of a file can encode any number of rows.

The unpacked size is checked before memory is allocated. The footer gives the number of values. Each text is stored once in a
dictionary, so the longest entry gives an upper bound; if the bound is too large, the lengths are added up row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmcl.errors import UserError, first_line

UNPACKED_BYTES = 2**30
UNPACKED_FOLD = 50
"""A file may unpack to 1 GB whatever its size, enough for millions of equal captions, or to fifty times its size."""
PIECE_ROWS, PIECE_BYTES = 2**16, 2**24
_CELL_BYTES = 64
"""Python's memory overhead per row, and per text in addition to its characters."""
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


def parquet_batches(path: Path, columns: Sequence[str] | None = None) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Reads a file as stored, in record batches.

    Args:
        path: the file.
        columns: names of the columns to read; None for all.

    Raises:
        UserError: the file unpacks to more than `UNPACKED_BYTES` and `UNPACKED_FOLD` allow.
        pyarrow.ArrowException, OSError, UnicodeError: the file is damaged.
    """
    file = pq.ParquetFile(path, memory_map=True)
    longest = check_unpacked(path)
    groups = range(file.metadata.num_row_groups)
    per_row = sum(file.metadata.row_group(group).total_byte_size for group in groups) // max(1, file.metadata.num_rows)
    rows = min(PIECE_ROWS, PIECE_BYTES // max(1, per_row, longest)) or 1
    # One row group at a time: Arrow does not merge dictionaries nested in lists.
    batches = (batch for group in groups for batch in file.iter_batches(rows, row_groups=[group], columns=columns))
    return file.schema_arrow, (_validated(batch, path) for batch in batches)


def _validated(batch: pa.RecordBatch, path: Path) -> pa.RecordBatch:
    """Validates a batch: Arrow itself trusts the file that the bytes of a text are valid UTF-8."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: is damaged: {first_line(error)}; write it again") from None
    return batch


def check_unpacked(path: Path) -> int:
    """Returns an upper bound of the bytes per row, from the longest texts. Raises as `parquet_batches` does."""
    limit = max(UNPACKED_BYTES, UNPACKED_FOLD * path.stat().st_size)
    texts = _text_columns(pq.ParquetFile(path, memory_map=True))
    file = pq.ParquetFile(path, memory_map=True, read_dictionary=texts)
    size = _declared(file.metadata)
    if not 0 <= size <= limit:
        raise _too_much(path, size, limit)
    longest = [_longest(file, group, texts) for group in range(file.metadata.num_row_groups)]
    if size + sum(longest[group] * _values(file.metadata, group, texts) for group in range(len(longest))) > limit:
        for batch in file.iter_batches(PIECE_ROWS, columns=texts):
            size += sum(map(_text_bytes, batch.columns))
            if size > limit:
                raise _too_much(path, size, limit)
    per_row: int = _values(file.metadata, None, texts) // max(1, file.metadata.num_rows)
    return max(longest, default=0) * max(1, per_row)


def _text_columns(file: pq.ParquetFile) -> list[str]:
    schema = file.metadata.schema
    columns = (schema.column(number) for number in range(len(schema)))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _declared(metadata: pq.FileMetaData) -> int:
    """Bytes of all values except the characters of texts, according to the footer; negative if its numbers are impossible."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    sizes = [metadata.num_rows * _CELL_BYTES]
    if metadata.num_rows != sum(group.num_rows for group in groups):
        return -1
    for group in groups:
        sizes.append(group.num_rows)
        for number in range(group.num_columns):
            column, length = group.column(number), metadata.schema.column(number).length
            width = _WIDTHS.get(column.physical_type, _CELL_BYTES + (length or 0))
            sizes += [column.num_values * width, column.total_uncompressed_size, column.total_compressed_size]
    return min(sizes) if min(sizes) < 0 else sum(sizes)


def _values(metadata: pq.FileMetaData, group: int | None, texts: Sequence[str]) -> int:
    """Number of texts in a row group, or in all of them."""
    groups = range(metadata.num_row_groups) if group is None else [group]
    columns = (metadata.row_group(each).column(c) for each in groups for c in range(metadata.num_columns))
    return sum(column.num_values for column in columns if column.path_in_schema in texts)


def _longest(file: pq.ParquetFile, group: int, texts: Sequence[str]) -> int:
    """Bytes of the longest text in the dictionaries of a row group; reading the first row loads the whole dictionary."""
    batch = next(file.iter_batches(1, row_groups=[group], columns=texts), None) if texts else None
    leaves = [] if batch is None else [leaf for column in batch.columns for leaf in _leaves(column)]
    return max((pc.max(pc.binary_length(leaf.dictionary)).as_py() or 0 for leaf in leaves), default=0)


def _text_bytes(column: pa.Array) -> int:
    lengths = (pc.take(pc.binary_length(leaf.dictionary), leaf.indices) for leaf in _leaves(column))
    return sum(pc.sum(each.cast(pa.int64())).as_py() or 0 for each in lengths)


def _leaves(array: pa.Array) -> Iterator[pa.DictionaryArray]:
    """Yields the dictionary arrays of texts in an array, at any nesting depth."""
    if isinstance(array, pa.DictionaryArray):
        if pa.types.is_binary(array.type.value_type) or pa.types.is_string(array.type.value_type):
            yield array
    elif isinstance(array, pa.ExtensionArray):
        yield from _leaves(array.storage)
    elif isinstance(array, pa.StructArray):
        for child in array.flatten():
            yield from _leaves(child)
    elif isinstance(array, pa.MapArray):
        yield from _leaves(array.keys)
        yield from _leaves(array.items)
    elif isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        yield from _leaves(array.flatten())


def _too_much(path: Path, size: int, limit: int) -> UserError:
    if size < 0:
        return UserError(f"{path}: is damaged: its footer has impossible numbers; write it again")
    return UserError(
        f"{path}: {path.stat().st_size / 1e6:,.1f} MB unpack to more than {size / 1e9:,.1f} GB, and at most {limit / 1e9:,.1f} "
        "are read; if that is what you mean, write it as several files"
    )
