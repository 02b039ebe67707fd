"""Arrays in files that are filled through memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


def reserve_array(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    """Creates a .npy file at its full size, and maps it into memory for writing.

    If a mapped file met a full disk later, the process would be killed (SIGBUS).

    Raises:
        OSError: it cannot be written, or the disk is too full.

    Example:
        >>> rows = reserve_array(Path("rows.npy"), (3, 2), "float32")
        >>> rows[1] = 5
        >>> rows.flush()
        >>> np.load("rows.npy").tolist()
        [[0.0, 0.0], [5.0, 5.0], [0.0, 0.0]]
    """
    mapped = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
    mapped.flush()
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return mapped
