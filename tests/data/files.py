"""Small files of images and tables in common formats."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mmcl.data.images.decode import decode
from mmcl.data.sample import Sample


def write_image(path: Path, gray: int = 128) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 4), gray).save(path)
    return path


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows of the same keys as the kind of table that the suffix says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        path.write_text("".join(separator.join(map(str, line)) + "\n" for line in [rows[0], *(row.values() for row in rows)]))


def write_mnist(folder: Path, size: int = 20) -> None:
    """MNIST's four files, in its idx format."""
    folder.mkdir(parents=True)
    for part, shift in (("train", 0), ("t10k", 100)):
        pictures = np.arange(size * 784).reshape(size, 28, 28).astype(np.uint8) + shift
        labels = np.arange(size, dtype=np.uint8) % 10
        header = struct.pack(">IIII", 0x803, size, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pictures.astype(np.uint8).tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, size) + labels.tobytes())


def decoded(sample: Sample) -> Image.Image:
    assert sample.image is not None
    return decode(sample.image)
