"""Grouping of table rows with the same image into samples."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmcl.data.sources.tables.arrow_types import JsonType, is_bytes, is_list, is_text
from mmcl.data.sources.tables.column_names import MAX_PATH_BYTES, TEXT_KEYS, Columns, image_of
from mmcl.errors import UserError

_DOTS, _SLASHES = r"(^|/)(?:\./+)+", "/{2,}"


def sample_rows(table: pa.Table, columns: Columns) -> np.ndarray:
    """Groups rows as `group_rows` does, by image path or, in a table of captions, by encoded image.

    With labels or without captions, equal encoded images are not merged, so that a labeled dataset keeps its size.
    """
    images = table[columns.image] if columns.image else None
    return group_rows(images, len(table), by_content=columns.caption is not None and columns.label is None)


def group_rows(images: pa.ChunkedArray | None, total: int, *, by_content: bool = False) -> np.ndarray:
    """Sorts rows by the first appearance of their image; missing images count as distinct.

    Args:
        images: column of a `plain_type` type; None if the table has no images.
        total: number of rows.
        by_content: whether encoded images with equal bytes are the same; else all count as distinct.

    Returns:
        int64 [2, total]: the rows, and the index of each row's sample, ascending from 0.
    """
    row_N = np.arange(total)
    paths = None if images is None else image_paths(images)
    content = _encoded(images) if by_content and images is not None else None
    keys = [key for key in (paths, content and _content_keys(content)) if key is not None]
    if not keys:
        return np.stack([row_N, row_N])
    code_N, values = distinct(pc.coalesce(*keys))
    first_V = np.empty(len(values), np.int64)
    present = np.flatnonzero(code_N >= 0)
    first_V[code_N[present[::-1]]] = present[::-1]  # In reverse order, so that the smallest row is written last.
    first_N = row_N.copy()
    first_N[present] = first_V[code_N[present]]
    order_N = np.argsort(first_N, kind="stable")
    return np.stack([order_N, np.cumsum(np.diff(first_N[order_N], prepend=first_N[order_N[0]]) > 0)])


def image_paths(images: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Extracts the path from every image cell, null if it has none; None if no cell has a path.

    Args:
        images: column of a `plain_type` type.

    Returns:
        Texts, normalized so that "." and double slashes do not make paths of the same file differ.
    """
    if is_text(images.type):
        return _normal(images)
    if is_list(images.type):
        return _paths_in_lists(images)
    if pa.types.is_struct(images.type):
        return _paths_in_structs(images)
    if is_bytes(images.type) and (pc.max(pc.binary_length(images)).as_py() or 0) > MAX_PATH_BYTES:
        return None  # Encoded images, recognized by their lengths without reading them.
    if not is_bytes(images.type) and images.type != JsonType():
        return None
    chunks = [pa.array(map(_path_in, chunk), pa.large_string()) for chunk in images.chunks]
    return _normal(pa.chunked_array(chunks, pa.large_string()))


def distinct(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Returns the index of every cell's value among the distinct values, int64, -1 if missing; and the distinct values."""
    encoded = column.dictionary_encode()  # All chunks share one dictionary.
    codes = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    return np.concatenate(codes).astype(np.int64), encoded.chunk(0).dictionary


def missing_cells(column: pa.ChunkedArray) -> np.ndarray:
    """Mask of the empty cells (`is_missing`) of a column of images or texts: bool [N]."""
    if column.type == JsonType():
        texts = pa.chunked_array([chunk.storage for chunk in column.chunks], pa.string())
        return np.asarray(pc.or_(pc.is_null(texts), pc.is_in(texts, pa.array(['""', "[]", "NaN"]))))
    if pa.types.is_struct(column.type):
        keys = [field.name for field in column.type if field.name in ("bytes", "path", *TEXT_KEYS)]
        parts = [missing_cells(pc.struct_field(column, key)) for key in keys]
        missing: np.ndarray = np.logical_and.reduce([np.asarray(pc.is_null(column) if not parts else parts[0]), *parts])
        return missing
    empty = pc.is_null(column, nan_is_null=True)
    if is_text(column.type):
        trimmed = pc.utf8_trim_whitespace(column)
        empty = pc.or_(pc.equal(trimmed, ""), pc.equal(trimmed, "[]"))
    elif is_bytes(column.type):
        empty = pc.equal(pc.binary_length(column), 0)
    elif is_list(column.type):
        empty = pc.equal(pc.list_value_length(column), 0)
    return np.asarray(pc.fill_null(empty, True))


def _normal(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    paths = pc.if_else(pc.equal(pc.utf8_trim_whitespace(paths), ""), pa.scalar(None, paths.type), paths)
    if pc.any(pc.match_substring(paths, "./")).as_py():
        paths = pc.replace_substring_regex(paths, _DOTS, r"\1")
    if pc.any(pc.match_substring(paths, "//")).as_py():
        paths = pc.replace_substring_regex(paths, _SLASHES, "/")
    if not pc.all(pc.string_is_ascii(paths)).as_py():
        paths = pc.utf8_normalize(paths, form="NFC")
    return paths


def _encoded(images: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Returns the column with the encoded images."""
    if pa.types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
        images = pc.struct_field(images, "bytes")
    return images if is_bytes(images.type) else None


def _content_keys(images: pa.ChunkedArray) -> pa.ChunkedArray:
    """Digests of encoded images that may be duplicates; the others are null, and only a few bytes of them are read."""
    glance_N = np.array([_glance(cell.as_buffer()) for cell in images], np.int64)
    _, number_N, count_V = np.unique(glance_N, return_inverse=True, return_counts=True)
    again_N = (count_V[number_N] > 1) & (glance_N != 0)
    keys = (_digest(cell.as_buffer()) if again else None for cell, again in zip(images, again_N, strict=True))
    return pa.chunked_array([pa.array(keys, pa.large_string())])


def _glance(image: pa.Buffer | None) -> int:
    """Cheap key of an encoded image: equal for equal bytes; 0 for None."""
    if not image:
        return 0
    view, middle = memoryview(image), len(image) // 2
    return hash((len(image), bytes(view[:64]), bytes(view[middle : middle + 64]), bytes(view[-64:]))) | 1


def _digest(image: pa.Buffer) -> str:
    """Digest of an encoded image; never equal to a path."""
    return "\0" + hashlib.blake2b(image, digest_size=16).hexdigest()


def _path_in(cell: pa.Scalar) -> str | None:
    try:
        image = image_of(cell.as_py())
    except UserError:
        return None
    return image if isinstance(image, str) else None


def _paths_in_lists(images: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Extracts paths from single-element lists; a longer list is a bad sample of its own."""
    paths = image_paths(pa.chunked_array([chunk.flatten() for chunk in images.chunks], images.type.value_type))
    if paths is None:
        return None
    if len(paths) == 0:
        return pa.chunked_array([pa.nulls(len(images), pa.string())])
    length_N = pc.fill_null(pc.list_value_length(images), 0).to_numpy()
    place_N = np.cumsum(length_N) - length_N
    return paths.take(pa.array(place_N, mask=length_N != 1))


def _paths_in_structs(images: pa.ChunkedArray) -> pa.ChunkedArray | None:
    kind = images.type
    if kind.get_field_index("path") < 0 or not is_text(kind.field("path").type):
        return None
    paths = pc.struct_field(images, "path")
    if kind.get_field_index("bytes") >= 0:
        content = pc.struct_field(images, "bytes")
        if not (is_bytes(content.type) or is_text(content.type)):
            return None
        encoded = pc.fill_null(pc.greater(pc.binary_length(content), 0), False)
        paths = pc.if_else(encoded, pa.scalar(None, paths.type), paths)
    return _normal(paths)
