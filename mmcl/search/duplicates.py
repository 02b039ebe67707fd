"""Groups of equal and nearly equal images, and images that two indexes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmcl.core.near_pairs import equal_rows, near_pairs
from mmcl.core.nearest import nearest
from mmcl.errors import UserError
from mmcl.search.items import Item
from mmcl.search.ranking import allowed
from mmcl.search.store import Store

Level = Literal["exact", "near"]
Keep = Literal["largest", "oldest", "first"]

THRESHOLD = 0.97


@dataclass(frozen=True, slots=True)
class Group:
    """Images that are equal or nearly so.

    Attributes:
        ids: of its images; that of the one to keep first, the others in the order of the collection.
        scores: cosine of each with the first.
        lowest: least cosine of any two; below the threshold where a chain of similar images joins two that are not.
    """

    ids: tuple[str, ...]
    scores: tuple[float, ...]
    lowest: float

    @property
    def keep(self) -> str:
        """Id of the image to keep."""
        return self.ids[0]


def find_duplicates(
    store: Store,
    *,
    threshold: float = THRESHOLD,
    where: str | None = None,
    level: Level = "near",
    keep: Keep = "largest",
    complete: bool = False,
    block: int = 2048,
) -> list[Group]:
    """Finds groups of duplicates; see `Index.duplicates`. `block` rows are compared at a time, on which no result depends."""
    if not 0 < threshold <= 1:
        raise UserError(f"threshold is {threshold}; give a cosine above 0 and up to 1, such as 0.97")
    among = allowed(store, where)
    rows = torch.arange(len(store)) if among is None else among.nonzero().flatten()
    groups = _equal_files(store, rows) if level == "exact" else near_groups(store.images, threshold, rows, block=block)
    if complete and level == "near":
        groups = [part for group in groups for part in _completely_near(store.images, group, threshold)]
    return [_group(store, group, keep) for group in groups]


def near_groups(vector_ND: Tensor, threshold: float, rows_A: Tensor, *, block: int = 2048) -> list[list[int]]:
    """Returns the connected components, of two rows and more, of pairs whose cosine is at least the threshold.

    Args:
        vector_ND: float32, unit length.
        threshold: least cosine.
        rows_A: int64, ascending, the rows to compare.
        block: rows compared at a time.
    """
    parent = np.arange(len(vector_ND))
    first = rows_A[equal_rows(vector_ND[rows_A])] if len(rows_A) < len(vector_ND) else equal_rows(vector_ND)
    _join(parent, rows_A.numpy(), first.numpy())
    for one, other, _ in near_pairs(vector_ND, threshold, among_A=first.unique(), block=block):
        _join(parent, one.numpy(), other.numpy())
    roots = _roots(parent, rows_A.numpy())
    order = np.argsort(roots, kind="stable")
    starts = np.flatnonzero(np.diff(roots[order], prepend=-1))
    return [part.tolist() for part in np.split(rows_A.numpy()[order], starts[1:]) if len(part) > 1]


def overlap(store: Store, other: Store, threshold: float) -> list[tuple[str, str, float]]:
    """Returns images that another index has too: id, id of the nearest image there, cosine; in the order of this index.

    Raises:
        UserError: the indexes were made with different models, or the threshold is not a cosine.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"threshold is {threshold}; give a cosine above 0 and up to 1, such as 0.97")
    if store.model != other.model:
        raise UserError(f"the indexes are of two models ({store.model[:12]}, {other.model[:12]}); build one of them again")
    if not len(store) or not len(other):
        return []
    score, row = nearest(store.images, other.images, 1)
    near = (score[:, 0] >= threshold).nonzero().flatten().tolist()
    ids, others = store.column("id"), other.column("id")
    return [(ids[place].as_py(), others[int(row[place, 0])].as_py(), float(score[place, 0])) for place in near]


def _join(parent: np.ndarray, one: np.ndarray, other: np.ndarray) -> None:
    """Joins pairs of rows; the root of a component is its first row, whatever the order of the pairs."""
    while len(one):
        one, other = _roots(parent, one), _roots(parent, other)
        apart = one != other
        one, other = one[apart], other[apart]
        np.minimum.at(parent, np.maximum(one, other), np.minimum(one, other))


def _roots(parent: np.ndarray, rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = parent[rows]
    while (above := parent[found]).tobytes() != found.tobytes():
        found = above
    parent[rows] = found
    return found


def _equal_files(store: Store, rows: Tensor) -> list[list[int]]:
    """Groups of files with equal bytes."""
    shas = store.hashes()
    groups: dict[bytes, list[int]] = {}
    for row in rows.tolist():
        if (sha := shas[row]) is not None:
            groups.setdefault(sha, []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def _completely_near(vector_ND: Tensor, group: Sequence[int], threshold: float) -> list[list[int]]:
    """Splits a group, first come first served, so that any two of a part reach the threshold."""
    parts: list[list[int]] = []
    for row in group:
        one = vector_ND[row].double()
        fitting = (part for part in parts if bool((vector_ND[part].double() @ one >= threshold).all()))
        part = next(fitting, None)
        if part is None:
            parts.append([row])
        else:
            part.append(row)
    return [part for part in parts if len(part) > 1]


def _group(store: Store, rows: Sequence[int], keep: Keep) -> Group:
    items = dict(zip(rows, store.items(rows), strict=True))
    kept = min(rows, key=lambda row: (*_rank(items[row], keep), row))
    order = [kept, *(row for row in rows if row != kept)]
    vectors = store.images[order].double()
    scores = (vectors @ vectors[0]).clamp(max=1.0).tolist()
    lowest = min(float((part @ vectors.T).min()) for part in vectors.split(1024))
    return Group(tuple(items[row].id for row in order), tuple(scores), min(lowest, 1.0))


def _rank(item: Item, keep: Keep) -> tuple[float, ...]:
    """What to keep comes first: the largest, then the oldest; or the other way round."""
    size = -float((item.width or 0) * (item.height or 0))
    age = item.taken.timestamp() if item.taken else float("inf")
    return {"largest": (size, age), "oldest": (age, size), "first": ()}[keep]
