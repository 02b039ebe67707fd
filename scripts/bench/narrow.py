"""Narrow rows in `search.py`: a query of an index that has them, beside the exact one and faiss's index of the same kind."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from side_by_side import Row, row
from vectors import Given, clustered, fill, in_turn, nearest_by_numpy, parts

K = 10
Search = Callable[[np.ndarray], list[int]]


def narrow(case: str, rows: int, width: int, rounds: int) -> list[Row]:
    """Time, recall and memory of each kind of narrow rows, beside those of the vectors and of faiss."""
    from mmcl.search import Index
    from mmcl.search.lance_store import LanceStore
    from mmcl.search.lance_table import About, LanceTable
    from mmcl.search.narrow import Narrow

    vectors = np.concatenate(list(parts(rows, width)))
    asked = vectors[np.random.default_rng(1).choice(rows, 64)] + clustered(64, width, seed=1)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    model, questions = Given(), itertools.cycle(asked)

    def ask_next(side: Search) -> list[int]:
        return side(next(questions))

    exact = partial(nearest_by_numpy, vectors, count=K)
    truth, lines = [exact(question) for question in asked], list[Row]()
    for kind in get_args(Narrow):
        with tempfile.TemporaryDirectory() as folder:
            fill(LanceTable.create(folder, About(model="given", dim=width, narrow=kind)), rows, width)
            index = Index.open(folder, model)

            def ours(question: np.ndarray, index: Any = index) -> list[int]:
                model.query = question
                return [int(hit.name.rpartition("image")[2][:7]) for hit in index.search("x", top_k=K)]

            sides: dict[str, Search] = {"mmcl": ours, "exact": exact}
            if (by_faiss := narrow_in_faiss(vectors, kind)) is not None:
                sides["faiss"] = by_faiss
            shares = {
                name: statistics.mean(len({*side(one)} & {*true}) / K for one, true in zip(asked, truth, strict=True))
                for name, side in sides.items()
            }
            times = in_turn({name: partial(ask_next, side) for name, side in sides.items()}, 20 * rounds)
            assert isinstance(index.store, LanceStore)
            memory = index.store.codes.nbytes / 2**20
        for peer in times:
            if peer != "mmcl":
                lines.append(row(case, f"{kind} time", "ms", 1e3 * times["mmcl"], peer, 1e3 * times[peer]))
                lines.append(row(case, f"{kind} R@{K}", "share", shares["mmcl"], peer, shares[peer]))
        lines.append(row(case, f"{kind} memory", "MiB", memory, "vectors", vectors.nbytes / 2**20))
    return lines


def narrow_in_faiss(vectors: np.ndarray, kind: str) -> Search | None:
    """A search by narrow rows and then by the vectors of ten times as many as are wanted, or None without faiss."""
    try:
        import faiss
    except ImportError:
        return None
    faiss.omp_set_num_threads(torch.get_num_threads())
    width = vectors.shape[1]
    if kind == "int8":
        scalar = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        refined = faiss.IndexRefineFlat(scalar)
        refined.train(vectors)
        refined.add(vectors)
        refined.k_factor = 10
        return lambda question: refined.search(question[None], K)[1][0].tolist()
    binary = faiss.IndexBinaryFlat(width)
    binary.add(np.packbits(vectors > 0, axis=1))

    def search(question: np.ndarray) -> list[int]:
        near = binary.search(np.packbits(question > 0)[None], 10 * K)[1][0]
        found: list[int] = near[np.argsort(-(vectors[near] @ question), kind="stable")[:K]].tolist()
        return found

    return search
