"""Share of the true nearest images that narrow rows or an approximate index find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mmcl.core.nearest import nearest
from mmcl.errors import UserError
from mmcl.rng import permutation
from mmcl.search.lance_store import LanceStore
from mmcl.search.narrow import RESCORE

_EQUAL = 1e-6
"""Scores closer than this are equal; another row of the same score is no miss."""


@dataclass(frozen=True, slots=True)
class Recall:
    """What an approximate index finds of what an exact search finds.

    Attributes:
        found: of each query, the share of its k nearest images that were found: float64 [Q], 0 to 1.
        k: images looked for.
        queries: "captions" of the collection, which are what people ask; or "images" of it, each without itself, where it has
            none.
    """

    found: np.ndarray
    k: int
    queries: Literal["captions", "images"]

    @property
    def value(self) -> float:
        """Mean over the queries; 1 for an exact index."""
        return float(self.found.mean())


def measure_recall(store: LanceStore, n: int = 200, k: int = 10, *, rescore: int | None = None, seed: int = 0) -> Recall:
    """Compares the answers of an index with those of an exact search, which reads all vectors once, a batch at a time.

    Args:
        store: the index.
        n: queries at most.
        k: images that are looked for.
        rescore: of narrow rows, see `Index.search`.
        seed: draws the queries.

    Raises:
        UserError: n or k is not from 1 to the number of images, the index keeps no vectors, or has no narrow rows to rescore.
    """
    if store.table.about.dtype == "none":
        raise UserError(f"{store.table.place}: keeps no vectors, so what narrow rows miss is not known; build one with a dtype")
    if rescore is not None and (store.narrow is None or rescore < 1):
        raise UserError(
            "rescore is of an index with narrow rows, and 1 or more: leave it out"
            if store.narrow is None
            else f"rescore is {rescore}; give 1 or more"
        )
    if not 1 <= k < len(store) or n < 1:
        raise UserError(f"recall: k is {k} and n is {n}; give 1 query or more, and k from 1 to {max(len(store) - 1, 1)}")
    texts = store.texts
    total = len(texts.vectors) or len(store)
    rows = permutation(total, seed, 0)[: min(n, total)].tolist()
    query = texts.vectors[rows] if len(texts.vectors) else store.vectors(rows)
    spare = 0 if len(texts.vectors) else 1  # an image finds itself
    lowest = _kth_best(store, query, k + spare)
    found = []
    for row, query_D, least in zip(rows, query, lowest.tolist(), strict=True):
        near = [
            place for place in store.nearby(query_D.numpy(), k + spare, rescore=rescore or RESCORE) if not spare or place != row
        ][:k]
        scores = store.vectors(near).double() @ query_D.double()
        found.append(int((scores >= least - _EQUAL).sum()) / k)
    return Recall(np.array(found), k, "images" if spare else "captions")


def _kth_best(store: LanceStore, query_QD: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th best score of each query over all images, float32 [Q]."""
    best = torch.empty(len(query_QD), 0)
    for _, values in store.table.scan_vectors():
        key = torch.from_numpy(values.astype(np.float32))
        if len(key):
            score, _ = nearest(query_QD, key, min(k, len(key)))
            both = torch.cat([best, score], dim=1)
            best = both.topk(min(k, both.shape[1]), dim=1).values
    return best[:, -1]
