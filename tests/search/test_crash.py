"""An index on disk when processes are killed, compete, or find the disk full or the table damaged."""

from __future__ import annotations

import json
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmcl.cli.main import main
from mmcl.errors import DamagedIndexError, UserError
from mmcl.search import Index
from mmcl.search.lance_table import ABOUT, FORMAT, ITEMS, LanceTable
from mmcl.search.narrow import Narrow
from mmcl.testing.patterns import PatternModel, pattern
from tests.search.test_sync import rows, write
from tests.warm import start

pytestmark = pytest.mark.slow
IMAGES = 20

CHILD = """
import os, signal, sys, threading
place, photos, step, after = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
from mmcl.search import Index
from mmcl.search.lance_table import LanceTable
from mmcl.testing.patterns import PatternModel
steps = 0
def kill(): os.kill(os.getpid(), signal.SIGKILL)
def counted(real):
    def call(self, *given):
        global steps
        steps += 1
        if steps == step:
            if after < 0:
                kill()
            threading.Timer(after, kill).start()
        return real(self, *given)
    return call
for name in ("upsert", "delete", "optimize", "look_again"):
    setattr(LanceTable, name, counted(getattr(LanceTable, name)))
with Index.open(place, PatternModel(), mode="w") as index:
    index.sync(batch=4)
print("done")
"""
"""Syncs an index, and kills itself at one of its steps: before it, or some seconds into it."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number in range(4):
        write(folder / f"{number:03}.png", number, f"pattern {number}")
    return folder


def killed(index: Path, photos: Path, step: int, after: float) -> bool:
    """True if the process died at the step, and false if it was done before."""
    done = start("-c", CHILD, str(index), str(photos), str(step), str(after)).wait()
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def check_killed(photos: Path, place: Path, kills: list[tuple[int, float]], narrow: Narrow | None) -> int:
    """Adds, moves and removes images, and kills the sync again and again. Returns how many kills struck."""
    index = place / "index"
    Index.build(photos, PatternModel(), out=index, narrow=narrow)
    for number in range(4, IMAGES):
        write(photos / f"{number:03}.png", number, f"pattern {number}")
    (photos / "000.png").rename(photos / "moved.png")
    (photos / "001.png").unlink()
    struck, before = 0, 4
    for step, after in kills:
        struck += killed(index, photos, step, after)
        opened = Index.open(index, PatternModel())
        found = rows(opened)  # every id once
        good = {path: row for path, row in found.items() if row["status"] == "ok"}
        assert len(good) >= min(before, IMAGES - 2), "no progress is lost"
        before = max(before, len(good) - 2)  # what is removed at the end
        for path, row in good.items():
            number = 0 if path == "moved.png" else int(path[:3])
            pixels = np.asarray(row["vector"]) * 1.0
            expected = PatternModel().encode_image([pattern(number)])[0]
            np.testing.assert_array_equal(pixels, expected, err_msg=path)
    finished = Index.open(index, PatternModel(), mode="w")
    finished.sync()
    assert rows(finished) == rows(Index.build(photos, PatternModel(), out=place / "again", narrow=narrow))
    assert finished.verify() == []
    assert finished.sync().commits == 0
    finished.close()
    return struck


def test_a_killed_sync_goes_on(photos: Path, tmp_path: Path) -> None:
    assert check_killed(photos, tmp_path, [(2, -1), (2, 0.004)], "int8") >= 1


@pytest.mark.long
@pytest.mark.parametrize("narrow", [None, "int8", "binary"])
def test_a_sync_killed_at_many_places_goes_on(narrow: Narrow | None, tmp_path: Path) -> None:
    """Between commits and within them, in every kind of step: 40 kills, of which 20 and more strike."""
    struck = 0
    for first in (1, 3, 6, 10):
        place = tmp_path / str(first)
        for number in range(4):
            write(place / "photos" / f"{number:03}.png", number, f"pattern {number}")
        kills = [(first, -1.0), *((step, after) for step in (1, 2, 3) for after in (0.001, 0.004, 0.015))]
        struck += check_killed(place / "photos", place, kills, narrow)
    assert struck >= 20


def test_a_second_writer_is_refused_and_readers_are_not(photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "index"
    Index.build(photos, PatternModel(), out=place)
    with Index.open(place, PatternModel(), mode="w") as writer:
        with pytest.raises(UserError, match=r"index is being written by process \d+ on .*; wait"):
            Index.open(place, PatternModel(), mode="w")
        reader = Index.open(place, PatternModel())
        with pytest.raises(UserError, match="is being written by"):
            reader.sync()
        write(photos / "new.png", 9)
        writer.sync()
        assert len(reader.search("pattern 1")) == 4, "a reader sees the version that it has opened"
        reader.refresh()
        assert len(reader.search("pattern 1")) == 5
    with Index.open(place, PatternModel(), mode="w") as again:
        assert again.sync().commits == 0


def test_a_writer_in_another_process_is_refused_until_it_is_killed(photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "index"
    Index.build(photos, PatternModel(), out=place)
    code = f"""
import time
from mmcl.search import Index
held = Index.open({str(place)!r}, mode="w")
print("held", flush=True)
time.sleep(100)
"""
    child = start("-c", code)
    for _ in range(600):
        time.sleep(0.05)
        child.said[0].seek(0)
        if "held" in child.said[0].read():
            break
    with pytest.raises(UserError, match=f"being written by process {child.pid} on"):
        Index.open(place, mode="w")
    import os

    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    Index.open(place, mode="w").close()


def test_a_reader_beside_a_writer_sees_whole_batches(photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "index"
    writer = Index.build(photos, PatternModel(), out=place)
    for number in range(4, 16):
        write(photos / f"{number:03}.png", number)
    sizes = []
    real = LanceTable.upsert

    def looked(self: LanceTable, given: object) -> None:
        real(self, given)
        reader = Index.open(place, PatternModel())
        sizes.append(len(reader.search("pattern 1", top_k=99)))

    LanceTable.upsert = looked  # type: ignore[method-assign, assignment]
    try:
        writer.sync(batch=4)
    finally:
        LanceTable.upsert = real  # type: ignore[method-assign]
    assert sizes == [8, 12, 16]


def test_a_full_disk_is_one_line_and_keeps_what_was_written(photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "index"
    Index.build(photos, PatternModel(), out=place)
    for number in range(4, 12):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (300, 300, 3), np.uint8)).save(
            photos / f"{number:03}.png"
        )
    code = f"""
import resource, signal
from mmcl.cli.main import main
from mmcl.errors import DamagedIndexError, UserError
from mmcl.search import Index
from mmcl.testing.patterns import PatternModel
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
index = Index.open({str(place)!r}, PatternModel(), mode="w")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    index.sync()
except UserError as error:
    print(error)
"""
    done = start("-c", code).wait()
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert len(Index.open(place, PatternModel())) == 4
    with Index.open(place, PatternModel(), mode="w") as again:
        assert again.sync().new == 8


def change_about(place: Path, **change: object) -> None:
    import lancedb

    database = lancedb.connect(place)
    content = json.loads(database.open_table(ABOUT).to_arrow()["value"][0].as_py())
    database.create_table(ABOUT, [{"key": "about", "value": json.dumps(content | change)}], mode="overwrite")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("newer", rf"of format 99, and this version of mmcl reads up to {FORMAT}; install a newer mmcl"),
        ("settings", "settings are damaged"),
        ("data", "is damaged"),
        ("manifests", "is damaged|holds no index"),
        ("no vector", r"is damaged \(an image has no vector; `mmcl index verify` names it\)"),
        ("no items", "holds no index"),
    ],
)
def test_a_damaged_index_is_one_line(damage: str, message: str, photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "index"
    Index.build(photos, PatternModel(), out=place)
    items = place / f"{ITEMS}.lance"
    if damage == "newer":
        change_about(place, format=99)
    elif damage == "settings":
        change_about(place, format=None)
    elif damage == "data":
        for file in (items / "data").iterdir():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "manifests":
        shutil.rmtree(items / "_versions")
    elif damage == "no vector":
        LanceTable.open(str(place)).table.update(where="path = '001.png'", values_sql={"vector": "NULL"})
        assert Index.open(place).verify() == ["001.png: has no vector"]
    else:
        shutil.rmtree(items)
    with pytest.raises(UserError, match=message) as error:
        Index.open(place, PatternModel()).search("pattern 1")
    assert "\n" not in str(error.value)
    if damage in ("settings", "data", "no vector"):
        assert isinstance(error.value, DamagedIndexError)
    if damage in ("settings", "data"):
        assert main(["search", str(place), "--like", "0" * 16]) == 4


def test_a_search_that_finds_nothing_says_so(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = Index.build(photos, PatternModel(), out=tmp_path / "index")
    like = index.search("pattern 1")[0].id
    words = ["search", str(tmp_path / "index"), "--like", like]
    with pytest.raises(SystemExit) as end:
        main([*words, "--where", "width > 9000"])
    assert end.value.code == 3
    assert "nothing found" in capsys.readouterr().err
    assert main([*words, "--where", "width < 9000"]) == 0


def test_two_writers_past_the_lock_leave_no_duplicates(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an object store, which has no lock: both sync new files at once, batch by batch."""
    place = tmp_path / "index"
    Index.build(photos, PatternModel(), out=place)
    for number in range(4, 24):
        write(photos / f"{number:03}.png", number, f"pattern {number}")
    monkeypatch.setattr(LanceTable, "locked", lambda self: nullcontext())
    writers = [Index.open(place, PatternModel()) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(writer.sync, batch=5) for writer in writers]
        errors = [one.exception() for one in done]
    assert all(error is None or isinstance(error, UserError) for error in errors), errors
    monkeypatch.undo()
    after = Index.open(place, PatternModel())
    after.sync()
    assert rows(after) == rows(Index.build(photos, PatternModel(), out=tmp_path / "rebuilt"))
    assert len(after) == 24 == after.store.table.count()  # type: ignore[attr-defined]


def test_another_model_is_refused_when_it_would_write(photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "index"
    Index.build(photos, PatternModel(), out=place)
    other = PatternModel()
    other.fingerprint = "retrained"
    for mode in ("r", "w"):
        with pytest.raises(UserError, match=r"\(patterns, not retrained\); load that one, or build the index again"):
            Index.open(place, other, mode=mode)
    with pytest.raises(UserError, match="another model"):
        Index.build(photos, other, out=place)
    assert Index.build(photos, other, out=place, replace=True).store.model == "retrained"


def test_versions_are_restored(photos: Path, tmp_path: Path) -> None:
    index = Index.build(photos, PatternModel(), out=tmp_path / "index")
    before = rows(index)
    number = index.store.version
    write(photos / "new.png", 9)
    index.sync()
    assert [version.rows for version in index.versions() if version.number in (number, index.store.version)] == [4, 5]
    index.restore(number)
    assert rows(index) == before
    assert len(index.search("pattern 1", top_k=9)) == 4
    with pytest.raises(UserError, match="no version 999"):
        index.restore(999)
    assert index.sync().new == 1


@pytest.mark.parametrize("kind", [{}, {"narrow": "binary"}, {"dtype": "float16", "narrow": "int8"}])
def test_an_older_index_is_imported(kind: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    Index.build(photos, PatternModel()).save(tmp_path / "old")
    imported = Index.import_old(tmp_path / "old", tmp_path / "new", **kind)
    index = Index.open(tmp_path / "new", PatternModel())
    assert rows(imported) == rows(Index.build(photos, PatternModel(), out=tmp_path / "built", **kind))
    report = index.sync()
    assert (report.encoded, report.commits, len(index)) == (0, 0, 4)
    with pytest.raises(UserError, match="index import"):
        Index.open(tmp_path / "old", PatternModel(), mode="w")
    with pytest.raises(UserError, match="an index that keeps up already"):
        Index.import_old(tmp_path / "new", tmp_path / "newer")


def test_a_misspelt_index_has_a_suggestion(photos: Path, tmp_path: Path) -> None:
    Index.build(photos, PatternModel(), out=tmp_path / "photos.mmcl")
    with pytest.raises(UserError, match=r"phots\.mmcl: no such index; did you mean .*/photos\.mmcl\?"):
        Index.open(tmp_path / "phots.mmcl")
