"""Care of an index on disk: checking, versions, export and import."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mmcl.data.sample import Sample
from mmcl.data.source import SampleList, Source
from mmcl.errors import UserError
from mmcl.files.atomic import check_file, staged
from mmcl.files.digest import digest
from mmcl.search import lance_table, saved
from mmcl.search.lance_store import LanceStore
from mmcl.search.memory_store import MemoryStore

EXPORTED = (".parquet", ".csv")
_LENGTH = 1e-3
"""Largest deviation of a vector's length from 1; that of float16."""
_OF_EXPORT = ("id", "path", "captions", "label", "size", "width", "height", "taken", "status", "reason")


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an index.

    Attributes:
        number: from 1.
        written: local time.
        rows: number of images, readable or not; None if the version is not complete any more.
    """

    number: int
    written: datetime
    rows: int | None


def verify(store: LanceStore) -> list[str]:
    """Reads every row. Returns a line for each finding: ids that repeat, vectors that are missing, not finite or not of unit
    length, and images that are not there any more. Raises UserError if a row cannot be read."""
    return list(_findings(store))


def _findings(store: LanceStore) -> Iterator[str]:
    seen: set[str] = set()
    dim = store.dim
    for batch in store.table.scan(["id", "path", "status", "reason", "vector", "captions", "caption_vectors"]):
        vectors = batch["vector"]
        for number, row in enumerate(batch.drop_columns(["vector"]).to_pylist()):
            if row["id"] in seen:
                yield f"{row['path']}: has several rows"
            seen.add(row["id"])
            if row["status"] == "bad":
                continue
            vector = vectors[number].as_py()
            if vector is None:
                yield f"{row['path']}: has no vector"
            elif not abs(float(np.linalg.norm(np.asarray(vector, np.float64))) - 1) < _LENGTH:
                yield f"{row['path']}: its vector is not of length 1"
            stored = len(row["caption_vectors"] or b"") // (4 * dim)
            if stored not in (0, len(row["captions"] or ())):
                yield f"{row['path']}: has {len(row['captions'] or ())} captions and vectors of {stored}"
    root = store.table.about.root
    if root and not Path(root).is_dir():
        yield f"{root}: the folder of the images is not there; is its disk mounted?"


def versions(store: LanceStore) -> list[Version]:
    """Returns the versions that can be restored, oldest first."""
    return [Version(number, written, rows) for number, written, rows in store.table.versions()]


def restore(store: LanceStore, number: int) -> None:
    """Makes an older version the newest; the caller holds the writer's lock. Raises UserError if there is no such version."""
    known = [version for version, _, _ in store.table.versions()]
    if number not in known:
        raise UserError(f"{store.table.place}: no version {number}; it has {known[0]} to {known[-1]}")
    store.table.restore(number)
    store.forget_if_changed()


def export(store: LanceStore, path: Path) -> int:
    """Writes all rows, a parquet file with vectors or a .csv without. Returns their number.

    Raises:
        UserError: the file cannot be written.
    """
    check_file(path, flag="path", suffixes=EXPORTED)
    with_vectors = path.suffix == ".parquet"
    columns = [*_OF_EXPORT, *store.table.about.column_kinds, *(["vector"] if with_vectors else [])]
    batches = (batch.select(columns) for batch in store.table.scan(columns))
    first = next(batches, None)
    if first is None:
        raise UserError(f"{store.table.place}: is empty; there is nothing to export")
    rows = 0
    with staged(path) as stage:
        if with_vectors:
            with pyarrow.parquet.ParquetWriter(stage, first.schema) as writer:
                for batch in _all(first, batches):
                    writer.write_batch(batch)
                    rows += len(batch)
            return rows
        shown = [_without_lists(batch) for batch in _all(first, batches)]
        with pyarrow.csv.CSVWriter(stage, shown[0].schema) as csv:
            for batch in shown:
                csv.write_batch(batch)
    return sum(map(len, shown))


def _all(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def _without_lists(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Joins the texts of a list, which a .csv has no column for."""

    def flat(column: pa.Array) -> pa.Array:
        if not pa.types.is_list(column.type):
            return column
        return pa.array([None if texts is None else "; ".join(texts) for texts in column.to_pylist()], pa.string())

    return pa.RecordBatch.from_arrays([flat(column) for column in batch.columns], batch.schema.names)


class KnownVectors:
    """An `EmbeddingModel` that looks up the vectors of an index in memory, so that nothing is encoded again.

    Args:
        store: the index.
    """

    logit_scale = logit_bias = None

    def __init__(self, store: MemoryStore):
        self.fingerprint, self.embed_dim = store.model, store.dim
        self.has_text = len(store.text_emb) > 0
        self._images = {sample.name: vector for sample, vector in zip(store.samples, store.image_emb, strict=True)}
        captions = [caption for sample in store.samples for caption in sample.captions] if self.has_text else []
        self._texts = dict(zip(captions, store.text_emb, strict=True))

    def encode_image(self, images: Any, *, batch_size: int | None = None, progress: bool = False) -> np.ndarray:
        """Looks up the images of a source by their names; zeros for one that cannot be read any more."""
        samples = [images[number] for number in range(len(images))]
        return np.stack([self._images.get(sample.name, np.zeros(self.embed_dim, np.float32)) for sample in samples])

    def encode_text(self, texts: Any, *, batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Looks up captions."""
        return np.stack([self._texts[text] for text in texts])


class KnownSamples(SampleList):
    """The images of an index in memory, as a source.

    Args:
        store: the index.
        places: prefixes of their names.
    """

    def __init__(self, store: MemoryStore, places: tuple[str, ...]):
        self._samples: list[Sample] = store.samples
        self.places = places

    @property
    def fingerprint(self) -> str:
        return digest([sample.name for sample in self._samples])


def load_old(place: str) -> MemoryStore:
    """Loads an index of index.json. Raises UserError if there is none, or it is damaged."""
    if saved.is_saved(place):
        return saved.load(Path(place))
    if lance_table.exists(place):
        raise UserError(f"{place}: an index that keeps up already; bring it up to date by `mmcl index sync {place}`")
    raise lance_table.no_index(place)


def source_of(store: MemoryStore) -> Source:
    """Returns the images of an index in memory; those of one folder have their names below it."""
    places = store.places
    if not places:
        folders = {sample.name.rpartition("/")[0] + "/" for sample in store.samples}
        shortest = min(folders, key=len)
        places = (shortest,) if shortest != "/" and all(folder.startswith(shortest) for folder in folders) else ()
    return KnownSamples(store, tuple(places))
