"""Checkpoints that several processes write together, each its shard: complete or absent, and readable in any layout."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mmcl.config import OptimConfig
from mmcl.engine import checkpoint_writer as writing
from mmcl.engine.checkpoint import (
    AVERAGE,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    Checkpoint,
    Snapshot,
    latest_checkpoint,
    load_average,
    load_checkpoint,
    seal,
    shard_name,
    take_snapshot,
    verify,
)
from mmcl.engine.checkpoint_writer import CheckpointWriter, write_checkpoint
from mmcl.engine.optim import build_optimizer
from mmcl.engine.weight_average import WeightAverage
from mmcl.errors import UserError
from tests.distributed.harness import exit_codes, run_processes, whole
from tests.faults.runs import KILLED, kill, kill_at

GOLDEN = Path(__file__).parent / "golden_checkpoint"
State = dict[str, Tensor]


class Trained:
    """A small network, its optimizers (AdamW and Muon) and its average after some steps, sharded if there are processes.

    Of seven rows and one, three processes hold 3, 3 and 1, and 1, 0 and 0; the batch norm is replicated.
    """

    def __init__(self, world: int, steps: int = 2):
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 1))
        if world > 1:
            mesh = init_device_mesh("cpu", (world,))
            for layer in (self.module[0], self.module[2]):
                fully_shard(layer, mesh=mesh)
        self.optimizer = build_optimizer(self.module, OptimConfig(lr=1e-2, muon_lr=1e-2))
        self.average = WeightAverage(self.module, 0.5)
        for _ in range(steps):
            self.module(torch.randn(6, 5)).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.average.update()

    def snapshot(self, step: int) -> Snapshot:
        return take_snapshot(step, self.module, self.optimizer, average=self.average.tensors)

    def load(self, checkpoint: Checkpoint) -> None:
        load_checkpoint(checkpoint, self.module, self.optimizer)
        assert load_average(checkpoint, self.average.tensors)


def flat(snapshot: Snapshot) -> State:
    parts = {"model": snapshot.model, "optimizer": snapshot.optimizer, "average": snapshot.average or {}}
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def forbidden(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a process gathers weights")


def written(rank: int, world: int, folder: Path, steps: list[int]) -> State:
    """Write checkpoints without a process ever having more than its rows. Returns what they should hold."""
    trained = Trained(world)
    expected = flat(whole(trained.snapshot(0)))
    no_gather, no_layout = (mock.patch.object(DTensor, name, forbidden) for name in ("full_tensor", "redistribute"))
    with CheckpointWriter(folder, keep=2, shared=world > 1) as writer, no_gather, no_layout:
        for step in steps:
            writer.save(trained.snapshot(step))
        writer.wait()
        assert writer.failure is None
    return expected


def read(rank: int, world: int, folders: list[Path]) -> list[State]:
    trained, states = Trained(world, steps=1), []
    for folder in folders:
        checkpoint = latest_checkpoint(folder)
        assert checkpoint is not None
        trained.load(checkpoint)
        states.append(flat(whole(trained.snapshot(checkpoint.step))))
    return states


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, State]]:
    """Three checkpoints, of which two are kept, by the number of processes that wrote them, with what they should hold."""
    made = {}
    for world in (1, 2, 3):
        folder = tmp_path_factory.mktemp("written")
        made[world] = folder, run_processes(world, written, folder, [1, 2, 3])[0]
    return made


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_processes_reads_what_any_other_wrote(world: int, folders: dict[int, tuple[Path, State]]) -> None:
    for states in run_processes(world, read, [folder for folder, _ in folders.values()]):
        for found, (folder, expected) in zip(states, folders.values(), strict=True):
            assert sorted(path.name for path in folder.iterdir()) == ["step-0000002", "step-0000003"]
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_files_are_shards(tmp_path: Path) -> None:
    """Every process writes its rows and nothing else, in the modes of the umask; the first also what is not sharded."""
    before = os.umask(0o027)
    try:
        [expected, *_] = run_processes(3, written, tmp_path, [1])
    finally:
        os.umask(before)
    path = tmp_path / "step-0000001"
    shards = {shard_name(name, shard, 3) for name in (MODEL, OPTIMIZER, AVERAGE) for shard in range(3)}
    assert shard_name(MODEL, 0, 3) == "model.shard-1-of-3.safetensors"
    assert {file.name for file in path.iterdir()} == {MANIFEST, *shards}
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o640}
    assert verify(path).manifest["shards"] == 3
    parts = [load_file(path / shard_name(MODEL, shard, 3)) for shard in range(3)]
    assert [{name: len(part) for name, part in shard.items() if part.ndim and "running" not in name} for shard in parts] == [
        {"0.weight": 3, "0.bias": 3, "1.weight": 7, "1.bias": 7, "2.weight": 1, "2.bias": 1},
        {"0.weight": 3, "0.bias": 3},
        {"0.weight": 1, "0.bias": 1},
    ]
    total = sum(tensor.nbytes for tensor in expected.values())
    assert sum(tensor.nbytes for name in shards for tensor in load_file(path / name).values()) == total, "nothing twice"


def broken_off(fault: Callable[[], None], struck: int) -> Callable[..., None]:
    def work(rank: int, world: int, folder: Path) -> None:
        trained = Trained(world)
        group: Any = dist.new_group(backend="gloo")
        for step in (1, 2):
            write_checkpoint(folder, trained.snapshot(step), keep=2, group=group)
        if rank == struck:
            fault()
        write_checkpoint(folder, trained.snapshot(3), keep=2, group=group)

    return work


def half_a_file() -> None:
    def deadly(tensors: Any, path: Path) -> None:
        save_file(tensors, path)
        if path.name.startswith("optimizer"):
            os.truncate(path, path.stat().st_size // 2)
            kill()

    mock.patch.object(writing, "save_file", deadly).start()


FAILPOINTS: dict[str, tuple[Callable[[], None], int, int]] = {
    "another process, before its files": (kill_at(writing._Write, "put_files", 1), 1, 2),
    "another process, in the middle of a file": (half_a_file, 1, 2),
    "another process, before it says that they are written": (kill_at(writing, "sha256", 3, before=False), 1, 2),
    "the first process, in the middle of a file": (half_a_file, 0, 2),
    "the first process, before the manifest": (kill_at(writing, "seal", 1), 0, 2),
    "the first process, before the rename": (kill_at(Path, "replace", 1), 0, 2),
    "the first process, after the rename": (kill_at(Path, "replace", 1, before=False), 0, 3),
    "the first process, in the middle of deleting": (kill_at(os, "unlink", 1, before=False), 0, 3),
}


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_a_kill_of_one_process_leaves_a_whole_checkpoint(failpoint: str, tmp_path: Path) -> None:
    fault, struck, expected = FAILPOINTS[failpoint]
    codes = exit_codes(2, broken_off(fault, struck), tmp_path)
    assert codes[struck] == KILLED
    assert codes[1 - struck] == 1, "the other process notices"
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == expected
    Trained(1).load(found)
    write_checkpoint(tmp_path, Trained(1).snapshot(4), keep=2)
    newest = {"step-0000004", f"step-000000{expected}"}
    assert {path.name for path in tmp_path.iterdir()} == newest, "what the kill left behind is gone"


def failing(rank: int, world: int, folder: Path, fault: Callable[[int], None]) -> list[str]:
    """Write two checkpoints, the second with a fault; a third is not tried. Returns what the processes say."""
    trained = Trained(world)
    with CheckpointWriter(folder, keep=2, shared=True) as writer:
        writer.save(trained.snapshot(1))
        writer.wait()
        fault(rank)
        for step in (2, 3):
            writer.save(trained.snapshot(step))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return [str(writer.failure)]


def full_disk(rank: int) -> None:
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))


def no_room(rank: int) -> None:
    """There is room for the shard of each process and not for those of all."""
    shards = writing._SPARE_BYTES + 700
    mock.patch.object(shutil, "disk_usage", return_value=shutil._ntuple_diskusage(10**9, 10**9, shards)).start()


def not_shared(rank: int) -> None:
    if rank == 1:
        mock.patch.object(Path, "is_dir", return_value=False).start()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (full_disk, "/step-0000002 cannot be written ("),
        (no_room, "MB are free and the checkpoint of step 2 needs 1; make room"),
        (not_shared, ": process 1 does not see it; put run_dir where all see the same"),
    ],
)
def test_a_failure_of_one_is_told_by_all(fault: Callable[[int], None], said: str, tmp_path: Path) -> None:
    one, other = run_processes(2, failing, tmp_path, fault)
    assert one == other
    assert said in one[0]
    assert one[0].endswith("; the checkpoints before it are untouched")
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"], "the files of all processes are gone"
    assert verify(tmp_path / "step-0000001").step == 1


def forged(path: Path, **changes: Any) -> None:
    """Change a manifest, its digest included."""
    manifest = {**json.loads((path / MANIFEST).read_text()), **changes}
    del manifest["sha256"]
    (path / MANIFEST).write_text(json.dumps({**manifest, "sha256": seal(manifest)}))


LAST = shard_name(OPTIMIZER, 1, 2)
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: os.truncate(path / LAST, 100), f"{LAST} is damaged"),
    "missing": (lambda path: (path / LAST).unlink(), f"{LAST} is missing"),
    "of the other": (lambda path: shutil.copy(path / shard_name(OPTIMIZER, 0, 2), path / LAST), f"{LAST} is damaged"),
    "more shards than files": (lambda path: forged(path, shards=10**12), "it lists no model.shard-1-of-1000000000000"),
    "no shards": (lambda path: forged(path, shards=0), "shards is 0"),
    "one shard": (lambda path: forged(path, shards=1), "it lists no model.safetensors"),
    "half a shard": (lambda path: forged(path, shards=0.5), "shards"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_named_and_the_checkpoint_before_is_used(
    damage: str, folders: dict[int, tuple[Path, State]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strike, said = DAMAGE[damage]
    folder = shutil.copytree(folders[2][0], tmp_path / "checkpoints")
    strike(folder / "step-0000003")
    found = latest_checkpoint(folder)
    assert found is not None
    assert found.step == 2
    assert said in caplog.text


@pytest.mark.parametrize("part", [torch.ones(2, 9), torch.ones(2, 5, dtype=torch.int64), torch.ones(())], ids=str)
def test_forged_shards_that_do_not_fit_together_are_refused(
    part: Tensor, folders: dict[int, tuple[Path, State]], tmp_path: Path
) -> None:
    path = shutil.copytree(folders[2][0] / "step-0000003", tmp_path / "step-0000003")
    last = path / shard_name(MODEL, 1, 2)
    save_file({**load_file(last), "0.weight": part}, last)
    entry = {"bytes": last.stat().st_size, "sha256": hashlib.sha256(last.read_bytes()).hexdigest()}
    forged(path, files={**json.loads((path / MANIFEST).read_text())["files"], last.name: entry})
    with pytest.raises(UserError, match=r"step-0000003 is damaged: the shards of 0\.weight do not fit together"):
        Trained(1).load(verify(path))


def test_the_checkpoint_of_this_format_version_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written by the first version with shards, by `written` in three processes: see `tests.faults.test_checkpoints`.

    That version's Muon computed in bfloat16 everywhere.
    """
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    trained = Trained(1, steps=0)
    trained.load(verify(GOLDEN / "step-0000003"))
    expected = Trained(1)
    for name, tensor in flat(expected.snapshot(3)).items():
        # The gradient of a bias in front of a batch norm is rounding alone, of which AdamW makes steps as large as the rate.
        atol = 2 * 2 * 1e-2 if name.endswith(("/0.bias", "/1.running_mean")) else 1e-5
        torch.testing.assert_close(flat(trained.snapshot(3))[name], tensor, rtol=1e-4, atol=atol, msg=name)
