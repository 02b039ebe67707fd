"""Opening an index of either kind, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmcl.errors import UserError
from mmcl.search import lance_table, saved
from mmcl.search.building import model_of
from mmcl.search.lance_store import LanceStore
from mmcl.search.lance_table import LanceTable
from mmcl.search.memory_store import MemoryStore
from mmcl.types import EmbeddingModel

Mode = Literal["r", "w"]


def open_store(
    place: str, model: EmbeddingModel | str | None, mode: Mode
) -> tuple[MemoryStore | LanceStore, EmbeddingModel | str | None]:
    """Opens the rows of an index. Returns them, and the model at their width; see `Index.open`."""
    if mode not in ("r", "w"):
        raise UserError(f"mode {mode!r} is unknown; give r or w")
    if saved.is_saved(place):
        return _opened_files(place, model, mode)
    if not lance_table.exists(place):
        raise lance_table.no_index(place)
    table = LanceTable.open(place)
    given = _fitting(place, table.about.model, table.about.dim, model)
    if mode == "w":
        table.hold()
    return LanceStore(table), given


def _opened_files(
    place: str, model: EmbeddingModel | str | None, mode: Mode
) -> tuple[MemoryStore, EmbeddingModel | str | None]:
    if mode == "w":
        raise UserError(f"{place}: an index of an earlier format can only be read; `mmcl index import` makes one that keeps up")
    store = saved.load(Path(place), getattr(model, "preprocess", None))
    return store, _fitting(place, store.model, store.dim, model)


def _fitting(place: str, expected: str, dim: int, model: EmbeddingModel | str | None) -> EmbeddingModel | str | None:
    """Returns a model at the width of an index; one that is only named is compared when it is loaded."""
    return model if model is None or isinstance(model, str) else model_of(place, expected, dim, model)
