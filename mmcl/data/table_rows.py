"""Which rows of a table are one sample: those with the same image path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from mmcl.data.kept import cached_file, kept_array
from mmcl.data.table_file import LARGE


def grouped_rows(images: pa.ChunkedArray | None, total: int, path: Path, column: str | None, cache: Path) -> np.ndarray:
    """`group_rows`, kept in a file for tables above 32 MB, as it takes a while for millions of paths."""
    if path.stat().st_size < LARGE:
        return group_rows(images, total)
    return kept_array(cached_file(path, cache, f"rows of {column}", ".npy"), lambda: group_rows(images, total))


def group_rows(images: pa.ChunkedArray | None, total: int) -> np.ndarray:
    """Rows in the order of their image's first appearance; encoded images, and missing ones, count as distinct.

    Returns:
        int64 [2, total]: the rows, and the number of the sample that each belongs to, which rises from 0.
    """
    row_N = np.arange(total)
    if images is None or not is_text(images.type):
        return np.stack([row_N, row_N])
    code_N, values = distinct(images)
    first_V = np.empty(len(values), np.int64)
    present = np.flatnonzero(code_N >= 0)
    first_V[code_N[present[::-1]]] = present[::-1]  # The last write is that of the smallest row.
    first_N = row_N.copy()
    first_N[present] = first_V[code_N[present]]
    order_N = np.argsort(first_N, kind="stable")
    return np.stack([order_N, np.cumsum(np.diff(first_N[order_N], prepend=first_N[order_N[0]]) > 0)])


def is_text(kind: pa.DataType) -> bool:
    """Whether the cells of a column are texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def distinct(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """The number of every cell's value among the distinct ones, int64, -1 for a missing cell; and these values."""
    # All chunks that are encoded here share one dictionary; those that a file brings encoded need not.
    encoded = column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    codes = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    return np.concatenate(codes).astype(np.int64), encoded.chunk(0).dictionary
