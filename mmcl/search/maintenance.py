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
from mmcl.search.arrow import codes_of, vectors_of
from mmcl.search.lance_store import LanceStore
from mmcl.search.lance_table import About
from mmcl.search.memory_store import MemoryStore
from mmcl.search.narrow import narrowed

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
    length, narrow rows that are not those of their vectors, and images that are not there any more.

    Raises:
        UserError: a row cannot be read.
    """
    return list(_findings(store))


def _findings(store: LanceStore) -> Iterator[str]:
    seen: set[str] = set()
    about, dim = store.table.about, store.dim
    vector_columns = [name for name, kept in (("vector", about.dtype != "none"), ("code", about.narrow is not None)) if kept]
    for batch in store.table.scan(["id", "path", "status", "reason", *vector_columns, "captions", "caption_vectors"]):
        for number, row in enumerate(batch.drop_columns(vector_columns).to_pylist()):
            if row["id"] in seen:
                yield f"{row['path']}: has several rows"
            seen.add(row["id"])
            if row["status"] == "bad":
                continue
            yield from (f"{row['path']}: {fault}" for fault in _vector_faults(batch.slice(number, 1), about))
            stored = len(row["caption_vectors"] or b"") // (4 * dim)
            if stored not in (0, len(row["captions"] or ())):
                yield f"{row['path']}: has {len(row['captions'] or ())} captions and vectors of {stored}"
    root = store.table.about.root
    if root and not Path(root).is_dir():
        yield f"{root}: the folder of the images is not there; is its disk mounted?"


def _vector_faults(row: pa.RecordBatch, about: About) -> Iterator[str]:
    """Yields what is wrong with the vector of a row."""
    if row[about.stored].null_count:
        yield "has no vector"
        return
    vectors = vectors_of(row[about.stored], about.dim, about.narrow).astype(np.float32)
    if not abs(float(np.linalg.norm(vectors.astype(np.float64))) - 1) < _LENGTH:
        yield "its vector is not of length 1"
    elif about.narrow is not None and (
        row["code"].null_count or not np.array_equal(codes_of(row["code"]), narrowed(vectors, about.narrow))
    ):
        yield "its narrow row is not that of its vector"


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
    about = store.table.about
    columns = [*_OF_EXPORT, *about.column_kinds, *([about.stored] if with_vectors else [])]
    batches = (_with_vector(batch.select(columns), about) for batch in store.table.scan(columns))
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


def _with_vector(batch: pa.RecordBatch, about: About) -> pa.RecordBatch:
    """Returns a batch with the vectors of narrow rows in place of these."""
    if "code" not in batch.schema.names:
        return batch
    codes = batch["code"]
    found = np.flatnonzero(codes.is_valid().to_numpy(zero_copy_only=False))
    numbers = np.zeros((len(batch), about.dim), np.float32)
    numbers[found] = vectors_of(codes.take(pa.array(found)), about.dim, about.narrow)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), about.dim, mask=codes.is_null())
    return batch.drop_columns(["code"]).append_column("vector", vectors)


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
