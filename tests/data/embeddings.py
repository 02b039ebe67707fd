"""Tables of embeddings that mmcl did not write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PAIR_COLUMNS = {"image_column": "picture", "text_column": "words", "caption_column": "caption", "label_column": "kind"}


def lists(values: Any) -> pa.Array:
    """A column of lists of numbers, of float32 unless an array says otherwise."""
    if isinstance(values, np.ndarray):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return pa.array(values, pa.list_(pa.float32()))


def write_pairs(path: Path, count: int = 12, **changed: Any) -> dict[str, Any]:
    """Writes a table of pairs; columns may be replaced, or left out by None. Returns its columns."""
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "picture": rng.normal(size=(count, 4)).astype(np.float32),
        "words": rng.normal(size=(count, 3)).astype(np.float32),
        "caption": [f"caption {number}" for number in range(count)],
        "kind": ["even", "odd"] * (count // 2),
        "number": list(range(100, 100 + count)),
    } | changed
    columns = {name: values for name, values in columns.items() if values is not None}
    arrays = {
        name: lists(values) if name in ("picture", "words") and not isinstance(values, pa.Array) else pa.array(values)
        for name, values in columns.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays), path)
    return columns


def pairs_file(folder: Path) -> Path:
    """A table of pairs in a folder."""
    write_pairs(folder / "rows.parquet")
    return folder / "rows.parquet"
