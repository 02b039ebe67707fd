"""The Lance tables of an index on disk: their schema, settings and commits. Only this module and
`table_indices` import lancedb (extra `index`).

`items` has one row per image, unreadable ones included, so that they are not tried again before they change. Captions and their
vectors are in the row of their image: a commit changes both, and `restore` restores both. `about` has the settings: format,
model, root, ...
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from mmcl.errors import DamagedIndexError, UserError, first_line, how_to_install
from mmcl.files.lock import FileLock
from mmcl.search.arrow import TYPES, codes_of, vectors_of
from mmcl.search.items import Kind
from mmcl.search.narrow import Narrow, code_bytes

if TYPE_CHECKING:
    from lancedb.table import Table

FORMAT = 2
"""With narrow rows; an index without them is of format 1."""
Dtype = Literal["float32", "float16", "none"]
_NUMBERS: Mapping[str, pa.DataType] = {"float32": pa.float32(), "float16": pa.float16()}
STORES = ("s3://", "gs://", "az://")
"""Object stores. Their keys and endpoints are in the variables of the environment that their own tools read."""
ITEMS, ABOUT, LOCK = "items", "about", ".lock"
FOUND = "status = 'ok'"
"""Rows that can be found. To ask whether they have a vector would read all vectors."""
_ROWS, _VECTOR_BYTES = 8192, 2**21
"""Rows in a batch of a scan, and bytes in one of vectors. Batches are read ahead, so they are memory beside the result."""
_DELETED = 500
"""Ids in one statement."""
_KEPT = timedelta(hours=1)
"""Age up to which old versions stay, since readers may be using them."""


@dataclass(frozen=True, kw_only=True)
class About:
    """Settings of an index.

    Attributes:
        format: of the tables.
        model, model_name: fingerprint of the model, and what `mmcl.load_model` takes; "" if not known.
        dim: width of the vectors.
        dtype: of the vectors on disk, "float32" or "float16"; "none" if there are only narrow rows.
        narrow: kind of the narrow rows that a search compares, see `mmcl.search.narrow`; None if it compares vectors.
        root, collection, kind, columns: of the collection, see `Collection`; how it is opened again.
        column_kinds: types of the own columns.
        calibration: of `match`, or None.
    """

    format: int = 1
    model: str
    model_name: str = ""
    dim: int
    dtype: Dtype = "float32"
    narrow: Narrow | None = None
    root: str = ""
    collection: str = ""
    kind: str = ""
    columns: str = ""
    column_kinds: Mapping[str, Kind] = field(default_factory=dict)
    calibration: Mapping[str, float] | None = None

    @property
    def stored(self) -> str:
        """Column that has the vectors, or what they are made of again."""
        return "code" if self.dtype == "none" else "vector"


def schema_of(about: About) -> pa.Schema:
    """Returns the columns of `items`."""
    vectors = [] if about.dtype == "none" else [pa.field("vector", pa.list_(_NUMBERS[about.dtype], about.dim))]
    codes = [] if about.narrow is None else [pa.field("code", pa.binary(code_bytes(about.narrow, about.dim)))]
    own = [pa.field(name, TYPES[kind]) for name, kind in about.column_kinds.items()]
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("path", pa.string()),
            pa.field("file", pa.string()),
            pa.field("offset", pa.int64()),
            pa.field("size", pa.int64()),
            pa.field("mtime_ns", pa.int64()),
            pa.field("ctime_ns", pa.int64()),
            pa.field("looked_ns", pa.int64()),
            pa.field("sha", pa.binary(32)),
            pa.field("width", pa.int64()),
            pa.field("height", pa.int64()),
            pa.field("taken", pa.timestamp("us")),
            pa.field("captions", pa.list_(pa.string())),
            pa.field("label", pa.string()),
            *own,
            pa.field("digest", pa.binary(32)),
            pa.field("status", pa.string()),
            pa.field("reason", pa.string()),
            pa.field("thumb", pa.binary()),
            *vectors,
            *codes,
            pa.field("caption_vectors", pa.binary()),
        ]
    )


class LanceTable:
    """The tables of one index, at one version until `refresh` or a commit of its own.

    Args:
        place: folder, or URL of an object store.
        about: the settings.
        table: `items`.
    """

    def __init__(self, place: str, about: About, table: Table):
        self.place, self.about, self.table = place, about, table
        self._lock: FileLock | None = None

    @classmethod
    def open(cls, place: str) -> LanceTable:
        """Opens an index. Raises UserError if there is none, or it is damaged or newer than this version of mmcl."""
        with readable(place):
            database = _connect(place)
            about = _read_about(place, database)
            return cls(place, about, database.open_table(ITEMS))

    @classmethod
    def create(cls, place: str, about: About) -> LanceTable:
        """Creates an empty index."""
        with writable(place):
            database = _connect(place)
            found = set(database.list_tables().tables)

            def mode(name: str) -> str:  # to overwrite what there is not is warned of
                return "overwrite" if name in found else "create"

            database.create_table(ABOUT, _settings(about), mode=mode(ABOUT))
            table = database.create_table(ITEMS, schema=schema_of(about), mode=mode(ITEMS))
            table.set_unenforced_primary_key("id")
            return cls(place, about, table)

    @property
    def version(self) -> int:
        """Number of the version."""
        return int(self.table.version)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the writer's lock and the newest version; nested, it does nothing. An object store has no lock."""
        if self._lock is not None or "://" in self.place:
            yield
            return
        self._lock = FileLock(Path(self.place, LOCK), self.place)
        try:
            self.refresh()
            yield
        finally:
            self._lock.release()
            self._lock = None

    def hold(self) -> None:
        """Takes the writer's lock until `release`. Raises UserError if another process has it."""
        if "://" not in self.place:
            self._lock = FileLock(Path(self.place, LOCK), self.place)
        self.refresh()

    def release(self) -> None:
        """Releases the writer's lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def refresh(self) -> None:
        """Goes to the newest version."""
        with readable(self.place):
            self.table.checkout_latest()  # type: ignore[no-untyped-call]
            self.about = _read_about(self.place, _connect(self.place))

    def scan(self, columns: Sequence[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        """Yields columns and `_rowid` of all rows in batches.

        Args:
            columns: their names.
            where: one of this package's own conditions; never a user's.
        """
        with readable(self.place):
            yield from self._batches(columns, where, _ROWS)

    def scan_vectors(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields ids int64 [n] and vectors [n, D], as they are stored, of the rows that can be found; float32 of narrow rows.

        Raises:
            UserError: one of them has no vector.
        """
        for batch in self._scan_complete(self.about.stored):
            yield row_ids_of(batch), vectors_of(batch[self.about.stored], self.about.dim, self.about.narrow)

    def scan_codes(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields ids int64 [n] and codes uint8 [n, B] of the rows that can be found, as `scan_vectors` does."""
        for batch in self._scan_complete("code"):
            yield row_ids_of(batch), codes_of(batch["code"])

    def _scan_complete(self, column: str) -> Iterator[pa.RecordBatch]:
        with readable(self.place):
            for batch in self._batches([column], FOUND, max(1, _VECTOR_BYTES // (4 * self.about.dim))):
                if batch[column].null_count:
                    raise DamagedIndexError(
                        f"{self.place}: is damaged (an image has no vector; `mmcl index verify` names it); restore an older "
                        "version, or build the index again"
                    )
                yield batch

    def _batches(self, columns: Sequence[str], where: str | None, rows: int) -> Iterator[pa.RecordBatch]:
        search = self.table.search().select(list(columns)).with_row_id(True)
        yield from (search.where(where) if where else search).to_batches(batch_size=rows)

    def take(self, row_ids: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Returns columns and `_rowid` of some rows, in any order."""
        with readable(self.place):
            return self.table.take_row_ids(list(row_ids)).select(list(columns)).with_row_id().to_arrow()

    def of_ids(self, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """Returns columns of the rows with some ids, in any order."""
        parts = [
            pa.Table.from_batches(list(self.scan(columns, _among(ids[start : start + _DELETED]))))
            for start in range(0, len(ids), _DELETED)
        ]
        return pa.concat_tables(parts)

    def count(self, where: str | None = None) -> int:
        """Returns the number of rows."""
        with readable(self.place):
            return int(self.table.count_rows(where))

    def upsert(self, rows: pa.Table) -> None:
        """Commits rows, in place of those with their ids."""
        with writable(self.place):
            (
                self.table.merge_insert("id")
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .execute(rows.cast(self.table.schema), on_bad_vectors="null")  # of an image that cannot be read
            )

    def delete(self, ids: Sequence[str]) -> int:
        """Removes rows in commits of 500. Returns their number of commits."""
        starts = range(0, len(ids), _DELETED)
        for start in starts:
            with writable(self.place):
                self.table.delete(_among(ids[start : start + _DELETED]))
        return len(starts)

    def look_again(self, ids: Sequence[str], looked_ns: int) -> None:
        """Writes when rows were last compared with their files."""
        for start in range(0, len(ids), _DELETED):
            with writable(self.place):
                self.table.update(where=_among(ids[start : start + _DELETED]), values={"looked_ns": looked_ns})

    def write_about(self, about: About) -> None:
        """Writes other settings."""
        with writable(self.place):
            _connect(self.place).create_table(ABOUT, _settings(about), mode="overwrite")
            self.about = about

    def optimize(self) -> None:
        """Joins the pieces that commits leave, and removes versions older than an hour."""
        with writable(self.place):
            self.table.optimize(cleanup_older_than=_KEPT)

    def versions(self) -> list[tuple[int, datetime, int | None]]:
        """Returns number, time and number of rows of each version, oldest first."""
        found: list[tuple[int, datetime, int | None]] = []
        with readable(self.place):
            other = _connect(self.place).open_table(ITEMS)  # a table that was at a certain version cannot be written
            for one in other.list_versions():
                other.checkout(one["version"])
                found.append((int(one["version"]), one["timestamp"], int(other.count_rows())))
        return found

    def restore(self, number: int) -> None:
        """Makes a version the newest."""
        with writable(self.place):
            self.table.restore(number)


def exists(place: str) -> bool:
    """True if a folder or an object store holds an index. Raises UserError if the store cannot be asked."""
    if place.startswith(STORES):
        with readable(place):
            return {ITEMS, ABOUT} <= set(_connect(place).list_tables().tables)
    return "://" not in place and (Path(place, f"{ITEMS}.lance").is_dir() and Path(place, f"{ABOUT}.lance").is_dir())


def no_index(place: str) -> UserError:
    """Builds the error for a place without an index: what is there, the most similar index beside it, or what makes one."""
    path = Path(place)
    if "://" not in place and path.exists():
        found = "holds no index" if path.is_dir() else "is a file, and an index is a folder"
        return UserError(f"{place}: {found}; give a folder that `mmcl index build IMAGES --out FOLDER` has made")
    beside = [] if "://" in place else [items.parent for items in path.parent.glob(f"*/{ITEMS}.lance")]
    nearest = difflib.get_close_matches(path.name, [one.name for one in beside], n=1)
    way = f"did you mean {path.parent / nearest[0]}?" if nearest else f"`mmcl index build IMAGES --out {place}` makes one"
    return UserError(f"{place}: no such index; {way}")


def is_available() -> bool:
    """True if lancedb is installed."""
    from importlib.util import find_spec

    return find_spec("lancedb") is not None


def row_ids_of(rows: pa.RecordBatch | pa.Table) -> np.ndarray:
    """Returns Lance's ids of rows, int64 [n]."""
    row_ids: np.ndarray = rows["_rowid"].to_numpy().astype(np.int64)
    return row_ids


def _settings(about: About) -> pa.Table:
    return pa.table({"key": ["about"], "value": [json.dumps(asdict(about))]})


def _among(ids: Sequence[str]) -> str:
    return "id IN ({})".format(", ".join("'{}'".format(one.replace("'", "''")) for one in ids))


def _connect(place: str) -> Any:
    try:
        import lancedb
    except ImportError:
        raise UserError(f"{place}: an index on disk needs lancedb; {how_to_install('index')}") from None
    return lancedb.connect(place)


def _read_about(place: str, database: Any) -> About:
    """Raises UserError if there are no settings, or they are damaged or of a newer version."""
    try:
        content = json.loads(database.open_table(ABOUT).to_arrow()["value"][0].as_py())
        number = int(content["format"])
    except (IndexError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DamagedIndexError(f"{place}: its settings are damaged ({error!r}); build the index again") from None
    if number > FORMAT:
        raise UserError(f"{place}: is of format {number}, and this version of mmcl reads up to {FORMAT}; install a newer mmcl")
    known = {one.name for one in fields(About)}
    try:
        return About(**{name: value for name, value in content.items() if name in known})
    except TypeError as error:
        raise DamagedIndexError(f"{place}: its settings are damaged ({error}); build the index again") from None


@contextmanager
def readable(place: str) -> Iterator[None]:
    """Turns errors of the library into a UserError that names the index."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
        why = first_line(error)[:200]
        if "not found" in why.lower() and ("://" in place or not exists(place)):
            raise no_index(place) from None
        raise DamagedIndexError(f"{place}: is damaged ({why}); restore an older version, or build the index again") from error


@contextmanager
def writable(place: str) -> Iterator[None]:
    """Turns errors of the library into a UserError that names the index and says why it cannot be written."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
        why = "no space left on the disk" if _is_full(place, error) else first_line(error)[:200]
        raise UserError(f"{place}: cannot be written ({why}); what was written before is kept") from error


def _is_full(place: str, error: Exception) -> bool:
    if "No space left" in str(error) or "StorageFull" in str(error) or "os error 28" in str(error):
        return True
    with suppress(OSError):
        return "://" not in place and shutil.disk_usage(os.path.abspath(place)).free < 2**16
    return False
