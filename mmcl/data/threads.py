"""Reading in parallel threads, which works because Pillow releases the GIL while decoding. It does not import torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_QUEUED = 4096
"""Maximum number of calls queued for the threads."""
_RUN = 16
"""Consecutive calls of a thread at most: scheduling small ones individually would cost more than they do."""


def in_threads(function: Callable[[int], T], indices: Sequence[int]) -> Iterator[T]:
    """Maps a function in threads; yields the results in order."""
    workers = os.cpu_count() or 1
    run = max(1, min(_RUN, len(indices) // (4 * workers)))
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(indices), _QUEUED):  # Bounded, since a million queued calls would be a million objects.
            queued = indices[start : start + _QUEUED]
            runs = [queued[at : at + run] for at in range(0, len(queued), run)]
            for results in pool.map(lambda part: [function(index) for index in part], runs):
                yield from results


def in_batches(read: Callable[[int], T], total: int, batch_size: int) -> Iterator[list[T]]:
    """Yields `read(0)` to `read(total - 1)` in batches; threads read the next batch while one is in use.

    Every thread reads several consecutive items: scheduling small ones individually would cost more than reading them.
    """
    workers = min(8, os.cpu_count() or 1)

    def ahead(start: int) -> list[Future[list[T]]]:
        items = range(start, min(start + batch_size, total))
        run = max(1, len(items) // (2 * workers))
        return [pool.submit(lambda part: [read(i) for i in part], items[at : at + run]) for at in range(0, len(items), run)]

    with ThreadPoolExecutor(workers) as pool:
        runs = ahead(0)
        for start in range(0, total, batch_size):
            batch = [item for run in runs for item in run.result()]
            runs = ahead(start + batch_size)
            yield batch
