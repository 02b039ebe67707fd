"""Reading in parallel threads, which works because Pillow releases the GIL while decoding. It does not import torch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_QUEUED = 4096
"""Maximum number of calls queued for the threads, unless told otherwise: a million queued calls would be a million objects."""
_RUN = 16
"""Consecutive calls of a thread at most: scheduling small ones individually would cost more than they do."""


def in_threads(function: Callable[[int], T], indices: Sequence[int], *, ahead: int = _QUEUED) -> Generator[T, None, None]:
    """Maps a function in threads; yields the results in order.

    Args:
        function: what is called.
        indices: its arguments.
        ahead: most results that are computed, or wait, while the caller is busy with earlier ones.
    """
    workers = os.cpu_count() or 1
    run = max(1, min(_RUN, min(len(indices), ahead) // (4 * workers)))
    pool, queued = ThreadPoolExecutor(workers), deque[Future[list[T]]]()
    try:
        for at in range(0, len(indices), run):
            queued.append(pool.submit(lambda part: [function(index) for index in part], indices[at : at + run]))
            if len(queued) * run >= ahead:
                yield from queued.popleft().result()
        while queued:
            yield from queued.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


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
