"""Columns of an index as Arrow arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mmcl.search.items import Kind
from mmcl.search.narrow import Narrow, widened

TYPES: Mapping[Kind, pa.DataType] = {
    "text": pa.string(),
    "texts": pa.list_(pa.string()),
    "whole": pa.int64(),
    "number": pa.float64(),
    "truth": pa.bool_(),
    "date": pa.timestamp("us"),
}


def array_of(values: Sequence[Any], kind: Kind) -> pa.Array:
    """Returns values of one kind, None where missing, as an array."""
    return pa.array(values, TYPES[kind])


def kind_of(kind: pa.DataType) -> Kind | None:
    """Returns the kind that holds values of a type of Arrow's; None if there is none."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        return "text"
    if pa.types.is_integer(kind):
        return "whole"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_boolean(kind):
        return "truth"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "date"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return "texts" if kind_of(kind.value_type) == "text" else None
    return None


def vectors_of(column: pa.Array | pa.ChunkedArray, dim: int, narrow: Narrow | None) -> np.ndarray:
    """Returns the vectors in a column without a missing one, [n, dim]: as they are stored, or float32 of narrow rows."""
    if pa.types.is_fixed_size_binary(column.type):
        assert narrow is not None
        return widened(codes_of(column), narrow, dim)
    values: np.ndarray = _whole(column).flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    return values


def codes_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Returns the codes in a column without a missing one, uint8 [n, B]."""
    codes = _whole(column)
    size = codes.type.byte_width
    return np.frombuffer(codes.buffers()[1], np.uint8, len(codes) * size, codes.offset * size).reshape(len(codes), size)


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
