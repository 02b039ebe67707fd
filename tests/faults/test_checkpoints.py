"""Whatever happens to a checkpoint during or after writing, a complete one is on disk and is used."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmcl.engine import checkpoint as checkpoints
from mmcl.engine import checkpoint_writer as writing
from mmcl.engine.checkpoint import latest_checkpoint, load_checkpoint, set_newer_aside, verify
from mmcl.engine.checkpoint_writer import CheckpointWriter, write_checkpoint
from mmcl.engine.log import read_log
from mmcl.errors import UserError
from mmcl.files import atomic as files
from tests.engine.test_checkpoint import trained
from tests.faults.runs import KILLED, STEPS, before_step, final_state, kill, kill_at, output, run, tiny_run

GOLDEN = Path(__file__).parent / "golden_checkpoint"


def snapshot(step: int) -> checkpoints.Snapshot:
    return checkpoints.take_snapshot(step, *trained(steps=1))


def half_a_file() -> None:
    """The second file is half on the disk."""

    def deadly(tensors: Any, path: Path) -> None:
        save_file(tensors, path)
        if path.name == checkpoints.OPTIMIZER:
            os.truncate(path, path.stat().st_size // 2)
            kill()

    patch.object(writing, "save_file", deadly).start()


# The third checkpoint of two that are kept: `replace` puts it in place, `rename` takes the oldest out of sight.
FAILPOINTS = {
    "in the middle of a file": (half_a_file, 2),
    "before the manifest": (kill_at(writing, "seal", 1), 2),
    "before the last file is synced": (kill_at(os, "fsync", 5), 2),
    "before the folder is synced": (kill_at(os, "fsync", 6), 2),
    "before the rename": (kill_at(Path, "replace", 1), 2),
    "after the rename": (kill_at(Path, "replace", 1, before=False), 3),
    "before an old one is renamed": (kill_at(Path, "rename", 1), 3),
    "after an old one is renamed": (kill_at(Path, "rename", 1, before=False), 3),
    "in the middle of deleting": (kill_at(os, "unlink", 1, before=False), 3),
}


def in_child(work: Callable[[], object]) -> int:
    """The exit status of a forked child that does this."""
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)  # the threads of the parent's pool did not survive the fork
            work()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1]


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_a_kill_leaves_a_whole_checkpoint(failpoint: str, tmp_path: Path) -> None:
    fault, expected = FAILPOINTS[failpoint]
    for step in (1, 2):
        write_checkpoint(tmp_path, snapshot(step), keep=2)

    def struck() -> None:
        fault()
        write_checkpoint(tmp_path, snapshot(3), keep=2)

    assert in_child(struck) == 9
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == expected
    load_checkpoint(found, *trained(steps=0))
    write_checkpoint(tmp_path, snapshot(4), keep=2)
    newest = {"step-0000004", f"step-000000{expected}"}
    assert {path.name for path in tmp_path.iterdir()} == newest, "what the kill left behind is gone"


def test_what_a_name_promises_is_on_the_disk_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses nothing that was written; a power cut does, all that was not synced, in any order."""
    done: list[str] = []
    sync, rename, replace = files.sync, Path.rename, Path.replace

    def noted_sync(path: Path) -> None:
        done.append(f"sync {path.name}")
        sync(path)

    def noted_rename(path: Path, target: Path) -> Path:
        done.append(f"{path.name} -> {target.name}")
        return rename(path, target)

    def noted_replace(path: Path, target: Path) -> Path:
        done.append(f"{path.name} in its place")
        return replace(path, target)

    write_checkpoint(tmp_path / "checkpoints", snapshot(1), keep=1)
    monkeypatch.setattr(files, "sync", noted_sync)
    monkeypatch.setattr(writing, "sync", noted_sync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_checkpoint(tmp_path / "checkpoints", snapshot(2), keep=1)
    assert done[:2] == ["sync model.safetensors", "sync optimizer.safetensors"], "before their digests are in the manifest"
    assert sorted(done[2:5]) == ["sync MANIFEST.json", "sync model.safetensors", "sync optimizer.safetensors"]
    assert done[5:] == [
        "sync step-0000002",
        "step-0000002 in its place",
        "sync checkpoints",
        "step-0000001 -> .del-step-0000001",
    ]


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, snapshot(1), keep=2)
    said = tmp_path.with_suffix(".txt")

    def on_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            write_checkpoint(tmp_path, snapshot(2), keep=2)
        except UserError as error:
            said.write_text(str(error).replace(str(tmp_path), "")[:100])

    in_child(on_full_disk)
    assert "cannot be written" in said.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    assert verify(tmp_path / "step-0000001").step == 1


def test_free_space_is_checked_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match=r"0 MB are free and the checkpoint of step 7 needs 1; make room"):
        write_checkpoint(tmp_path, snapshot(7), keep=2)
    assert not any(tmp_path.iterdir())


def fill_the_disk(trainer: Any) -> None:
    """From now on no file may grow beyond a few steps' logs."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))


def test_a_run_on_a_full_disk_stops_with_a_message(image_folder: Path, tmp_path: Path) -> None:
    """Only the first process writes; every process says what went wrong. The run continues when there is room."""
    config = tiny_run(image_folder, tmp_path / "run")
    assert run(config, 2, before_step(4, fill_the_disk, ranks=[0])) == [2, 2]
    said = [[line for line in output(config, rank).splitlines() if "cannot be written" in line] for rank in (0, 1)]
    assert len(said[0]) == 1
    assert said[0] == said[1]
    assert read_log(tmp_path / "run/metrics.jsonl")[-1]["step"] < STEPS, "it does not keep training without checkpoints"
    assert {path.name[:5] for path in (tmp_path / "run/checkpoints").iterdir()} == {"step-"}
    assert run(tiny_run(image_folder, tmp_path / "run", "--resume")) == [0]


def test_the_last_checkpoint_too_fails_everywhere(image_folder: Path, tmp_path: Path) -> None:
    """There is no step after it in which the processes could agree."""
    config = tiny_run(image_folder, tmp_path / "run", "--train.save_every", "100")
    assert run(config, 2, before_step(STEPS, fill_the_disk, ranks=[0])) == [2, 2]
    assert all("cannot be written" in output(config, rank) for rank in (0, 1))


def test_a_flipped_byte_of_the_manifest_is_seen(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, snapshot(1), keep=2)
    manifest = path / checkpoints.MANIFEST
    original, before = manifest.read_bytes(), verify(path).manifest
    for position in range(len(original)):
        damaged = bytearray(original)
        damaged[position] ^= 1 << position % 7
        manifest.write_bytes(damaged)
        with suppress(UserError):
            assert verify(path).manifest == before


def test_a_run_continues_from_the_checkpoint_before_a_damaged_one(
    image_folder: Path, uninterrupted: Callable[..., Any], tmp_path: Path
) -> None:
    config = tiny_run(image_folder, tmp_path / "run")
    assert run(config, fault=before_step(7, kill)) == [-9]
    newest = latest_checkpoint(tmp_path / "run/checkpoints")
    assert newest is not None
    content = bytearray((newest.path / checkpoints.MODEL).read_bytes())
    content[-1] ^= 1
    (newest.path / checkpoints.MODEL).write_bytes(content)
    config = tiny_run(image_folder, tmp_path / "run", "--resume")
    assert run(config) == [0]
    assert f"{newest.path.name}: model.safetensors is damaged" in output(config)
    assert (newest.path.parent / f"damaged-{newest.path.name}").exists()
    assert final_state(config) == final_state(uninterrupted(1))


def test_damaged_checkpoints_do_not_push_out_whole_ones(tmp_path: Path) -> None:
    for step in (1, 5):
        write_checkpoint(tmp_path, snapshot(step), keep=1 if step == 1 else 2)
    (tmp_path / "step-0000005" / checkpoints.MODEL).write_bytes(b"")
    found = latest_checkpoint(tmp_path)
    assert found is not None
    set_newer_aside(found)
    write_checkpoint(tmp_path, snapshot(2), keep=1)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 2


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_dies_while_all_write(
    rank: int, image_folder: Path, uninterrupted: Callable[..., Any], tmp_path: Path
) -> None:
    """The shards of the others never become a checkpoint; they end, and the run continues from the checkpoint before."""
    spread = ("--train.fsdp", "true")
    config, strike = tiny_run(image_folder, tmp_path / "run", *spread), kill_at(writing, "sha256", 6)
    codes = run(config, 2, lambda ours: strike() if ours == rank else None)
    assert codes[rank] == KILLED
    assert codes[1 - rank] == 2
    assert "another process of this run died" in output(config, 1 - rank)
    found = latest_checkpoint(tmp_path / "run/checkpoints")
    assert found is not None
    assert found.step == 2, "two files of each process are a checkpoint"
    config = tiny_run(image_folder, tmp_path / "run", *spread, "--resume")
    assert run(config, 2) == [0, 0]
    assert final_state(config) == final_state(uninterrupted(2, *spread))


def test_links_are_not_followed(tmp_path: Path) -> None:
    """What lies under the names of the writer is removed as a link, not through it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in (".tmp-step-0000001", ".del-step-0000000", "step-0000000"):
        (folder / name).symlink_to(outside)
    write_checkpoint(folder, snapshot(1), keep=1)
    assert [path.name for path in folder.iterdir()] == ["step-0000001"]
    assert (outside / "precious").read_text() == "mine"


class TestBackground:
    """One writer thread: what it writes is what the tensors were, one at a time, and its failures are heard."""

    def test_training_may_continue(self, tmp_path: Path) -> None:
        module, optimizer = trained()
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        with CheckpointWriter(tmp_path, keep=2) as writer:
            writer.save(checkpoints.take_snapshot(1, module, optimizer))
            with torch.no_grad():
                for tensor in module.state_dict().values():
                    tensor.zero_()
            writer.wait()
        saved = load_file(tmp_path / "step-0000001" / checkpoints.MODEL)
        assert all(torch.equal(saved[name], tensor) for name, tensor in before.items())

    def test_never_two_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        running, most, original = [], [], writing._put_file

        def slow(*args: Any) -> None:
            running.append(1)
            most.append(len(running))
            time.sleep(0.02)
            original(*args)
            running.pop()

        monkeypatch.setattr(writing, "_put_file", slow)
        with CheckpointWriter(tmp_path, keep=5) as writer:
            for step in range(1, 5):
                writer.save(snapshot(step))
        assert most == [1] * 8
        assert len(list(tmp_path.glob("step-*"))) == 4

    def test_a_failure_surfaces_at_the_next_step(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def failing(*args: Any) -> None:
            time.sleep(0.05)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(writing, "_put_file", failing)
        with CheckpointWriter(tmp_path, keep=2) as writer:
            writer.save(snapshot(1))
            pending = writer._pending
            writer.save(snapshot(2))
            assert writer._pending is pending, "nothing is written after a failure"
            assert "No space left" in str(writer.failure)


def test_the_checkpoint_of_this_format_version_loads() -> None:
    """Written by the version that introduced the format; a change of the format needs a new number, and a new folder here."""
    found = verify(GOLDEN / "step-0000003")
    assert found.manifest["format_version"] == checkpoints.FORMAT_VERSION == 1
    module, optimizer = trained(steps=0)
    load_checkpoint(found, module, optimizer)
    assert [round(value, 6) for value in module.get_parameter("0.bias").tolist()] == GOLDEN_BIAS
    assert {float(state["step"]) for state in optimizer.state.values()} == {3.0}
    assert sum(file.stat().st_size for file in found.path.iterdir()) < 100_000


GOLDEN_BIAS = [0.130538, 0.473317, -0.367063, -0.395303]
