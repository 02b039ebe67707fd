"""Settings of the whole process during training, restored afterwards, because `mmcl.train` is also called from Python."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import threadpoolctl
import torch


@contextmanager
def processor_settings(threads: int | None) -> Iterator[None]:
    """Context with a number of CPU threads in which denormal numbers are flushed to zero. Both are restored afterwards, and so
    are the random generators.

    Very small gradients become denormal numbers, which slow a CPU down tenfold and have no effect on training.

    Args:
        threads: number of threads. None takes OMP_NUM_THREADS, as torch does; if it is not set, or under a launcher, which sets
            it to 1 by default, the process's share of the cores.
    """
    count, before, were_flushed = threads or _default_threads(), torch.get_num_threads(), _are_denormals_flushed()
    # A process that has not used the GPU yet may be about to take another than the first.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), threadpoolctl.threadpool_limits(count):
        torch.set_num_threads(count)
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            torch.set_flush_denormal(were_flushed)
            torch.set_num_threads(before)


def _default_threads() -> int:
    is_launched = any(name in os.environ for name in ("LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"))
    chosen = "" if is_launched else os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # one for each level
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return (int(chosen) if chosen.isdecimal() else 0) or max(1, share)


def _are_denormals_flushed() -> bool:
    return (torch.full((1,), 2e-39) / 2).item() == 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Context in which glibc keeps freed memory; then it has its defaults again and releases it (mallopt(3), malloc_trim(3)).

    Every step frees and allocates the same large blocks. By default glibc returns them to the system and requests them again,
    zeroed, which takes a tenth of the time of a small network.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc
        yield
        return
    max_mapped, trim_threshold = -4, -1
    mallopt(max_mapped, 0)
    mallopt(trim_threshold, 2**30)
    try:
        yield
    finally:
        mallopt(max_mapped, 2**16)
        mallopt(trim_threshold, 2**17)
        trim(0)
