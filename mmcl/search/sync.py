"""Bringing an index up to date with its collection; the result equals a rebuild, row for row.

A file whose size and times are those of its row, all older than the moment in which it was read, is the same. Any other is
hashed. A hash that is in the index already costs no encoding: the file was touched, moved or copied. Upserts are committed in
batches and deletions last, so that a process killed at any moment leaves rows too many, never too few, and the next sync goes
on from there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmcl.data.threads import in_batches, in_threads
from mmcl.errors import UserError
from mmcl.progress import progress_bar
from mmcl.search.collection import NOWHERE, Collection, Entry, sha_of, with_small_file
from mmcl.search.content import Content, Encoder, Read, as_stored, content_columns
from mmcl.search.lance_table import LanceTable, schema_of
from mmcl.search.table_indices import index_captions
from mmcl.terminal import counted

_RACY_NS = 2 * 10**9
"""Two changes of a file within this time may leave it with equal times."""
_OPTIMIZED = 20
"""Commits after which the pieces are joined."""
_ALARMING = 0.5
"""Share of the files that may be gone without a question."""
_KNOWN = ("id", "path", "size", "mtime_ns", "ctime_ns", "looked_ns", "sha", "digest", "status")
"""Columns that `Known` needs, in its order, after that of the ids."""


@dataclass(slots=True)
class SyncReport:
    """What a sync found and did.

    Attributes:
        same: images as they were.
        new, changed: images that were not in the index, or whose content or texts are others.
        moved, copied: images whose content was in the index under another path, which is gone, or still there.
        touched: files of the same content with other times.
        gone: images that are not in the collection any more.
        bad: images in the index that cannot be read.
        encoded: images that the model encoded.
        commits: changes of the index; 0 if there was nothing to do.
        seconds: duration.
    """

    same: int = 0
    new: int = 0
    changed: int = 0
    moved: int = 0
    copied: int = 0
    touched: int = 0
    gone: int = 0
    bad: int = 0
    encoded: int = 0
    commits: int = 0
    seconds: float = 0.0

    def count(self, what: str) -> None:
        """Adds one to a field."""
        setattr(self, what, getattr(self, what) + 1)

    def to_text(self) -> str:
        """One line: "2 new, 1 moved, 97 as before; 2 encoded in 0.8 s"."""
        names = ("new", "changed", "moved", "copied", "touched", "gone")
        parts = [f"{getattr(self, name):,} {name}" for name in names if getattr(self, name)]
        rest = f"{self.same:,} as before" if parts else f"nothing to do: {self.same:,} as before"
        bad = f", {self.bad:,} unreadable" if self.bad else ""
        return f"{', '.join([*parts, rest])}{bad}; {self.encoded:,} encoded in {self.seconds:.1f} s"


class Known(NamedTuple):  # made for every image, and three times as fast as a frozen dataclass
    """State of a row in the index; see `lance_table`."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    looked_ns: int
    sha: bytes | None
    digest: bytes
    is_ok: bool

    @property
    def look(self) -> tuple[int, int, int]:
        """As in `Entry`."""
        return self[1:4]

    def is_same(self, entry: Entry) -> bool:
        """True if neither the file can have changed since it was read, nor its texts and columns."""
        look, border = self[1:4], self.looked_ns - _RACY_NS
        is_old = self.mtime_ns < border and self.ctime_ns < border
        return entry.look == look and (is_old or look == NOWHERE) and entry.digest == self.digest


class _Rows(Mapping[str, Known]):
    """Rows of an index by their ids.

    They are kept as plain tuples, which the garbage collector leaves alone; it would look through a million of a class of their
    own again and again.
    """

    def __init__(self, table: LanceTable):
        self._rows: dict[str, tuple[Any, ...]] = {}
        for rows in table.scan(_KNOWN):
            columns = {name: rows[name] for name in _KNOWN}
            columns |= {"size": pc.fill_null(columns["size"], -1), "status": pc.equal(columns["status"], "ok")}
            # Several times as fast as `to_pylist`.
            ids, *others = (column.to_numpy(zero_copy_only=False).tolist() for column in columns.values())
            self._rows.update(zip(ids, zip(*others, strict=True), strict=True))

    def __getitem__(self, id: str) -> Known:
        return Known._make(self._rows[id])

    def __contains__(self, id: object) -> bool:
        return id in self._rows

    def get(self, id: str, default: Known | None = None) -> Known | None:  # type: ignore[override]
        row = self._rows.get(id)
        return default if row is None else Known._make(row)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


@dataclass
class _Work:
    """State of one sync."""

    table: LanceTable
    encoder: Encoder
    known: Mapping[str, Known]
    gone: set[str]
    report: SyncReport
    holders: dict[bytes, str]  # content -> id of a row in the index that has it
    left: dict[bytes, int] = field(
        default_factory=dict
    )  # content -> number of rows whose path is gone and that no move has claimed
    saved: dict[bytes, Content] = field(default_factory=dict)  # of rows that are overwritten before a later batch needs them
    unsure: list[str] = field(default_factory=list)  # ids of rows that were the same, and had to be hashed to know it


class _Look(NamedTuple):
    """What a look at an image has found.

    Attributes:
        entry: the image.
        sha: of its content, None if it cannot be read.
        looked_ns: moment before.
        read: as from `Encoder.read`, None if its content is in the index already.
    """

    entry: Entry
    sha: bytes | None
    looked_ns: int
    read: Read | str | None


def sync(
    table: LanceTable,
    collection: Collection,
    encoder: Encoder,
    *,
    verify: bool = False,
    allow_empty: bool = False,
    skip_unreadable: bool = False,
    batch: int = 512,
    progress: bool = False,
) -> SyncReport:
    """Brings an index up to date; the caller holds the writer's lock. See `Index.sync`."""
    started, started_ns, report = time.perf_counter(), time.time_ns(), SyncReport()
    known = _Rows(table)
    _refuse_unreadable(collection, skip_unreadable)
    candidates: list[Entry] = []
    seen: set[str] = set()
    for entry in collection:
        seen.add(entry.id)
        row = None if verify else known.get(entry.id)
        if row is not None and row.is_same(entry):
            report.same += 1
        else:
            candidates.append(entry)
    gone = {id for id in known if id not in seen and not _is_below(known[id].path, collection.unreadable)}
    _refuse_vanished(collection, len(known), len(gone), allow_empty)
    holders = {row.sha: id for id, row in known.items() if row.sha is not None and row.is_ok} if candidates else {}
    left = Counter(sha for id in gone if (sha := known[id].sha) is not None)
    work = _Work(table, encoder, known, gone, report, holders, left)
    _apply(work, candidates, batch, progress)
    if gone:
        report.commits += table.delete(sorted(gone))
        report.gone = len(gone) - report.moved
    if report.commits:
        table.look_again(work.unsure, started_ns)
        index_captions(table)
        table.optimize()
        _check_unique(table)
    report.bad = table.count("status = 'bad'")
    report.seconds = time.perf_counter() - started
    return report


def _refuse_unreadable(collection: Collection, skipped: bool) -> None:
    if collection.unreadable and not skipped:
        folder, reason = collection.unreadable[0]
        raise UserError(
            f"{collection.root}{folder}: cannot be read ({reason}), so what is in it is not known; mend that, or give "
            "--skip_unreadable to leave its rows as they are"
        )


def _is_below(path: str, folders: Sequence[tuple[str, str]]) -> bool:
    return any(path.startswith(f"{folder}/") for folder, _ in folders)


def _refuse_vanished(collection: Collection, known: int, gone: int, allowed: bool) -> None:
    if known and gone > _ALARMING * known and not allowed:
        now = "is empty or not there" if not len(collection) else f"has lost {gone:,} of {counted(known, 'image')}"
        raise UserError(
            f"{collection.name}: {now}; is its disk mounted? Nothing was changed; if the images are gone, give --allow_empty"
        )


def _apply(work: _Work, candidates: Sequence[Entry], batch: int, progress: bool) -> None:
    """Commits the candidates in batches; the next one is read while one is encoded and written."""
    shas: dict[str, bytes | None] = {}
    looked_ns = time.time_ns()
    if work.known:
        shas = _hashed(candidates)
        _save_overwritten(work, candidates, shas)

    def look(number: int) -> _Look:
        entry = candidates[number]
        if work.known:
            now_ns, sha = looked_ns, shas[entry.id]
        else:
            now_ns = time.time_ns()  # before the file is read
            entry = with_small_file(entry)
            sha = sha_of(entry.image)
        return _Look(entry, sha, now_ns, None if sha in work.holders else work.encoder.read(entry))

    bar = progress_bar(total=len(candidates), shown=progress, unit="image")
    with bar, closing(in_batches(look, len(candidates), batch)) as parts:
        for part in parts:
            if rows := _rows(work, part):
                about = work.table.about
                work.table.upsert(pa.Table.from_pylist(as_stored(rows, about), schema=schema_of(about)))
                work.report.commits += 1
                if work.report.commits % _OPTIMIZED == 0:
                    work.table.optimize()
            bar.update(len(part))


def _save_overwritten(work: _Work, candidates: Sequence[Entry], shas: Mapping[str, bytes | None]) -> None:
    """Fetches content that one batch overwrites and a later one needs, as when two files are swapped."""
    rows = {one.id: work.known[one.id] for one in candidates if one.id in work.known}
    overwritten = {row.sha for id, row in rows.items() if row.sha != shas[id]}
    needed = {sha for sha in shas.values() if sha is not None and sha in overwritten and sha in work.holders}
    work.saved = _fetched(work, needed)[0]


def _rows(work: _Work, looks: Sequence[_Look]) -> list[dict[str, Any]]:
    """Returns the rows of a batch that differ from those in the index; known content is taken over, other is encoded once."""
    shas = {look.entry.id: look.sha for look in looks}
    reads = {look.entry.id: look.read for look in looks if look.read is not None}
    changed = [look.entry for look in looks if not _is_as_before(work, look.entry, look.sha)]
    known = {sha for one in changed if (sha := shas[one.id]) is not None and sha in work.holders}
    contents, texts = _fetched(work, known, [one.id for one in changed if one.id in work.known])
    first: dict[bytes | str, Entry] = {}
    for one in changed:
        sha = shas[one.id]
        work.report.count(_what(work, one, sha, is_known=sha in contents or sha in first))
        if sha not in contents:
            first.setdefault(one.id if sha is None else sha, one)
    read = dict(zip(first, work.encoder.contents(list(first.values()), reads), strict=True))
    again = [one for one in changed if isinstance(read.get(shas[one.id] or one.id), str) and one not in first.values()]
    # A reason names its file, so each copy of an unreadable file has its own.
    reasons = {one.id: reason for one, reason in zip(again, work.encoder.contents(again, reads), strict=True)}
    work.report.encoded += sum(isinstance(content, Content) for content in read.values())
    found: list[tuple[Entry, Content | str]] = []
    for one in changed:
        sha = shas[one.id]
        found.append((one, reasons.get(one.id) or contents.get(sha or b"") or read[sha or one.id]))
    for one, content in found:
        sha = shas[one.id]
        if sha is not None and isinstance(content, Content):
            work.holders[sha] = one.id
    looked_ns = min((look.looked_ns for look in looks), default=0)
    return work.encoder.rows(found, shas, texts, looked_ns, work.table.about.root)


def _is_as_before(work: _Work, entry: Entry, sha: bytes | None) -> bool:
    """True for a row that nothing has changed in, although that was not certain without its hash."""
    row = work.known.get(entry.id)
    if row is None or sha != row.sha or (entry.look or NOWHERE) != row.look or entry.digest != row.digest:
        return False
    work.report.same += 1
    work.unsure.append(entry.id)
    return True


def _what(work: _Work, entry: Entry, sha: bytes | None, *, is_known: bool) -> str:
    """Returns what has happened to an image, as a field of the report."""
    row = work.known.get(entry.id)
    if row is not None and row.sha == sha and row.digest == entry.digest:
        return "touched"
    if row is not None:
        return "changed"
    if sha is None or not (is_known or sha in work.left):
        return "new"
    if work.left.get(sha, 0) > 0:
        work.left[sha] -= 1
        return "moved"
    return "copied" if is_known else "new"


def _fetched(work: _Work, shas: Set[bytes], ids: Sequence[str] = ()) -> tuple[dict[bytes, Content], dict[str, np.ndarray]]:
    """Fetches content of the index, and the vectors of all captions of these rows and those with some ids."""
    contents = {sha: work.saved[sha] for sha in shas if sha in work.saved}
    holders = {work.holders[sha]: sha for sha in shas if sha not in contents}
    texts = {text: vector for content in contents.values() for text, vector in content.texts.items()}
    wanted = sorted({*holders, *ids})
    about = work.table.about
    for row in work.table.of_ids(wanted, content_columns(about)).to_pylist() if wanted else ():
        content = Content.of_row(row, about)
        texts |= content.texts
        if row["id"] in holders:
            contents[holders[row["id"]]] = content
    return contents, texts


def _hashed(entries: Sequence[Entry]) -> dict[str, bytes | None]:
    """Hashes the content of images; None for those that cannot be read."""
    shas = in_threads(lambda number: sha_of(entries[number].image), range(len(entries)))
    return {entry.id: sha for entry, sha in zip(entries, shas, strict=True)}


def _check_unique(table: LanceTable) -> None:
    """Raises UserError if an id has several rows, which only a second writer that ignores the lock can cause."""
    ids = {id for rows in table.scan(["id"]) for id in rows["id"].to_pylist()}
    if len(ids) != table.count():
        raise UserError(
            f"{table.place}: {counted(table.count() - len(ids), 'row')} too many, written by two writers at once; restore an "
            "older version by `mmcl index restore`, and sync again"
        )
