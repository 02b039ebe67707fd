"""Runs a function in W processes that communicate over gloo, forked from the warm test process."""

from __future__ import annotations

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


def _child(rank: int, world: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
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
        context = mp.get_context("fork")
        children = [context.Process(target=_child, args=(rank, world, folder, work, args)) for rank in range(world)]
        for child in children:
            child.start()
        for child in children:
            child.join(120)
        errors = [path.read_text() for path in sorted(Path(folder).glob("error-*"))]
        assert not errors, errors[0]
        return [torch.load(Path(folder) / f"result-{rank}") for rank in range(world)]
