"""Runs a function in W processes that communicate over gloo, forked from the warm test process."""

from __future__ import annotations

import gc
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # an optimizer imports it: here once, not in every process
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from mmcl.engine.checkpoint import Snapshot


def _child(rank: int, world: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    gc.freeze()  # or the process would copy the memory of all modules when it looks for garbage
    try:
        torch.set_num_threads(1)
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
        torch.save(work(rank, world, *args), Path(folder) / f"result-{rank}")
        dist.destroy_process_group()
    except BaseException:
        (Path(folder) / f"error-{rank}").write_text(traceback.format_exc())
        raise


def run_processes(world: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """`work(rank, world, *args)` on every rank; the results in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        _joined(world, folder, work, args)
        errors = [path.read_text() for path in sorted(Path(folder).glob("error-*"))]
        assert not errors, errors[0]
        return [torch.load(Path(folder) / f"result-{rank}") for rank in range(world)]


def exit_codes(world: int, work: Callable[..., Any], *args: Any) -> list[int | None]:
    """Exit codes of `work(rank, world, *args)` on every rank; negative for a signal."""
    with tempfile.TemporaryDirectory() as folder:
        return _joined(world, folder, work, args)


def _joined(world: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> list[int | None]:
    context = mp.get_context("fork")
    children = [context.Process(target=_child, args=(rank, world, folder, work, args)) for rank in range(world)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    return [child.exitcode for child in children]


def whole(snapshot: Snapshot) -> Snapshot:
    """The shards of all processes in one; every process calls this."""
    if snapshot.shards == 1:
        return snapshot
    shards: list[Any] = [None] * snapshot.shards
    dist.all_gather_object(shards, snapshot)

    def joined(part: str) -> dict[str, Tensor]:
        parts = [getattr(shard, part) for shard in shards]
        rows = {name: [tensors[name] for tensors in parts if name in tensors] for name in parts[0]}
        return {name: torch.cat(found) if len(found) > 1 else found[0] for name, found in rows.items()}

    average = None if snapshot.average is None else joined("average")
    return Snapshot(snapshot.step, joined("model"), joined("optimizer"), snapshot.facts, average)
