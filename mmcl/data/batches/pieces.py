"""Pieces of a batch: what one loader process reads at a time, so that few rows of a large batch are in flight.

A batch of 32,768 images of 224 x 224 pixels has 4.6 GiB. If each of 16 loader processes read whole batches, two at a time, they
would hold 147 GiB; with pieces of 256 rows they hold 1.1 GiB, and all of them work on the same batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl.types import Batch, Features, Tokens, Unaugmented

PIECE_ROWS = 256
"""Rows of a piece; a constant, because the rows of a batch must not depend on the machine."""
_SLABS = 16


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of a process's share of a step.

    Attributes:
        batch: the rows.
        lengths: characters of the texts of each row, by which the rows of the step are sorted; None leaves their order.
        same_ids: ids of the step that are to be replaced by others, in the first piece of the step.
    """

    batch: Batch
    lengths: Sequence[int] | None
    same_ids: Mapping[int, int]


def join(pieces: Iterable[Piece], rows: int, *, pin: bool = False) -> Batch:
    """Joins the pieces of a step to its batch.

    Args:
        pieces: in their order; the pixels of one are copied before the next is taken.
        rows: rows of all pieces.
        pin: whether the batch is in page-locked memory.
    """
    parts: list[Piece] = []
    pixels: dict[str, Tensor] = {}
    start = 0
    for piece in pieces:
        if len(piece.batch.ids) < rows:
            piece = _emptied(piece, pixels, start, rows, pin)
        parts.append(piece)
        start += len(piece.batch.ids)
    batch = parts[0].batch if len(parts) == 1 else _concatenated([part.batch for part in parts], pixels)
    if same := parts[0].same_ids:
        batch = dataclasses.replace(batch, ids=torch.tensor([same.get(number, number) for number in batch.ids.tolist()]))
    if parts[0].lengths is not None:
        order = np.argsort(np.concatenate([part.lengths for part in parts if part.lengths is not None]), kind="stable")
        batch = _sorted(batch, torch.from_numpy(order))
    return batch.pin_memory() if pin else batch


def _emptied(piece: Piece, pixels: dict[str, Tensor], start: int, rows: int, pin: bool) -> Piece:
    """Copies the pixels of a piece to their place among those of the whole batch. Returns the piece without them."""
    views = dict(piece.batch.views)
    for name, view in views.items():
        own = view.pixels if isinstance(view, Unaugmented) else view
        if isinstance(own, Tensor):
            if name not in pixels:
                pixels[name] = torch.empty((rows, *own.shape[1:]), dtype=own.dtype, pin_memory=pin)
            pixels[name][start : start + len(own)] = own
            nothing = torch.empty(0)
            views[name] = dataclasses.replace(view, pixels=nothing) if isinstance(view, Unaugmented) else nothing
    return dataclasses.replace(piece, batch=dataclasses.replace(piece.batch, views=views))


def _concatenated(parts: Sequence[Batch], pixels: Mapping[str, Tensor]) -> Batch:
    def all_of(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else torch.cat(found)

    views = {name: _joined_view([part.views[name] for part in parts], pixels.get(name)) for name in parts[0].views}
    return Batch(
        views,
        all_of("ids"),
        all_of("index"),
        tuple(bad for part in parts for bad in part.bad_samples),
        all_of("labels"),
        bad_rows=tuple(row for part in parts for row in part.bad_rows),
        text_ids=all_of("text_ids"),
        stored={name: torch.cat([part.stored[name] for part in parts]) for name in parts[0].stored},
    )


def _joined_view(parts: Sequence[Any], pixels: Tensor | None) -> Any:
    first = parts[0]
    if isinstance(first, Unaugmented):
        assert pixels is not None
        epoch, index = (np.concatenate([getattr(part, name) for part in parts]) for name in ("epoch", "index"))
        return dataclasses.replace(first, pixels=pixels, epoch=epoch, index=index)
    if isinstance(first, Features):
        return Features(torch.cat([part.rows for part in parts]))
    if isinstance(first, Tokens):
        return joined_tokens(parts)
    return pixels


def joined_tokens(parts: Sequence[Tokens]) -> Tokens:
    """Joins batches of texts of one tokenizer, padded to the longest of all."""
    longest = max(part.ids.shape[1] for part in parts)
    padded = [part.lengthened(longest) for part in parts]
    ids, mask = torch.cat([part.ids for part in padded]), torch.cat([part.mask for part in padded])
    return Tokens(ids, mask, sum(part.truncated for part in parts), parts[0].padding)


def _sorted(batch: Batch, order_b: Tensor) -> Batch:
    """Returns the rows of a batch in another order; the pixels are moved where they are."""
    views: dict[str, Any] = {}
    for name, view in batch.views.items():
        if isinstance(view, Tokens):  # not by `view[order_b]`, which forgets how many were truncated
            views[name] = dataclasses.replace(view, ids=view.ids[order_b], mask=view.mask[order_b])
        elif isinstance(view, Unaugmented):
            _reorder(view.pixels, order_b)
            rows = order_b.numpy()
            views[name] = dataclasses.replace(view, epoch=view.epoch[rows], index=view.index[rows])
        elif isinstance(view, Features):
            views[name] = view[order_b]
        else:
            assert isinstance(view, Tensor), "patches are chosen for whole batches"
            _reorder(view, order_b)
            views[name] = view
    labels, text_ids = (None if part is None else part[order_b] for part in (batch.labels, batch.text_ids))
    return dataclasses.replace(
        batch,
        views=views,
        ids=batch.ids[order_b],
        index=batch.index[order_b],
        labels=labels,
        text_ids=text_ids,
        stored={name: rows[order_b] for name, rows in batch.stored.items()},
    )


def _reorder(rows: Tensor, order_b: Tensor) -> None:
    """Reorders rows in place, some of their columns at a time, because a copy would double the memory of the batch."""
    columns = rows.view(len(rows), -1)
    for slab in columns.split(max(1, -(-columns.shape[1] // _SLABS)), dim=1):
        slab.copy_(slab[order_b])
