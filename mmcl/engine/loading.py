"""Loading of batches: loader processes read pieces, and one batch is made while another is used."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice, takewhile
from typing import Protocol, TypeVar

from torch.utils.data import DataLoader, Dataset

from mmcl.data.batches.pieces import Piece
from mmcl.engine.guards import ignore_stop_signals, loader_batches
from mmcl.types import Batch

T = TypeVar("T")

PREFETCH = 2
"""Pieces that each loader process reads ahead."""
_WORKERS_ON_CUDA = 4


class BatchPieces(Protocol):
    """Batches that are read in pieces, as `StepBatches` are.

    Attributes:
        pieces: number of pieces of every step.
    """

    @property
    def pieces(self) -> int:
        """Number of pieces of every step."""
        ...

    def __getitem__(self, step: int, /) -> Batch:
        """This process's share of a step."""
        ...

    def piece(self, step: int, number: int) -> Piece:
        """Piece `number` of it."""
        ...

    def joined(self, step: int, pieces: Iterable[Piece], *, pin: bool = False) -> Batch:
        """The batch of all pieces of a step."""
        ...


class _Items(Dataset[Piece]):
    """The pieces of all steps, one after the other."""

    def __init__(self, batches: BatchPieces):
        self.batches = batches

    def __getitem__(self, item: int) -> Piece:
        return self.batches.piece(*divmod(item, self.batches.pieces))


def loader_processes(asked: int | None, *, on_cuda: bool, processes: int) -> int:
    """Return the number of loader processes of each training process.

    Args:
        asked: `data.workers`; None is 0 on the CPU, where they would compete with the training, and up to 4 beside a GPU.
        on_cuda: whether the training is on a GPU.
        processes: training processes on this machine, which share its cores.
    """
    if asked is not None:
        return asked
    return min(_WORKERS_ON_CUDA, (os.cpu_count() or 1) // processes) if on_cuda else 0


@contextmanager
def loaded(batches: BatchPieces, steps: range, *, workers: int, pin: bool) -> Iterator[Iterator[Batch]]:
    """Iterate over the batches of some steps; loader processes end with the context.

    Item numbers are steps and every batch is a pure function of its step, so a resumed run starts the range later.

    Args:
        batches: this process's share of every step.
        steps: the steps.
        workers: loader processes; with some, the next batch is made while one is used.
        pin: whether the batches are in page-locked memory, from which copies to a GPU are asynchronous.

    Raises:
        UserError: one was raised in a loader process.
    """
    count = batches.pieces
    items = range(steps.start * count, steps.stop * count)
    loader = DataLoader(
        _Items(batches),
        sampler=items,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=ignore_stop_signals,
    )
    is_over = threading.Event()
    with loader_batches(loader) as pieces:
        wanted = takewhile(lambda _: not is_over.is_set(), pieces)
        joined = (batches.joined(step, islice(wanted, count), pin=pin) for step in steps)
        with closing(_one_ahead(joined, is_over) if workers else joined) as made:
            yield made


def _one_ahead(items: Iterator[T], is_over: threading.Event) -> Generator[T, None, None]:
    """Yield items; the next is made in a thread while the caller uses one. `is_over` tells the thread that no more are used."""
    with ThreadPoolExecutor(1, thread_name_prefix="next batch") as thread:
        try:
            coming = thread.submit(next, items, None)
            while (item := coming.result()) is not None:
                coming = thread.submit(next, items, None)
                yield item
        finally:
            is_over.set()
