"""Embeddings in parquet files, from any source, evaluated like those of a model.

Each row is an image, a text or a class, with the columns

    id          for retrieval: rows with equal ids belong together, such as an image and its captions
    kind        "image", "text" or "class"
    embedding   list of numbers, of the same length in the whole file
    label       for images and classes: the class; null otherwise
    group       optional, for images: what makes them dependent on each other, such as the patient, see `Source.groups`
    name        optional name; for a text, the text itself

ids, labels and groups are integers or strings. Zero-shot classification compares images with the rows of kind "class".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from mmcl.config import from_dict
from mmcl.data.sample import Sample
from mmcl.data.source import SampleList, Source
from mmcl.data.sources.tables.column_names import group_of, number_labels
from mmcl.data.sources.tables.table_file import read_table
from mmcl.errors import UserError
from mmcl.evaluate.captions import captions_of
from mmcl.evaluate.prompts import class_embeddings
from mmcl.evaluate.task import CachedModel, Task
from mmcl.files.atomic import staged
from mmcl.files.digest import digest
from mmcl.files.untrusted import parse_json
from mmcl.types import EmbeddingModel

KINDS = ("image", "text", "class")
SUFFIXES = (".parquet", ".csv", ".npy")
"""Suffixes of the files that `write_embeddings` writes; `stored_task` reads the first."""
_CLASS = "class: "
_METADATA_KEY = "mmcl"
"""Key of the file's metadata that records the model and the data of the embeddings."""


class StoredSource(SampleList):
    """The image rows of a file: names, ids, labels and captions, without the images themselves."""

    templates = (f"{_CLASS}{{}}",)

    def __init__(
        self,
        samples: Sequence[Sample],
        ids: np.ndarray,
        groups: np.ndarray | None,
        class_names: Sequence[str] | None,
        identity: str,
    ):
        self._samples = samples
        self.ids, self.groups = ids, groups
        self.class_names = class_names
        self.identity = identity

    @property
    def fingerprint(self) -> str:
        return self.identity


class StoredModel:
    """An `EmbeddingModel` that looks up stored embeddings.

    Args:
        images: embeddings of each source, float32 [N, D].
        texts: text -> float32 [D].
        fingerprint: fingerprint of the model that computed the embeddings, or of the file.
        logit_scale, logit_bias: those of that model.
    """

    def __init__(
        self,
        images: dict[Source, np.ndarray],
        texts: dict[str, np.ndarray],
        fingerprint: str,
        *,
        logit_scale: float | None = None,
        logit_bias: float | None = None,
    ):
        self._images, self._texts = images, texts
        self.fingerprint = fingerprint
        self.logit_scale, self.logit_bias = logit_scale, logit_bias
        self.has_text = bool(texts)

    def encode_image(self, images: Source, *, batch_size: int | None = None, progress: bool = False) -> np.ndarray:
        """Embeddings of a source of this file: float32 [N, D]."""
        return self._images[images]

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Embeddings of texts: float32 [M, D]. Raises UserError for a text that is not in the file."""
        missing = next((text for text in texts if text not in self._texts), None)
        if missing is not None:
            kind = "class" if missing.startswith(_CLASS) else "text"
            raise UserError(
                f"no row of kind {kind!r} is for {missing.removeprefix(_CLASS)!r}; add one to the file of embeddings"
            )
        return np.stack([self._texts[text] for text in texts])


def stored_task(path: Path, bank: Path | None = None) -> tuple[StoredModel, Task]:
    """Creates a model and a task from a file, and optionally a file of training images for k-NN and probes.

    Without images, the pixel baselines are not available.

    Raises:
        UserError: a file does not have the format described in this module; the message names the column or the row.
    """
    files = [_File(place) for place in (path, bank) if place is not None]
    if len({file.rows.shape[1] for file in files}) > 1:
        raise UserError(f"{path} and {bank} hold embeddings of different widths; take both from the same model")
    numbers, names = number_labels(label for file in files for label in file.labels)
    images: dict[Source, np.ndarray] = {}
    sources, at = [], 0
    for file in files:
        source = file.source(numbers[at : at + len(file.labels)], names or None)
        images[source] = file.rows[file.rows_of_kind("image")]
        sources.append(source)
        at += len(file.labels)
    first = files[0]
    metadata, own = first.metadata, first.metadata.model or digest(first.rows.tobytes())
    model = StoredModel(images, first.texts(), own, logit_scale=metadata.logit_scale, logit_bias=metadata.logit_bias)
    return model, Task(path.stem, sources[0], sources[1] if bank else None, baselines=False)


def write_embeddings(path: Path, source: Source, model: CachedModel, *, features: bool = False) -> int:
    """Encodes a source, its captions and its classes into a file, which is written atomically.

    Args:
        path: file with one of the suffixes in `SUFFIXES`. A .csv has a column for each dimension, e0, e1, ...; a .npy, float32
            [N, D], has the other columns in a separate table, see `rows_beside`.
        source: the data.
        model: the model that encodes the data.
        features: write `model.image_features` of the images only; texts and classes are left out, because their features are
            not comparable.

    Returns:
        The number of rows.

    Raises:
        UserError: an image cannot be read, or `features` is set and the model does not provide features.
    """
    table, embeddings = _images_only(source, model.model) if features else _everything(source, model)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        with staged(path) as stage, stage.open("wb") as file:
            np.save(file, embeddings)
        with staged(rows_beside(path)) as stage:
            pa.csv.write_csv(table, stage)
    elif suffix == ".csv":
        numbers = {f"e{number}": embeddings[:, number] for number in range(embeddings.shape[1])}
        with staged(path) as stage:
            pa.csv.write_csv(pa.table({**dict(zip(table.column_names, table.columns, strict=True)), **numbers}), stage)
    else:
        column = pa.FixedSizeListArray.from_arrays(embeddings.ravel(), embeddings.shape[1])
        metadata = FileMetadata(model.model.fingerprint, source.identity, model.model.logit_scale, model.model.logit_bias)
        with staged(path) as stage:
            table = table.append_column("embedding", column)
            pq.write_table(table.replace_schema_metadata({_METADATA_KEY: json.dumps(asdict(metadata))}), stage)
    return len(embeddings)


def rows_beside(path: Path) -> Path:
    """Path of the table with id, kind, label and name of each row of a .npy file: e.rows.csv for e.npy."""
    return path.with_suffix(".rows.csv")


def _images_only(source: Source, model: EmbeddingModel) -> tuple[pa.Table, np.ndarray]:
    """Rows and raw features of the images only."""
    if not hasattr(model, "image_features"):
        raise UserError("this model has no features before its embeddings; leave out --features")
    ids = captions_of(source).image_ids.tolist()
    names = [source[index].name for index in range(len(source))]
    table = _rows_table([(ids, "image", _label_names(source), names)], source.groups)
    return table, model.image_features(source).astype(np.float32)


def _everything(source: Source, model: CachedModel) -> tuple[pa.Table, np.ndarray]:
    """Rows and embeddings of images, texts and classes."""
    captions = captions_of(source)
    names = [source[index].name for index in range(len(source))]
    images = (captions.image_ids.tolist(), "image", _label_names(source), names)
    parts, rows = [images], [model.images(source)]
    if model.model.has_text and captions.texts:
        texts = list(captions.texts)
        parts.append((captions.text_ids.tolist(), "text", [None] * len(texts), texts))
        rows.append(model.encode_text(texts))
    classes = source.class_names
    if model.model.has_text and classes:
        parts.append(([None] * len(classes), "class", list(classes), list(classes)))
        rows.append(class_embeddings(model, classes, source.templates))
    return _rows_table(parts, source.groups), np.concatenate(rows).astype(np.float32)


def _rows_table(parts: Sequence[tuple[list[Any], str, list[Any], list[str]]], groups: np.ndarray | None) -> pa.Table:
    """Table with the columns id, kind, label and name, and group if the images, the first part, have groups."""
    columns: dict[str, list[Any]] = {"id": [], "kind": [], "label": [], "name": []}
    for ids, kind, labels, names in parts:
        for column, values in zip(columns, (ids, [kind] * len(names), labels, names), strict=True):
            columns[column] += values
    if groups is not None:
        columns["group"] = [*groups.tolist(), *[None] * (len(columns["id"]) - len(groups))]
    return pa.table(columns)


@dataclass(frozen=True, slots=True)
class FileMetadata:
    """Model and data of the embeddings; empty for a file that mmcl did not write."""

    model: str | None = None
    data: str | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None

    def __post_init__(self) -> None:
        if self.logit_scale is not None and self.logit_scale <= 0:
            raise UserError(f"logit_scale is {self.logit_scale}: it must be above 0")


class _File:
    """A checked table."""

    def __init__(self, path: Path):
        if not path.is_file() or path.suffix != ".parquet":
            raise UserError(f"{path}: no such file; evaluators read embeddings from a .parquet file")
        table = read_table(path)
        missing = [column for column in ("kind", "embedding") if column not in table.column_names]
        if missing or len(table) == 0:
            lack = f"no column {missing[0]!r}" if missing else "no rows"
            raise UserError(f"{path}: has {lack}; it needs kind and embedding, and id, label and name where there are any")
        self.path = path
        self.kinds = np.array(table["kind"].to_pylist(), object)
        wrong = [row for row, kind in enumerate(self.kinds) if kind not in KINDS]
        if wrong:
            raise UserError(f"{path}, row {wrong[0] + 1}: kind is {self.kinds[wrong[0]]!r}; give one of {', '.join(KINDS)}")
        if "image" not in self.kinds:
            raise UserError(f"{path}: has no row of kind 'image'")
        self.rows = _matrix(table["embedding"], path)
        self.ids, self.labels, names = (_optional(table, column) for column in ("id", "label", "name"))
        self.groups = table["group"].to_pylist() if "group" in table.column_names else None
        self.names = [f"{self.kinds[row]} {row + 1}" if name is None else str(name) for row, name in enumerate(names)]
        self.metadata = _read_metadata(table.schema.metadata, path)
        self.data = self.metadata.data or digest(self.kinds.tolist(), self.ids, self.labels, self.names, *(self.groups or ()))

    def rows_of_kind(self, kind: str) -> np.ndarray:
        return np.flatnonzero(self.kinds == kind)

    def source(self, numbers: Sequence[int | None], class_names: Sequence[str] | None) -> StoredSource:
        """The images. `numbers`: the class of every row of the file."""
        captions: dict[Any, list[str]] = {}
        for row in self.rows_of_kind("text"):
            captions.setdefault(self.ids[row], []).append(self.names[row])
        rows = self.rows_of_kind("image")
        number: dict[Any, int] = {}
        # An image without an id has no matching rows.
        ids = [number.setdefault(("row", int(row)) if self.ids[row] is None else self.ids[row], len(number)) for row in rows]
        samples = [
            Sample(
                self.names[row],
                None,
                () if self.ids[row] is None else tuple(captions.get(self.ids[row], ())),
                label=numbers[row],
            )
            for row in rows
        ]
        return StoredSource(samples, np.array(ids, np.int64), self._groups(rows), class_names, self.data)

    def _groups(self, rows: np.ndarray) -> np.ndarray | None:
        """Groups of images, int64. Raises UserError for an image without one, if there are groups."""
        if self.groups is None:
            return None
        return np.array([group_of(self.groups[row], f"{self.path}: group, row {row + 1}") for row in rows], np.int64)

    def texts(self) -> dict[str, np.ndarray]:
        """Embeddings by text."""
        found: dict[str, np.ndarray] = {}
        for row in np.flatnonzero(self.kinds != "image"):
            text = self.names[row] if self.kinds[row] == "text" else f"{_CLASS}{self.labels[row]}"
            if not np.array_equal(found.setdefault(text, self.rows[row]), self.rows[row]):
                raise UserError(f"{self.path}, row {row + 1}: {text!r} has two different embeddings; give each text once")
        return found


def _matrix(column: pa.ChunkedArray, path: Path) -> np.ndarray:
    """float32 [N, D]."""
    array = column.combine_chunks()
    if not (pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type) or pa.types.is_large_list(array.type)):
        raise UserError(f"{path}: the column embedding must hold lists of numbers, not {array.type}")
    values = array.flatten().to_numpy(zero_copy_only=False)
    widths = set(pa.compute.list_value_length(array).to_pylist())
    if len(widths) != 1 or widths & {None, 0} or values.dtype.kind != "f":
        raise UserError(f"{path}: the column embedding must hold lists of decimal numbers of one length, none missing")
    rows: np.ndarray = values.astype(np.float32).reshape(len(array), -1)
    wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(wrong):
        raise UserError(f"{path}, row {wrong[0] + 1}: its embedding is not finite in float32; leave the row out")
    return rows


def _read_metadata(metadata: dict[bytes, bytes] | None, path: Path) -> FileMetadata:
    """Metadata that `write_embeddings` stored in the file."""
    try:
        stored = parse_json((metadata or {}).get(_METADATA_KEY.encode(), b"{}"), str(path))
        return from_dict(FileMetadata, stored, str(path))
    except UserError:
        raise UserError(f"{path}: its metadata {_METADATA_KEY!r} is damaged; write it again with `mmcl embed`") from None


def _optional(table: pa.Table, column: str) -> list[Any]:
    return table[column].to_pylist() if column in table.column_names else [None] * len(table)


def _label_names(source: Source) -> list[str | None]:
    """Classes of the images; None if an image has no class."""
    if source.labels is None:
        return [None] * len(source)
    names = source.class_names
    return [None if n < 0 else str(n) if names is None else names[n] for n in source.labels.tolist()]
