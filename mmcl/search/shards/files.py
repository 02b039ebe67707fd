"""Reading, writing and checking the files of a folder of shards.

A file is complete or absent: it is written under another name, flushed to the disk, and renamed. It holds no time, no name of
a machine and no number of a process, so equal plans give equal bytes. `done.json` is derived: it lists the files with their
digests once all are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmcl.config import from_dict
from mmcl.data.threads import in_threads
from mmcl.errors import UserError
from mmcl.files.atomic import staged, write_file
from mmcl.files.parquet import parquet_batches
from mmcl.files.untrusted import read_json
from mmcl.logging import get_logger
from mmcl.search.shards.plan import ShardPlan, read_plan

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = get_logger(__name__)

DONE, CLAIMS = "done.json", ".claims"
METADATA_KEY, SHARD_KEY = "mmcl", "mmcl.shard"
"""Keys of a file's metadata: model and data, as in every file of embeddings; and what it is within its folder."""


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What a file says about itself.

    Attributes:
        plan: `ShardPlan.key`.
        number: its number, from 0.
        images, texts: rows of each kind; of a file of classes, 0 and the number of classes.
        bad: rows without an embedding.
    """

    plan: str
    number: int
    images: int
    texts: int
    bad: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What `done.json` says.

    Attributes:
        plan: `ShardPlan.key`.
        images, texts, bad: rows of all shards, as in `ShardFacts`.
        files: SHA-256 of each file, by name.
    """

    plan: str
    images: int
    texts: int
    bad: int
    files: dict[str, str]


def shard_table(
    columns: Mapping[str, Sequence[Any]], embeddings: np.ndarray, reasons: Sequence[str | None], dtype: str = "float32"
) -> pa.Table:
    """Builds the table of a shard.

    Args:
        columns: row, id, kind, label and name of each row.
        embeddings: float32 [rows, D]; what stands in a row with a reason does not matter.
        reasons: why a row has no embedding, or None.
        dtype: of the embeddings in the file.

    Raises:
        UserError: an embedding is too large for the dtype.
    """
    bad = np.array([reason is not None for reason in reasons])
    values = np.where(bad[:, None], np.float32(0), embeddings).astype(np.float32)
    if np.abs(values).max(initial=0) > np.finfo(dtype).max:
        raise UserError(
            f"the features have numbers up to {np.abs(values).max():g}, too large for {dtype}; give --dtype float32"
        )
    values = values.astype(dtype)
    types = {"row": pa.int64(), "id": pa.int64(), "kind": pa.string(), "label": pa.string(), "name": pa.string()}
    arrays = {name: pa.array(columns[name], kind) for name, kind in types.items()}
    rows = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1], mask=pa.array(bad))
    return pa.table({**arrays, "embedding": rows, "reason": pa.array(reasons, pa.string())})


def write_shard(path: Path, table: pa.Table, facts: ShardFacts, about: dict[str, Any]) -> None:
    """Writes a shard so that it is complete or absent. Raises UserError if it cannot be written.

    Args:
        path: the file.
        table: from `shard_table`.
        facts: stored in its metadata.
        about: model and data, as in any file of embeddings.
    """
    metadata = {METADATA_KEY: json.dumps(about), SHARD_KEY: json.dumps(asdict(facts))}
    with staged(path) as stage:
        # Embeddings do not compress, and are mapped into memory faster as they are.
        pq.write_table(
            table.replace_schema_metadata(metadata), stage, compression="none", use_dictionary=["kind", "label"], version="2.6"
        )


def shard_facts(folder: Path, plan: ShardPlan, number: int) -> ShardFacts | None:
    """What a complete file says about itself; None if it is absent, cut off, or of another plan. Reads its footer only."""
    path = folder / plan.file(number)
    try:
        footer = pq.read_metadata(path)
        stored = json.loads((footer.metadata or {})[SHARD_KEY.encode()])
        facts = from_dict(ShardFacts, stored, str(path))
    except (UserError, OSError, ValueError, KeyError, pa.ArrowException):
        return None
    is_whole = footer.num_rows == facts.images + facts.texts and (facts.plan, facts.number) == (plan.key, number)
    return facts if is_whole else None


def open_shards(folder: Path, plan: ShardPlan) -> list[int]:
    """Numbers of the files that are not complete."""
    numbers = range(plan.count)
    done = in_threads(lambda number: shard_facts(folder, plan, number) is not None, numbers)
    return [number for number, is_done in zip(numbers, done, strict=True) if not is_done]


def read_shard(folder: Path, plan: ShardPlan, number: int) -> pa.Table:
    """Reads a shard, checked: its types, its numbering, and that its embeddings are finite.

    Raises:
        UserError: it is absent or damaged.
    """
    path = folder / plan.file(number)
    facts = shard_facts(folder, plan, number)
    if facts is None:
        raise UserError(f"{path}: is missing or damaged; write it again by the same `mmcl embed`")
    try:
        schema, batches = parquet_batches(path)
        table = pa.Table.from_batches(batches, schema)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: is damaged ({error}); delete it, and write it again by the same `mmcl embed`") from None
    column = table["embedding"].combine_chunks()
    values = column.drop_null().flatten().to_numpy()
    if not np.isfinite(values).all() or column.null_count != facts.bad:
        raise UserError(f"{path}: its embeddings are damaged; delete it, and write it again by the same `mmcl embed`")
    return table


def remove_damaged(folder: Path, plan: ShardPlan, numbers: Iterable[int]) -> list[str]:
    """Reads complete files whole, and removes those that are damaged, so that they are written again.

    A file is damaged if its digest is not that in `done.json`, or, before there is one, if its content cannot be read.

    Args:
        folder: the folder.
        plan: its plan.
        numbers: of the files.

    Returns:
        Names of the removed files.
    """
    digests: dict[str, str] = {}
    if (folder / DONE).is_file():
        with suppress(UserError):
            done = from_dict(Done, read_json(folder / DONE), DONE)
            digests = done.files if done.plan == plan.key else {}

    def is_damaged(number: int) -> bool:
        name = plan.file(number)
        if not (folder / name).exists():
            return False
        try:
            read_shard(folder, plan, number)
        except UserError:
            return True
        return name in digests and _sha256(folder / name) != digests[name]

    removed = [plan.file(number) for number in numbers if is_damaged(number)]
    for name in removed:
        (folder / name).unlink(missing_ok=True)
        (folder / DONE).unlink(missing_ok=True)
    return removed


def finish(folder: Path, plan: ShardPlan) -> Done:
    """Returns the list of a complete folder, and writes it if that has not been done: each file is read for its digest."""
    names = [plan.file(number) for number in range(plan.count)]
    if (folder / DONE).is_file():
        try:
            done = from_dict(Done, read_json(folder / DONE), DONE)
            if done.plan == plan.key and [*done.files] == names:
                return done
        except UserError:
            logger.warning(f"{folder / DONE} is damaged and is written again")
    shards = [facts for number in range(plan.shards) if (facts := shard_facts(folder, plan, number)) is not None]
    digests = in_threads(lambda number: _sha256(folder / names[number]), range(plan.count))
    done = Done(
        plan=plan.key,
        images=sum(facts.images for facts in shards),
        texts=sum(facts.texts for facts in shards),
        bad=sum(facts.bad for facts in shards),
        files=dict(zip(names, digests, strict=True)),
    )
    write_file(folder / DONE, json.dumps(asdict(done), indent=1) + "\n")
    return done


def complete_shards(folder: Path) -> tuple[ShardPlan, Done]:
    """Returns the plan of a complete folder, and its list. Reads no shard.

    Raises:
        UserError: it is no folder of shards, or not complete.
    """
    plan = read_plan(folder)
    try:
        done = from_dict(Done, read_json(folder / DONE), DONE)
    except UserError:
        done = None
    if done is None or done.plan != plan.key:
        raise UserError(f"{folder}: is not complete; run the same `mmcl embed` again")
    return plan, done


def shard_metadata(folder: Path, plan: ShardPlan) -> tuple[dict[str, Any], int]:
    """Returns what the first shard says of model and data, and the width of its rows. Raises UserError if it is damaged."""
    path = folder / plan.file(0)
    try:
        schema = pq.read_schema(path)
        return json.loads((schema.metadata or {})[METADATA_KEY.encode()]), schema.field("embedding").type.list_size
    except (OSError, ValueError, KeyError, AttributeError, pa.ArrowException) as error:
        raise UserError(f"{path}: is damaged ({error}); delete it, and write it again by the same `mmcl embed`") from None


def bad_rows(folder: Path, plan: ShardPlan, most: int) -> Iterator[tuple[int, str, str]]:
    """Yields row, name and reason of the rows without an embedding, in order, and at most `most`."""
    for number in range(plan.shards):
        facts = shard_facts(folder, plan, number)
        if most <= 0 or facts is None or facts.bad == 0:
            continue
        table = pq.read_table(folder / plan.file(number), columns=["row", "name", "reason"])
        found = table.filter(pa.compute.is_valid(table["reason"])).slice(0, most)
        yield from zip(*(column.to_pylist() for column in found.columns), strict=True)
        most -= len(found)


class Claims:
    """Which process works on which shard, on one machine or on several with a common file system.

    A claim is a lock of the operating system on one byte of a file, byte i for shard i. It ends with its process, however that
    ends, so no stale one can remain. Without such locks two processes may do the same shard: twice the work, the same bytes.
    """

    def __init__(self, folder: Path):
        self._path = folder / CLAIMS
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Claims:
        # One descriptor for the process: closing any other of the same file would give up all claims (POSIX).
        self._file = self._path.open("ab") if fcntl else None
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    @contextmanager
    def claim(self, number: int) -> Iterator[bool]:
        """Claims a shard within the block; false if another process has it."""
        if self._file is None:
            yield True
            return
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):
            yield False
            return
        except OSError:
            yield True  # a file system without locks
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
