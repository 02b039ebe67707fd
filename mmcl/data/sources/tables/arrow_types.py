"""Conversion of Arrow's equivalent types (plain, dictionary, run-end encoded, views, JSON) to one plain type."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_PLAIN = {"string_view": pa.large_string(), "binary_view": pa.large_binary(), "null": pa.string()}


class _JsonScalar(pa.ExtensionScalar):  # type: ignore[misc]  # pyarrow has no types
    def as_py(self, **options: Any) -> Any:
        return None if self.value is None else json.loads(self.value.as_py())


class JsonType(pa.ExtensionType):  # type: ignore[misc]
    """Cells of any kind and mixed kinds, each stored as its JSON text; `as_py` gives the value."""

    def __init__(self) -> None:
        super().__init__(pa.string(), "mmcl.json")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> JsonType:
        return cls()

    def __arrow_ext_scalar_class__(self) -> type[pa.ExtensionScalar]:
        return _JsonScalar


pa.register_extension_type(JsonType())  # Needed to read mapped files, which refer to the type by name.


def is_text(kind: pa.DataType) -> bool:
    """True if a column contains texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """True if a column contains bytes, such as encoded images."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def is_list(kind: pa.DataType) -> bool:
    """True if a column contains lists, of variable or fixed length."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type that `plain` converts to: without dictionaries, runs, views and foreign extensions, at any depth."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return JsonType() if kind.extension_name in ("mmcl.json", "arrow.json") else plain_type(kind.storage_type)
    if str(kind) in _PLAIN:
        return _PLAIN[str(kind)]
    if str(kind).startswith(("list_view<", "large_list_view<")):
        return pa.large_list(plain_type(kind.value_type))
    if is_list(kind):
        value = kind.value_field.with_type(plain_type(kind.value_type))
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(value, kind.list_size)
        return pa.large_list(value) if pa.types.is_large_list(kind) else pa.list_(value)
    if pa.types.is_struct(kind):
        return pa.struct([kind.field(i).with_type(plain_type(kind.field(i).type)) for i in range(kind.num_fields)])
    return kind


def plain(array: pa.Array) -> pa.Array:
    """Converts an array to its plain type; returns it unchanged if it has that type already."""
    kind = plain_type(array.type)
    if kind == array.type:
        return array
    if isinstance(array.type, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, array.storage) if kind == JsonType() else plain(array.storage)
    if pa.types.is_run_end_encoded(array.type):
        return plain(pc.run_end_decode(array))
    if "list_view" not in str(array.type):  # A cast of list views loses cells (seen in Arrow 26).
        with suppress(pa.ArrowException):  # A cast does not support nested runs and extensions either.
            return array.cast(kind)
    return pa.array(array.to_pylist(), kind)


def plain_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Applies `plain` to every column."""
    return pa.record_batch([plain(column) for column in batch.columns], schema=plain_schema(batch.schema))


def plain_table(table: pa.Table) -> pa.Table:
    """Applies `plain` to every column; plain columns are not copied."""
    columns = [pa.chunked_array(map(plain, column.chunks), plain_type(column.type)) for column in table.columns]
    return pa.table(columns, schema=plain_schema(table.schema))


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Returns a schema with the plain type of every column, see `plain_type`."""
    return pa.schema([field.with_type(plain_type(field.type)) for field in schema], metadata=schema.metadata)
