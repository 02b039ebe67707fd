"""Columns of an index as Arrow arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from mmcl.search.items import Kind

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
