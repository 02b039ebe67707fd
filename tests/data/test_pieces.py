"""Batches that are read in pieces: the same rows, in few bytes."""

from __future__ import annotations

import multiprocessing
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from mmcl.data.batches import loader, pieces
from mmcl.data.batches.loader import StepBatches
from mmcl.data.batches.pieces import PIECE_ROWS, Piece
from mmcl.data.stored_rows import StoredRows
from mmcl.engine.loading import PREFETCH, loaded, loader_processes
from mmcl.engine.transfer import views_on
from mmcl.types import Batch, Tokens, Unaugmented
from tests.data.test_loader import AUGMENT, PAIR, TWO, Toy, batches, rows
from tests.data.test_loader import texts as texts_of
from tests.narrow import of_type

GIB = 2**30


@pytest.fixture
def small_pieces() -> Iterator[None]:
    """Pieces of five rows, of batches of twelve."""
    with patch.object(loader, "PIECE_ROWS", 5), patch.object(pieces, "PIECE_ROWS", 5):
        yield


def everything(batch: Batch) -> tuple[Any, ...]:
    return rows(replace(batch, views=views_on("cpu", batch.views))), batch.bad_samples, batch.bad_rows


SOURCE = Toy(bad_images=(3, 17, 30), captions={5: (), 9: ("a much longer caption of nine",)}, labels=[i % 3 for i in range(40)])


@pytest.mark.parametrize("options", [{}, {"by_length": True}, {"views": TWO}, {"rank": 1, "world": 2}], ids=str)
@pytest.mark.parametrize("augmented", [True, False])
def test_a_batch_of_pieces_is_the_batch(options: dict[str, Any], augmented: bool) -> None:
    """Whatever the size of the pieces: 24 rows at once, in pieces of 5, of 7, and of 1."""
    options = {"views": PAIR, "augment": AUGMENT if augmented else None, "batch_size": 24, **options}
    whole = [everything(batches(SOURCE, **options)[step]) for step in range(4)]
    for size in (5, 7, 1):
        with patch.object(loader, "PIECE_ROWS", size):
            made = batches(SOURCE, **options)
            assert made.pieces == -(-24 // options.get("world", 1) // size)
            assert [everything(made[step]) for step in range(4)] == whole


@pytest.mark.parametrize("options", [{}, {"by_length": True}, {"rank": 1, "world": 2}], ids=str)
def test_stored_rows_stay_with_their_samples(options: dict[str, Any], tmp_path: Path) -> None:
    """Through pieces, another order of the rows, and replacements of samples that cannot be used."""
    listed = [list(dict.fromkeys(sample.captions)) for sample in map(SOURCE.__getitem__, range(len(SOURCE)))]
    counts = np.array([len(captions) for captions in listed])
    np.save(tmp_path / "images.npy", np.arange(len(SOURCE), dtype=np.float32)[:, None])
    np.save(tmp_path / "texts.npy", np.arange(counts.sum(), dtype=np.float16)[:, None])
    np.save(tmp_path / "starts.npy", np.cumsum(counts) - counts)
    texts = StoredRows(tmp_path / "texts.npy", tmp_path / "starts.npy")
    stored, everyone = {"image": StoredRows(tmp_path / "images.npy"), "text": texts}, [one for some in listed for one in some]
    for size in (256, 5, 1):
        with patch.object(loader, "PIECE_ROWS", size):
            made = batches(SOURCE, views=PAIR, batch_size=24, stored=stored, **options)
            for step in range(4):
                batch = made[step]
                assert batch.stored["image"][:, 0].tolist() == batch.index.tolist()
                shown = [everyone[int(number)] for number in batch.stored["text"][:, 0]]
                assert shown == texts_of(batch.views["text"])


def test_texts_keep_their_padding_and_their_number_of_truncated_ones() -> None:
    parts = [
        Tokens(torch.tensor([[5, 6]]), torch.ones(1, 2).bool(), 1, 9),
        Tokens(torch.tensor([[7]]), torch.ones(1, 1).bool(), 2, 9),
    ]
    joined = pieces.joined_tokens(parts)
    assert joined.ids.tolist() == [[5, 6], [7, 9]]
    assert joined.mask.tolist() == [[True, True], [True, False]]
    assert joined.truncated == 3
    assert joined[:1].lengthened(3).ids.tolist() == [[5, 6, 9]]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_loader_processes_share_a_batch(workers: int) -> None:
    made = batches(SOURCE, augment=AUGMENT, by_length=True)
    expected = [everything(made[step]) for step in range(2, 6)]
    with loaded(made, range(2, 6), workers=workers, pin=False) as found:
        assert [everything(batch) for batch in found] == expected


@pytest.mark.usefixtures("small_pieces")
def test_nobody_waits_for_batches_that_are_not_used() -> None:
    with loaded(batches(SOURCE), range(100), workers=1, pin=False) as found:
        next(found)
    assert not multiprocessing.active_children()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("next batch")]


class Counted:
    """Batches whose pieces are counted from when a loader process makes them until the training process frees them."""

    def __init__(self, batches: StepBatches):
        self.batches, self.pieces = batches, batches.pieces
        self.now, self.most = multiprocessing.Value("q", 0), multiprocessing.Value("q", 0)

    def __getitem__(self, step: int) -> Batch:
        return self.batches[step]

    def add(self, number: int) -> None:
        with self.now.get_lock():
            self.now.value += number
            self.most.value = max(self.most.value, self.now.value)

    def piece(self, step: int, number: int) -> Piece:
        piece = self.batches.piece(step, number)
        self.add(sum(view.nbytes for view in piece.batch.views.values() if isinstance(view, torch.Tensor)))
        return piece

    def joined(self, step: int, pieces: Iterable[Piece], *, pin: bool = False) -> Batch:
        batch = self.batches.joined(step, map(self._received, pieces), pin=pin)
        for view in batch.views.values():
            if isinstance(view, torch.Tensor):
                self.add(view.nbytes)
                weakref.finalize(view, self.add, -view.nbytes)
        return batch

    def _received(self, piece: Piece) -> Piece:
        for view in piece.batch.views.values():
            if isinstance(view, torch.Tensor):
                weakref.finalize(view, self.add, -view.nbytes)
        return piece


def host_bytes(rows: int, row_bytes: int, workers: int, piece: int = PIECE_ROWS) -> int:
    """Inputs that a training process and its loader processes hold: the batch in use, the next one, the pieces that have been
    read ahead, and the one that is being copied."""
    return (2 * rows + (PREFETCH * workers + 1) * piece) * row_bytes


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("workers", [1, 2])
def test_bytes_in_flight(workers: int) -> None:
    """The formula is an upper bound of what is held, and not far above it."""
    views = {name: kind for name, kind in TWO.items() if kind == "image"}
    source = Toy(size=200)
    counted = Counted(batches(source, batch_size=40, views=views, cache=False))
    with loaded(counted, range(8), workers=workers, pin=False) as found:
        for batch in found:
            row = sum(view[0].nbytes for view in batch.views.values() if isinstance(view, torch.Tensor))
            del batch
    assert 40 * row < counted.most.value <= host_bytes(40, row, workers, piece=5)


def test_a_large_batch_fits_into_the_memory_of_a_host() -> None:
    """32,768 pairs of 224 x 224 pixels with 16 loader processes, as the formula counts that the test above measures."""
    assert host_bytes(32_768, 3 * 224 * 224, 16) < 12 * GIB


def test_loader_processes_by_default() -> None:
    with patch("os.cpu_count", return_value=16):
        assert [loader_processes(None, on_cuda=True, processes=count) for count in (1, 8, 32)] == [4, 2, 0]
        assert loader_processes(None, on_cuda=False, processes=1) == 0
        assert loader_processes(7, on_cuda=False, processes=1) == 7


class TestAugmentationOnTheDevice:
    def test_same_pictures(self) -> None:
        """On the CPU, whose arithmetic the host's is: every bit, also for a part of the rows, as a micro-batch has."""
        on_host, on_device = (batches(SOURCE, augment=AUGMENT, augment_on=place) for place in ("host", "device"))
        batch, travelling = on_host[1], on_device[1]
        image: Any = travelling.views["image"]
        assert isinstance(image, Unaugmented)
        assert image.pixels.dtype == torch.uint8
        assert everything(travelling) == everything(batch)
        part = views_on("cpu", {name: view[3:7] for name, view in travelling.views.items()})["image"]
        assert torch.equal(of_type(torch.Tensor, part), of_type(torch.Tensor, batch.views["image"])[3:7])

    def test_views_without_augmentation_are_bytes(self) -> None:
        assert isinstance(batches(SOURCE, augment_on="device")[0].views["image"], torch.Tensor)
