"""Outputs appear complete or not at all, however writing ends; impossible outputs are refused in advance."""

from __future__ import annotations

import os
import resource
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmcl.errors import UserError
from mmcl.files import atomic as files
from mmcl.files.atomic import check_file, check_folder, staged, write_file


def in_child(run: Callable[[], object]) -> None:
    if (child := os.fork()) == 0:
        try:
            run()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def put_folder(path: Path, content: str) -> None:
    with staged(path) as stage:
        stage.mkdir()
        (stage / "a.txt").write_text(content)
        (stage / "b.txt").write_text(content)


def read_folder(path: Path) -> set[str]:
    return {file.read_text() for file in path.iterdir()}


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_file(tmp_path / "new" / "a.txt", "old")
    write_file(tmp_path / "new" / "a.txt", "grüße")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "grüße"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_replaced_as_a_whole(can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_exchange:
        monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    put_folder(tmp_path / "out", "old")
    (tmp_path / "out" / "stale.txt").touch()
    put_folder(tmp_path / "out", "new")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.txt", "b.txt"]
    assert read_folder(tmp_path / "out") == {"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_exception_leaves_what_was_there(tmp_path: Path) -> None:
    write_file(tmp_path / "a.txt", "old")

    def interrupted() -> None:
        with staged(tmp_path / "a.txt") as stage:
            stage.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("moment", ["replace", "sync", "renameat2"])
def test_after_a_kill_at_any_moment_a_folder_is_the_old_or_the_new(moment: str, tmp_path: Path) -> None:
    put_folder(tmp_path / "out", "old")

    def killed() -> None:
        if moment == "sync":
            files.sync = lambda path: os._exit(1)
        elif moment == "renameat2":
            exchanged = files._exchanged
            files._exchanged = lambda one, other: exchanged(one, other) and os._exit(1)
        else:
            files._put = lambda stage, path: os._exit(1)
        put_folder(tmp_path / "out", "new")

    in_child(killed)
    assert read_folder(tmp_path / "out") == {"new" if moment == "renameat2" else "old"}


def test_leftovers_of_a_kill_are_removed_after_a_day(tmp_path: Path) -> None:
    young, old = tmp_path / ".tmp-mmcl-1", tmp_path / ".tmp-mmcl-2"
    for folder in (young, old):
        folder.mkdir()
    os.utime(old, (0, time.time() - 25 * 3600))
    write_file(tmp_path / "a.txt", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-mmcl-1", "a.txt"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_of_the_umask_whatever_wrote_them(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with staged(tmp_path / "a") as stage:
            stage.mkdir()
            save_file({"x": torch.zeros(2)}, stage / "x.safetensors")
            (stage / "x.json").touch(mode=0o600)
        with staged(tmp_path / "x.safetensors") as stage:
            save_file({"x": torch.zeros(2)}, stage)
    finally:
        os.umask(before)
    written = [tmp_path / "a" / "x.safetensors", tmp_path / "a" / "x.json", tmp_path / "x.safetensors"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in written} == {0o666 & ~mask}


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "disk" / "a.txt")
    write_file(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "disk" / "a.txt").read_text() == "new"


@pytest.mark.parametrize("write", [lambda path: write_file(path, bytes(5000)), lambda path: save_tensors(path)])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(write: Callable[[Path], None], tmp_path: Path) -> None:
    file, said = tmp_path / "a.txt", tmp_path.with_suffix(".said")
    file.write_text("old")

    def on_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write(file)
        except UserError as error:
            said.write_text(str(error)[:200])

    in_child(on_full_disk)
    assert said.read_text().startswith(f"{file} cannot be written (")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def save_tensors(path: Path) -> None:
    with staged(path) as stage:
        save_file({"x": torch.zeros(2000)}, stage)


def test_a_device_is_written_to_and_not_replaced() -> None:
    with pytest.raises(UserError, match=r"^/dev/full cannot be written \(No space left on device"):
        write_file("/dev/full", "text")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_file_does_not_replace_a_folder_nor_a_folder_a_file(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "x"
    if kind == "file":
        place.write_text("mine")
        with pytest.raises(UserError, match="x cannot be written"):
            put_folder(place, "new")
        assert place.read_text() == "mine"
    else:
        put_folder(place, "mine")
        with pytest.raises(UserError, match="x cannot be written"):
            write_file(place, "new")
        assert read_folder(place) == {"mine"}


TROUBLES = ("missing folder", "below a file", "a folder", "read-only", "other suffix", "name too long")


def troubles(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    (tmp_path / "a-file").touch()
    (tmp_path / "a-folder.png").mkdir()
    return {
        "missing folder": (tmp_path / "missing" / "a.png", "there is no folder"),
        "below a file": (tmp_path / "a-file" / "a.png", "there is no folder"),
        "a folder": (tmp_path / "a-folder.png", "this is a folder"),
        "read-only": (Path("/proc/a.png"), "cannot be written"),
        "other suffix": (tmp_path / "a.xyz", "ends in .png or .jpg"),
        "name too long": (tmp_path / ("a" * 300 + ".png"), "cannot be written"),
    }


@pytest.mark.parametrize(
    "trouble", ["missing folder", "below a file", "a folder", "read-only", "other suffix", "name too long"]
)
def test_a_file_that_cannot_be_written_is_refused_before(trouble: str, tmp_path: Path) -> None:
    path, said = troubles(tmp_path)[trouble]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"^--out .*{said}"):
        check_file(path, flag="--out", suffixes=(".png", ".jpg"))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_made_is_refused_before(tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    for path in (tmp_path / "a-file", tmp_path / "a-file" / "out", Path("/proc/out"), tmp_path / ("a" * 300)):
        with pytest.raises(UserError, match=r"^--out "):
            check_folder(path, flag="--out")
    for path in (tmp_path, tmp_path / "new", tmp_path / "new" / "er"):
        check_folder(path, flag="--out")
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_permissions_count_before(tmp_path: Path) -> None:
    (tmp_path / "kept.png").touch(mode=0o444)
    (tmp_path / "closed").mkdir(mode=0o755)
    reader, writer = os.pipe()

    def as_another_user() -> None:
        os.chdir(tmp_path)
        os.setuid(65534)
        for check, place in ((check_file, "kept.png"), (check_file, "closed/a.png"), (check_folder, "closed/out")):
            try:
                check(Path(place), flag="--out")
            except UserError as error:
                os.write(writer, f"{error}\n".encode())

    in_child(as_another_user)
    os.close(writer)
    with os.fdopen(reader) as said:
        lines = said.read().splitlines()
    assert [line.partition(" cannot be written (")[0] for line in lines] == [
        "--out kept.png",
        "--out closed/a.png",
        "--out closed/out",
    ]
