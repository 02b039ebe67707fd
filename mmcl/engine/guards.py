"""Conditions that end a run early: a stop signal, a lost process, an adapter that cannot learn."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from mmcl.encoders.adapters import adapters
from mmcl.errors import UserError, first_line

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]

_WEEK = 7 * 24 * 3600.0


class StopSignals:
    """Context in which SIGTERM and SIGUSR1, which schedulers send before they reclaim a machine, only set a flag.

    Attributes:
        received: whether this process has received one of them.
    """

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python handles signals only there
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True


def ignore_stop_signals(worker: int) -> None:
    """Ignore stop signals in a loader process: one sent to the whole group must not kill loaders that the last step needs."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def lost_process_reported(seconds: float) -> Iterator[None]:
    """Report the failure of a collective in one line, because its cause is in another process.

    Raises:
        UserError: another process of the run has ended, or did not respond within `seconds`.
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
def loader_batches(loader: DataLoader[T]) -> Iterator[Iterator[T]]:
    """Iterate over the items of a loader whose processes end with the context.

    The traceback of a loader error keeps the processes alive, and at exit Python would wait for them forever, because they
    ignore the signal that would end them.

    Raises:
        UserError: one was raised in a loader process; it is raised without the loader's traceback.
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
    """Set how long a process waits for the others from now on."""
    if dist.is_initialized():
        set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # torch < 2.14
        set_timeout(timedelta(seconds=seconds), dist.group.WORLD)


@contextmanager
def longer_timeout(seconds: float, *, usual: float) -> Iterator[None]:
    """Context in which a process waits up to `seconds` for the others instead of the `usual` time of a step.

    Raises:
        UserError: as `lost_process_reported` does.
    """
    set_collective_timeout(seconds)
    with lost_process_reported(seconds):
        yield
    set_collective_timeout(usual)


@contextmanager
def waiting_long() -> Iterator[None]:
    """Context after training, in which processes wait up to a week for each other.

    Raises:
        UserError: as `lost_process_reported` does.
    """
    set_collective_timeout(_WEEK)
    with lost_process_reported(_WEEK):
        yield


def run_on_first_process(accelerator: Accelerator, work: Callable[[], T]) -> T | None:
    """Return the result of `work` in the first process; the others wait up to a week and get None. All processes call this.

    Raises:
        UserError: on the other processes: the first process failed or has ended.
    """
    if accelerator.num_processes == 1:
        return work()
    failure: list[str | None] = ["it was interrupted"]
    set_collective_timeout(_WEEK)
    if not accelerator.is_main_process:
        with lost_process_reported(_WEEK):
            dist.broadcast_object_list(failure, src=0)
        if failure[0] is not None:
            raise UserError(f"the first process failed: {failure[0]}")
        return None
    try:
        result = work()
        failure = [None]
    except Exception as error:
        failure = [first_line(error)]
        raise
    finally:
        with suppress(RuntimeError):  # another process has ended: the result must not be lost
            dist.broadcast_object_list(failure, src=0)
    return result


def check_adapters(method: nn.Module, accelerator: Accelerator) -> None:
    """Check that the loss reaches every trained adapter. All processes call this after the first backward pass.

    The gradient of LoRA's A is zero as long as B is, so an adapter needs one tensor with a gradient other than zero.

    Raises:
        UserError: a tensor of an adapter has no gradient, or all of an adapter have a gradient of zero, unless that of the
            whole loss is zero; the message names it.
    """
    tensors = [
        (weight, f"{name} of the adapter of {weight}", parameter.grad)
        for weight, adapter in adapters(method)
        for name, parameter in adapter.named_parameters()
        if parameter.requires_grad
    ]
    if not tensors:
        return
    found = torch.tensor([[grad is not None, grad is not None and _any(grad)] for *_, grad in tensors], dtype=torch.float32)
    summed = accelerator.reduce(found.to(accelerator.device), "sum").tolist()
    moved = {weight for (weight, *_), (_, is_moved) in zip(tensors, summed, strict=True) if is_moved}
    fix = "leave this weight out by the setting adapt.where"
    for (weight, tensor, _), (reached, _) in zip(tensors, summed, strict=True):
        if reached < accelerator.num_processes:
            raise UserError(f"{tensor} has no gradient, because the loss does not depend on it: {fix}")
        if moved and weight not in moved:
            raise UserError(f"{tensor} has a gradient of zero, as the whole adapter has, which learns nothing: {fix}")


def _any(gradient: Tensor) -> bool:
    return bool((gradient.to_local() if isinstance(gradient, DTensor) else gradient).any())
