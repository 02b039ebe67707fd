"""Tables of embeddings: folders of `mmcl embed`, and parquet files of any origin.

The rows of a table are copied once into .npy files below the data root, in a folder whose name is a digest of the content, so
that any number of processes and runs map them into memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmcl.data.sources.tables.table_file import file_digest
from mmcl.data.usage import Unused, count_unused, merge_unused
from mmcl.errors import UserError, first_line
from mmcl.files.atomic import staged
from mmcl.files.digest import digest
from mmcl.files.mapped import GrowingArray
from mmcl.files.parquet import parquet_batches
from mmcl.files.untrusted import parse_json, read_json
from mmcl.progress import progress_bar

KINDS = ("image", "text", "class")
PLAN, DONE, METADATA_KEY = "plan.json", "done.json", "mmcl"
"""Of folders of `mmcl embed`: what they hold, and the digests of their files once these are complete; and what a file says of
the model and the data."""
FEATURES = "features of "
"""Before the fingerprint of a model whose features are stored in place of its embeddings."""
_UNUSED = "unused.json"
_DESCRIBED = ("key", "name", "label", "group")
"""Columns of what describes the rows in a copy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Columns of a table that mmcl did not write, with a pair of an image and a text in each row.

    Attributes:
        image, text: lists of numbers, all of one length.
        caption: the text itself.
        label: the class of the image.
        group: the group of the image, such as the patient.
        id: what the image and the text belong to, if they are not in the same row.
    """

    image: str | None = None
    text: str | None = None
    caption: str | None = None
    label: str | None = None
    group: str | None = None
    id: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """Those that are given, by the names of the arguments of the source."""
        return {f"{name}_column": value for name in self.__slots__ if (value := getattr(self, name)) is not None}

    def __or__(self, other: Columns) -> Columns:
        """Those of either."""
        return Columns(**{name: getattr(self, name) or getattr(other, name) for name in self.__slots__})


@dataclass(frozen=True, slots=True)
class EmbeddedRows:
    """The rows of one kind.

    Attributes:
        file: their numbers, .npy of float32 or float16 [R, F].
        width: F.
        keys: what they belong to: whole numbers or texts, R of them, or None.
        names: of images and classes; of texts, the text itself.
        labels: classes of the images, or None.
        groups: groups of the images, or None.
    """

    file: Path
    width: int
    keys: pa.ChunkedArray
    names: Sequence[str]
    labels: Sequence[Any]
    groups: Sequence[Any]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedTable:
    """A table of embeddings.

    Attributes:
        path: the folder or file.
        digest: of its content.
        model: fingerprint of the model that wrote it; "" if unknown.
        data: fingerprint of the source that was embedded; "" if unknown.
        kinds: rows by kind: "image", "text", "class".
        unused: reason -> rows without an embedding.
    """

    path: Path
    digest: str
    model: str
    data: str
    kinds: Mapping[str, EmbeddedRows]
    unused: Mapping[str, Unused] = field(default_factory=dict)


class _Piece(NamedTuple):
    """Some rows of one kind, in the order of the table."""

    kind: str
    keys: pa.Array
    names: pa.Array
    labels: pa.Array
    groups: pa.Array
    values_NF: np.ndarray
    unused: Sequence[tuple[str, str]] = ()


def open_embeddings(path: Path, columns: Columns, cache: Path) -> EmbeddedTable:
    """Opens a table; its rows are copied if that has not been done.

    Args:
        path: a folder of `mmcl embed`, a parquet file that it wrote, or a parquet file or a folder of them of any origin.
        columns: columns of the last; they are refused for the others, which have columns of their own.
        cache: folder of the copies.

    Raises:
        UserError: it is not such a table, is damaged or incomplete, has rows of two widths or of values that are no finite
            numbers, or the copies cannot be written.
    """
    if (path / PLAN).is_file():
        _refuse_columns(path, columns)
        plan, done = _complete(path)
        content = digest(sorted(plan.items()), sorted(done.items()))
        model, data, pieces = f"{FEATURES if plan['features'] else ''}{plan['model']}", plan["data"], _of_shards(path, done)
    else:
        files = _parquet_files(path)
        schema = _schema(files[0])
        is_ours = {"kind", "embedding"} <= {*schema.names} and not (columns.image or columns.text)
        if is_ours:
            _refuse_columns(path, columns)
        content = digest(*(file_digest(file, cache) for file in files), sorted(columns.given.items()))
        model, data = (_stated(schema, name) for name in ("model", "data"))
        pieces = _by_kind(files) if is_ours else _in_pairs(files, columns)
    folder = cache / f"embeddings-{digest(content, _DESCRIBED)[:32]}"
    if not folder.exists():
        _copy(pieces, folder, path)
    try:
        kinds = {kind: _read(folder, kind) for kind in KINDS if (folder / f"{kind}.npy").exists()}
        unused = {reason: Unused(count, tuple(names)) for reason, (count, names) in read_json(folder / _UNUSED).items()}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{folder}: a copy of {path} is damaged ({first_line(error)}); delete it") from None
    return EmbeddedTable(path=path, digest=content, model=model, data=data, kinds=kinds, unused=unused)


def _refuse_columns(path: Path, columns: Columns) -> None:
    for name in columns.given:
        raise UserError(f"{path}: was written by `mmcl embed` and has columns of its own; remove {name}")


def _parquet_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or files[0].suffix.lower() != ".parquet":
        what = "has no .parquet files" if path.is_dir() else "is not a .parquet file"
        raise UserError(f"{path}: {what}; give those with the embeddings, or a folder of `mmcl embed`")
    return files


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{file}: cannot be read as parquet: {first_line(error)}") from None


def _stated(schema: pa.Schema, name: str) -> str:
    """What a file of `mmcl embed` says of its origin; "" if it says nothing."""
    stored = (schema.metadata or {}).get(METADATA_KEY.encode())
    value = parse_json(stored, METADATA_KEY).get(name) if stored else None
    return value if isinstance(value, str) else ""


def _complete(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the plan of a folder of shards, and the SHA-256 of each file. Raises UserError if it is not complete."""
    plan = read_json(folder / PLAN)
    kinds = {"model": str, "data": str, "features": bool}
    if not isinstance(plan, dict) or not all(isinstance(plan.get(name), kind) for name, kind in kinds.items()):
        raise UserError(f"{folder / PLAN}: is damaged; write the shards again, into another folder")
    done = read_json(folder / DONE) if (folder / DONE).is_file() else {}
    files = done.get("files") if isinstance(done, dict) else None
    if not isinstance(files, dict) or not files or not all(Path(name).name == name for name in files):
        raise UserError(f"{folder}: is not complete; run the same `mmcl embed` again")
    return plan, files


def _of_shards(folder: Path, files: Mapping[str, str]) -> Iterator[_Piece]:
    for name in progress_bar(files, total=len(files), shown=len(files) > 20, desc="embeddings", unit="shard"):
        path = folder / name
        try:
            with path.open("rb") as file:
                is_whole = hashlib.file_digest(file, "sha256").hexdigest() == files[name]
        except OSError:
            is_whole = False
        if not is_whole:
            raise UserError(f"{path}: is missing or damaged; write it again by the same `mmcl embed`")
        for _, batch, first in _batches([path], ["kind", "row", "name", "label", "embedding", "reason"], []):
            yield from _pieces_by_kind(pa.Table.from_batches([batch]), path, "row", first)


def _by_kind(files: Sequence[Path]) -> Iterator[_Piece]:
    for file, batch, first in _batches(files, ["kind", "embedding"], ["id", "name", "label", "group"]):
        yield from _pieces_by_kind(pa.Table.from_batches([batch]), file, "id", first)


def _pieces_by_kind(table: pa.Table, file: Path, key: str, first: int = 0) -> Iterator[_Piece]:
    for kind in KINDS:
        part = table.filter(pc.equal(table["kind"], kind))
        if not len(part):
            continue
        missing: list[tuple[str, str]] = []
        if "reason" in part.column_names:
            is_there = pc.is_valid(part["embedding"])
            left = part.filter(pc.invert(is_there))
            missing = [("without an embedding", str(name)) for name in left["name"].to_pylist()]
            part = part.filter(is_there)
        yield _Piece(
            kind,
            _cells(part, key),
            _cells(part, "name"),
            _cells(part, "label"),
            _cells(part, "group"),
            _matrix(part["embedding"].combine_chunks(), f"{file}: embedding", first),
            missing,
        )


def _in_pairs(files: Sequence[Path], columns: Columns) -> Iterator[_Piece]:
    kinds = {"image": columns.image, "text": columns.text}
    lists = [name for name in kinds.values() if name is not None]
    if not lists:
        raise UserError(
            f"{files[0]}: which columns hold the embeddings? Give image_column, text_column or both; it has "
            f"{', '.join(_schema(files[0]).names)}"
        )
    others = [name for name in (columns.caption, columns.label, columns.group, columns.id) if name is not None]
    for file, batch, first in _batches(files, [*lists, *others], []):
        table = pa.Table.from_batches([batch])
        numbers = pa.array(range(first, first + len(table)), pa.int64())
        rows = pa.array([f"row {first + number + 1}" for number in range(len(table))], pa.string())
        keys = numbers if columns.id is None else _cells(table, columns.id)
        captions = rows if columns.caption is None else _cells(table, columns.caption).cast(pa.string())
        nothing = pa.nulls(len(table))
        labels = nothing if columns.label is None else _cells(table, columns.label)
        groups = nothing if columns.group is None else _cells(table, columns.group)
        for kind, column in kinds.items():
            if column is not None:
                values_NF = _matrix(table[column].combine_chunks(), f"{file}: {column}", first)
                yield _Piece(kind, keys, captions if kind == "text" else rows, labels, groups, values_NF)


def _batches(files: Sequence[Path], needed: list[str], further: list[str]) -> Iterator[tuple[Path, pa.RecordBatch, int]]:
    """Yields the batches of files, each with the number of rows before it. Raises UserError if one lacks a column."""
    first = 0
    for file in files:
        names = _schema(file).names
        if missing := [name for name in needed if name not in names]:
            raise UserError(f"{file}: has no column {missing[0]!r}; it has {', '.join(names)}")
        try:
            _, batches = parquet_batches(file, [name for name in (*needed, *further) if name in names])
            for batch in batches:
                yield file, batch, first
                first += len(batch)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise error if isinstance(error, UserError) else UserError(f"{file}: is damaged: {first_line(error)}") from None


def _cells(table: pa.Table, column: str) -> pa.Array:
    if column not in table.column_names:
        return pa.nulls(len(table))
    cells = table[column].combine_chunks()
    return cells.dictionary_decode() if pa.types.is_dictionary(cells.type) else cells


def _matrix(column: pa.Array, where: str, first: int) -> np.ndarray:
    """The numbers of a column, float32 or float16 [N, F]; `first` is the number of rows before it, for messages."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)):
        raise UserError(f"{where} must hold lists of numbers, not {kind}")
    if not pa.types.is_floating(kind.value_type):
        raise UserError(f"{where} must hold lists of decimal numbers, not of {kind.value_type}")
    if column.null_count:
        raise UserError(f"{where} is empty in row {first + int(np.flatnonzero(column.is_null())[0]) + 1}; leave the row out")
    width_N = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(width_N != width_N[:1].repeat(len(width_N)))
    if len(wrong):
        raise UserError(f"{where} has {width_N[0]} numbers in a row, and {width_N[wrong[0]]} in row {first + wrong[0] + 1}")
    width = int(width_N[0]) if len(width_N) else 0
    values: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), width)
    with np.errstate(over="ignore"):  # becomes infinite, which is found below
        values = values if values.dtype == np.float16 else values.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(wrong):
        raise UserError(f"{where} is not finite in row {first + wrong[0] + 1}; leave the row out")
    return values


def _copy(pieces: Iterator[_Piece], folder: Path, path: Path) -> None:
    """Writes the rows of each kind, and what describes them, unless another process has done so meanwhile."""
    unused: dict[str, Unused] = {}
    try:
        with staged(folder) as stage, ExitStack() as opened:
            stage.mkdir()
            arrays: dict[str, GrowingArray] = {}
            columns: dict[str, list[tuple[pa.Array, ...]]] = {}
            for kind, *described, values_NF, missing in pieces:
                unused = merge_unused([unused, count_unused(missing)])
                if not len(values_NF):
                    continue
                if kind not in arrays:
                    arrays[kind] = opened.enter_context(GrowingArray(stage / f"{kind}.npy"))
                if arrays[kind].count and arrays[kind].width != values_NF.shape[1]:
                    raise UserError(
                        f"{path}: has {kind} rows of {arrays[kind].width} and of {values_NF.shape[1]} numbers; give those of "
                        "one model"
                    )
                arrays[kind].append(values_NF)
                columns.setdefault(kind, []).append(tuple(described))
            if not arrays:
                raise UserError(f"{path}: has no rows with an embedding")
            for kind, parts in columns.items():
                joined = (pa.chunked_array(list(part)).combine_chunks() for part in zip(*parts, strict=True))
                pq.write_table(pa.table(dict(zip(_DESCRIBED, joined, strict=True))), stage / f"{kind}.parquet")
            left = {reason: [one.count, one.examples] for reason, one in unused.items()}
            (stage / _UNUSED).write_text(json.dumps(left), encoding="utf-8")
    except pa.ArrowException as error:
        raise UserError(f"{path}: cannot be copied to {folder}: {first_line(error)}") from None


def _read(folder: Path, kind: str) -> EmbeddedRows:
    table, file = pq.read_table(folder / f"{kind}.parquet"), folder / f"{kind}.npy"
    width: int = np.load(file, mmap_mode="r", allow_pickle=False).shape[1]
    names = [f"{kind} {row + 1}" if name is None else name for row, name in enumerate(table["name"].to_pylist())]
    return EmbeddedRows(file, width, table["key"], names, table["label"].to_pylist(), table["group"].to_pylist())
