"""Syncing an index with a folder: every kind of change, and random edits against a rebuild."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from PIL import Image

from mmcl.errors import UserError
from mmcl.search import Index
from mmcl.search.sync import SyncReport
from mmcl.testing.patterns import NAMES, PatternModel, pattern

COMPARED = (
    "id",
    "path",
    "sha",
    "captions",
    "label",
    "status",
    "reason",
    "size",
    "width",
    "height",
    "vector",
    "caption_vectors",
)


def write(path: Path, number: int, caption: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pattern(number)).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)


def rows(index: Index) -> dict[str, Any]:
    """All that must be equal in an index and in a rebuild, by path."""
    batches = index.store.table.scan([*COMPARED, "thumb", "taken"])  # type: ignore[attr-defined]
    found = [row for batch in batches for row in batch.to_pylist()]
    assert len({row["id"] for row in found}) == len(found)
    for row in found:
        row.pop("_rowid")
    return {row["path"]: row for row in found}


def did(report: SyncReport) -> dict[str, int]:
    """What a sync found, without what was zero."""
    names = ("new", "changed", "moved", "copied", "touched", "gone", "encoded", "bad")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def age(folder: Path) -> None:
    """Makes all files older than the time in which two changes look alike; only the times of change cannot be set."""
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number in range(6):
        write(folder / ("more" if number % 2 else ".") / f"{number}.png", number, NAMES[number])
    return folder


@pytest.fixture
def index(photos: Path, tmp_path: Path) -> Index:
    return Index.build(photos, PatternModel(), out=tmp_path / "photos.mmcl")


def two_copies(photos: Path) -> None:
    write(photos / "n.png", 9)
    write(photos / "m.png", 9)


def test_a_second_sync_does_nothing(index: Index) -> None:
    version = index.store.version
    report = index.sync()
    assert did(report) == {}
    assert (report.same, report.commits, index.store.version) == (6, 0, version)
    assert "nothing to do" in report.to_text()


def renamed_folder(photos: Path) -> None:
    (photos / "more").rename(photos / "other")


def swapped(photos: Path) -> None:
    (photos / "0.png").rename(photos / "x.png")
    (photos / "2.png").rename(photos / "0.png")
    (photos / "x.png").rename(photos / "2.png")


def other_bytes_with_the_same_size_and_time(photos: Path) -> None:
    stat = (photos / "0.png").stat()
    content = bytearray((photos / "0.png").read_bytes())
    write(photos / "0.png", 60)
    other = (photos / "0.png").read_bytes()
    (photos / "0.png").write_bytes(other + bytes(max(0, len(content) - len(other))))
    os.utime(photos / "0.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))


def repaired(photos: Path) -> None:
    write(photos / "bad.png", 7)


def broken(photos: Path) -> None:
    (photos / "0.png").write_bytes(b"no image")


CHANGES: dict[str, tuple[Callable[[Path], object], dict[str, int]]] = {
    "new": (lambda photos: write(photos / "new.png", 9), {"new": 1, "encoded": 1}),
    "changed": (lambda photos: write(photos / "0.png", 9), {"changed": 1, "encoded": 1}),
    "caption": (lambda photos: (photos / "0.txt").write_text("pattern 5"), {"changed": 1}),
    "folder renamed": (renamed_folder, {"moved": 3}),
    "copied": (lambda photos: shutil.copy(photos / "0.png", photos / "copy.png"), {"copied": 1}),
    "two copies of a new one": (two_copies, {"new": 1, "copied": 1, "encoded": 1}),
    "swapped": (swapped, {"changed": 2}),
    "touched": (lambda photos: os.utime(photos / "0.png", (5, 5)), {"touched": 1}),
    "in the future": (lambda photos: os.utime(photos / "0.png", (4e9, 4e9)), {"touched": 1}),
    "gone": (lambda photos: (photos / "0.png").unlink(), {"gone": 1}),
    "only its name's case": (lambda photos: (photos / "0.png").rename(photos / "0.PNG"), {"moved": 1}),
    "same size and time": (other_bytes_with_the_same_size_and_time, {"changed": 1, "encoded": 1}),
    "broken": (broken, {"changed": 1, "bad": 1}),
    "link to a file": (lambda photos: (photos / "link.png").symlink_to(photos / "0.png"), {"copied": 1}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found_and_costs_what_it_must(change: str, index: Index, photos: Path, tmp_path: Path) -> None:
    make, expected = CHANGES[change]
    make(photos)
    report = index.sync()
    assert did(report) == expected
    assert rows(index) == rows(Index.build(photos, PatternModel(), out=tmp_path / "again"))
    again = index.sync()
    assert (again.commits, again.encoded) == (0, 0)


def test_a_repaired_image_is_found(photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"no image")
    index = Index.build(photos, PatternModel(), out=tmp_path / "index")
    assert [bad.name for bad in index.bad] == [str(photos / "bad.png")]
    calls = len(index.model.image_calls)  # type: ignore[attr-defined]
    index.sync()
    assert len(index.model.image_calls) == calls, "it is not tried again before it changes"  # type: ignore[attr-defined]
    repaired(photos)
    assert did(index.sync()) == {"changed": 1, "encoded": 1}
    assert index.bad == ()
    assert index.search("pattern 7")[0].path == photos / "bad.png"


def test_old_files_are_not_read_again(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = time.time_ns() + 10 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)
    index = Index.build(photos, PatternModel(), out=tmp_path / "index")
    monkeypatch.undo()
    read: list[object] = []
    monkeypatch.setattr("mmcl.search.sync.sha_of", read.append)
    index.sync()
    assert read == []


def test_a_disk_that_is_not_mounted_empties_nothing(index: Index, photos: Path) -> None:
    photos.rename(photos.with_name("unmounted"))
    with pytest.raises(UserError, match=r"empty or not there; is its disk mounted\? Nothing was changed"):
        index.sync()
    photos.mkdir()
    with pytest.raises(UserError, match="is its disk mounted"):
        index.sync()
    write(photos / "0.png", 0)
    with pytest.raises(UserError, match="has lost 5 of 6 images"):
        index.sync()
    assert len(index) == 6
    assert did(index.sync(allow_empty=True))["gone"] == 5
    (photos / "0.png").unlink()
    index.sync(allow_empty=True)
    assert len(index) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_an_unreadable_folder_keeps_its_rows(index: Index, photos: Path) -> None:
    (photos / "more").chmod(0)
    try:
        with pytest.raises(UserError, match="more: cannot be read"):
            index.sync()
        assert did(index.sync(skip_unreadable=True)) == {}
    finally:
        (photos / "more").chmod(0o755)
    assert len(index) == 6


def test_an_unreadable_folder_keeps_its_rows_whoever_asks(index: Index, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmcl.data.sources.folders.source import FolderSource

    hidden = photos / ".hidden"
    (photos / "more").rename(hidden)
    monkeypatch.setattr(FolderSource, "unreadable", [("more", "Permission denied")])
    with pytest.raises(UserError, match=r"more: cannot be read \(Permission denied\)"):
        index.sync()
    assert did(index.sync(skip_unreadable=True)) == {}
    assert len(index) == 6


class Edits(RuleBasedStateMachine):
    """Random edits of a folder; after each sync, the index equals a rebuild."""

    base: Path
    runs = 0

    @initialize()
    def build(self) -> None:
        type(self).runs += 1
        self.place = self.base / str(self.runs)
        self.folder = self.place / "photos"
        for number in range(3):
            write(self.folder / f"{number}.png", number)
        self.index = Index.build(self.folder, PatternModel(), out=self.place / "index")
        self.builds = 0

    def files(self) -> list[Path]:
        return sorted(self.folder.rglob("*.png"))

    @rule(name=st.sampled_from(["0.png", "a/it's.png", "a/b.png", "ü.png"]), number=st.integers(0, 5))
    def write_one(self, name: str, number: int) -> None:
        write(self.folder / name, number)

    @rule(name=st.sampled_from(["0.png", "a/b.png", "c.png"]))
    def break_one(self, name: str) -> None:
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_bytes(b"broken")

    @rule(data=st.data(), name=st.sampled_from(["0.png", "a/b.png", "moved.png"]), copies=st.booleans())
    @precondition(lambda self: self.files())
    def move_one(self, data: st.DataObject, name: str, copies: bool) -> None:
        file = data.draw(st.sampled_from(self.files()))
        (self.folder / name).parent.mkdir(exist_ok=True)
        if file != self.folder / name:
            (shutil.copy if copies else shutil.move)(str(file), str(self.folder / name))

    @rule(data=st.data())
    @precondition(lambda self: len(self.files()) > 1)
    def swap(self, data: st.DataObject) -> None:
        one, other = data.draw(st.permutations(self.files()))[:2]
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)

    @rule(data=st.data())
    @precondition(lambda self: len(self.files()) > 1)
    def remove(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.files())).unlink()

    @rule(data=st.data(), text=st.sampled_from(["pattern 1", "", "pattern 2\npattern 3"]))
    @precondition(lambda self: self.files())
    def describe(self, data: st.DataObject, text: str) -> None:
        data.draw(st.sampled_from(self.files())).with_suffix(".txt").write_text(text)

    @rule(batch=st.sampled_from([1, 2, 512]))
    def sync(self, batch: int) -> None:
        self.index.sync(allow_empty=True, batch=batch)
        self.builds += 1
        again = self.place / f"again{self.builds}"
        if len(self.index):
            assert rows(self.index) == rows(Index.build(self.folder, PatternModel(), out=again))
        else:
            with pytest.raises(UserError, match=r"can be read|is empty"):
                Index.build(self.folder, PatternModel(), out=again)
        second = self.index.sync()
        assert (second.commits, second.encoded) == (0, 0)

    @invariant()
    def another_reader_sees_the_same(self) -> None:
        assert rows(Index.open(self.place / "index", PatternModel())) == rows(self.index)


@pytest.fixture
def edits(tmp_path: Path) -> type[Edits]:
    Edits.base = tmp_path
    return Edits


def machine(edits: type[Edits], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        edits,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_random_edits_end_as_a_rebuild(edits: type[Edits]) -> None:
    machine(edits, 8, 12)


@pytest.mark.long
def test_many_random_edits_end_as_a_rebuild(edits: type[Edits]) -> None:
    machine(edits, 150, 25)


def test_the_answers_are_those_of_an_index_in_memory(photos: Path, index: Index) -> None:
    in_memory = Index.build(photos, PatternModel())
    assert np.array_equal(in_memory.image_emb, index.image_emb)
    for question in ({"text": NAMES[2]}, {"image": photos / "0.png"}, {"text": NAMES[1], "target": "texts"}):
        for where in (None, 'folder = "more"', "width > 3 and not path contains '2'"):
            assert index.search(where=where, **question) == in_memory.search(where=where, **question)
