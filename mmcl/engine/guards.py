"""Conditions that end a run early: a stop signal, a lost process, a non-finite loss."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmcl.config import Config, to_dict
from mmcl.errors import UserError, first_line
from mmcl.files.atomic import write_file
from mmcl.types import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]

_WEEK = 7 * 24 * 3600.0


class StopSignals:
    """SIGTERM and SIGUSR1, which schedulers send before they take a machine back, as a flag; within the context only.

    Attributes:
        received: whether one has come to this process.
    """

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python knows signals nowhere else
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True


def ignore_stop_signals(worker: int) -> None:
    """For loader processes: a signal to the whole group must not kill what the last step still needs."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def lost_process_named(seconds: float) -> Iterator[None]:
    """Turns the failure of a collective into one line: its cause is elsewhere.

    Raises:
        UserError: another process of the run is gone, or was waited for longer than `seconds`.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise UserError(
            f"another process of this run died, or did not answer within {seconds:g} s ({first_line(error)}); "
            "look at its output, then continue with --resume"
        ) from error


@contextmanager
def started(loader: DataLoader[Batch]) -> Iterator[Iterator[Batch]]:
    """The batches of a loader whose processes end with the context.

    An error of theirs keeps them alive through its traceback, and at exit Python waits for them forever: they ignore the signal
    that would end them.

    Raises:
        UserError: as in a loader process, without the traceback in which that hands it on.
    """
    batches: Any = iter(loader)
    try:
        yield batches
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2]) from error
    finally:
        if loader.num_workers:
            batches._shutdown_workers()


def set_collective_timeout(seconds: float) -> None:
    """How long a process waits for the others from now on."""
    if dist.is_initialized():
        set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # torch < 2.14
        set_timeout(timedelta(seconds=seconds), dist.group.WORLD)


@contextmanager
def waiting(seconds: float, *, usual: float) -> Iterator[None]:
    """A passage in which a process waits up to `seconds` for the others, and not the `usual` time of a step.

    Raises:
        UserError: as `lost_process_named` does.
    """
    set_collective_timeout(seconds)
    with lost_process_named(seconds):
        yield
    set_collective_timeout(usual)


def done_by_the_first(accelerator: Accelerator, work: Callable[[], T]) -> T | None:
    """What the first process returns; the others wait for it, up to a week, and get None. All processes call this.

    Raises:
        UserError: on the others: the first process failed, or is gone.
    """
    if accelerator.num_processes == 1:
        return work()
    failure: list[str | None] = ["it was interrupted"]
    set_collective_timeout(_WEEK)
    if not accelerator.is_main_process:
        with lost_process_named(_WEEK):
            dist.broadcast_object_list(failure, src=0)
        if failure[0] is not None:
            raise UserError(f"the first process failed after training: {failure[0]}")
        return None
    try:
        result = work()
        failure = [None]
    except Exception as error:
        failure = [first_line(error)]
        raise
    finally:
        with suppress(RuntimeError):  # another process is gone: that must not cost the result
            dist.broadcast_object_list(failure, src=0)
    return result


class BuffersKept:
    """A copy of a module's buffers, such as running statistics, to undo what a forward pass did to them."""

    def __init__(self, module: nn.Module):
        self._pairs: list[tuple[Tensor, Tensor]] = [(buffer, buffer.clone()) for buffer in module.buffers()]

    @torch.no_grad()
    def restore(self) -> None:
        """Gives the buffers the values that they had."""
        for buffer, copy in self._pairs:
            buffer.copy_(copy)


def write_crash_bundle(folder: Path, step: int, rank: int, batch: Batch, metrics: dict[str, float], config: Config) -> Path:
    """Writes what is needed to look at a step that went wrong: one JSON file for each process."""
    path = folder / f"step-{step:07d}-rank-{rank}.json"
    bundle = {
        "step": step,
        "rank": rank,
        "metrics": {name: str(value) for name, value in metrics.items()},
        "samples": batch.index.tolist(),
        "ids": batch.ids.tolist(),
        "bad_samples": [asdict(bad) for bad in batch.bad_samples],
        "config": to_dict(config),
    }
    write_file(path, json.dumps(bundle, indent=1))
    return path
