"""What the cases of `search.py` share: vectors, an index of them, a model whose query is given, and the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Run = Callable[[], Any]


class Given:
    """A model whose query is given, so that only the search is timed."""

    fingerprint, has_text, logit_scale, logit_bias = "given", True, None, None
    query: np.ndarray

    def encode_text(self, texts: Any, **options: Any) -> np.ndarray:
        return self.query[None]

    def encode_image(self, images: Any, **options: Any) -> np.ndarray:
        return self.query[None]


def clustered(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Unit vectors around a center for each hundred."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(max(1, rows // 100), width)).astype(np.float32)
    found = np.empty((rows, width), np.float32)
    for start in range(0, rows, 50_000):
        part = centers[rng.integers(0, len(centers), min(50_000, rows - start))]
        part = part + rng.normal(size=part.shape).astype(np.float32)
        found[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return found


def parts(rows: int, width: int) -> Iterator[np.ndarray]:
    """The vectors of an index on disk, as many at a time as are written at once."""
    for start in range(0, rows, 50_000):
        yield clustered(min(50_000, rows - start), width, seed=start)


def nearest_by_numpy(vectors: np.ndarray, question: np.ndarray, count: int) -> list[int]:
    """The rows nearest to a question, best first, by a product and a partition."""
    score = vectors @ question
    best = np.argpartition(-score, count)[:count]
    found: list[int] = best[np.argsort(-score[best], kind="stable")].tolist()
    return found


def fill(table: Any, rows: int, width: int) -> None:
    """Writes rows without images."""
    import pyarrow as pa

    from mmcl.search.items import id_of
    from mmcl.search.lance_table import schema_of
    from mmcl.search.narrow import narrowed

    schema = schema_of(table.about)
    start = 0
    for vectors in parts(rows, width):
        paths = [f"folder{number % 97}/image{number:07}.jpg" for number in range(start, start + len(vectors))]
        start += len(vectors)
        given = {
            "id": pa.array([id_of(path) for path in paths]),
            "path": pa.array(paths),
            "status": pa.array(["ok"] * len(paths)),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width),
        }
        if table.about.narrow is not None:
            codes = narrowed(vectors, table.about.narrow)
            given["code"] = pa.array([code.tobytes() for code in codes], pa.binary(codes.shape[1]))
        columns = [given[field.name] if field.name in given else pa.nulls(len(paths), field.type) for field in schema]
        table.upsert(pa.Table.from_arrays(columns, schema=schema))
    table.optimize()


def in_turn(sides: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of each side, run in turn after one run that is not counted."""
    for run in sides.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}
