"""Reading in parallel threads, which works because Pillow releases the GIL while decoding. It does not import torch."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_QUEUED = 4096
"""Maximum number of calls queued for the threads."""
_RUN = 16
"""Consecutive calls of a thread at most: scheduling small ones individually would cost more than they do."""
_TRIED = 2
"""Calls that are timed before threads are chosen. The faster one counts, as the first call may import a library."""
_TINY_S = 1e-4
"""Duration of a call below which one thread is faster than several: they would only pass the GIL to each other."""
_SMALL_S = 1e-3
"""Duration of a call below which a large part of it needs the GIL."""


def in_threads(function: Callable[[int], T], indices: Sequence[int]) -> Iterator[T]:
    """Maps a function in threads, or without them as long as its calls are tiny; yields the results in order."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(indices), _QUEUED):  # Bounded, since a million queued calls would be a million objects.
            queued = indices[start : start + _QUEUED]
            done = yield from _while_tiny(function, queued)
            run = max(1, min(_RUN, len(queued) // (4 * workers)))
            runs = [queued[at : at + run] for at in range(done, len(queued), run)]
            for results in pool.map(lambda part: [function(index) for index in part], runs):
                yield from results


def in_batches(read: Callable[[int], T], total: int, batch_size: int) -> Generator[list[T]]:
    """Yields `read(0)` to `read(total - 1)` in batches; threads read the next batch while one is in use.

    Tiny items are read without threads, when their batch is asked for. Otherwise every thread reads several consecutive items:
    scheduling small ones individually would cost more than reading them. Small items leave a core to whoever uses the batch,
    whom more threads would keep waiting for the GIL. Closing it waits for the item that each thread is at, and no longer.
    """
    workers = min(8, os.cpu_count() or 1)
    seconds, closed = 0.0, False

    def read_unless_closed(number: int) -> T:
        if closed:
            raise CancelledError
        return read(number)

    def timed(part: Sequence[int]) -> list[T]:
        nonlocal seconds
        results, seconds = _timed(read_unless_closed, part)
        return results

    def ahead(start: int, stop: int) -> list[Future[list[T]]]:
        items = range(start, min(stop, total) if seconds >= _TINY_S else start)
        runs = max(1, workers - 1) if seconds < _SMALL_S else 2 * workers
        run = max(1, -(-len(items) // runs))
        return [pool.submit(timed, items[at : at + run]) for at in range(0, len(items), run)]

    runs: list[Future[list[T]]] = []
    with ThreadPoolExecutor(workers) as pool:
        try:
            for start in range(0, total, batch_size):
                stop = min(start + batch_size, total)
                batch = [item for run in runs for item in run.result()]
                while start + len(batch) < stop and seconds < _TINY_S:
                    at = start + len(batch)
                    batch += timed(range(at, min(at + (_RUN if at else _TRIED), stop)))
                batch += [item for run in ahead(start + len(batch), stop) for item in run.result()]
                runs = ahead(stop, stop + batch_size)
                yield batch
        finally:
            closed = True


def _while_tiny(function: Callable[[int], T], indices: Sequence[int]) -> Generator[T, None, int]:
    """Yields the results of the first calls, as long as they are tiny; returns their number."""
    done, seconds = 0, 0.0
    while done < len(indices) and seconds < _TINY_S:
        results, seconds = _timed(function, indices[done : done + (_RUN if done else _TRIED)])
        done += len(results)
        yield from results
    return done


def _timed(function: Callable[[int], T], indices: Sequence[int]) -> tuple[list[T], float]:
    """Returns the results, and the typical duration of a call in seconds; 0 without calls."""
    results, moments = list[T](), [time.perf_counter()]
    for index in indices:
        results.append(function(index))
        moments.append(time.perf_counter())
    durations = [after - before for before, after in itertools.pairwise(moments)]
    return results, statistics.median_low(durations) if durations else 0.0
