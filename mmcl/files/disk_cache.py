"""On-disk cache for slow computations; an entry of a source file expires when that file changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmcl.files.atomic import staged
from mmcl.files.digest import digest


def cached_file(path: Path, cache: Path, what: str, suffix: str) -> Path:
    """Path of a cached result that was computed from a file; it changes with the file's size, time and inode."""
    stat = path.stat()
    marks = stat.st_size, stat.st_mtime_ns, stat.st_ino
    return cache / f"{path.stem}-{digest(os.path.abspath(path), *marks, what)[:16]}{suffix}"


def cached_array(file: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns a memory-mapped array, computed by the first process that needs it. Raises UserError if it cannot be written."""
    if not file.exists():
        with staged(file) as stage:  # Opened first, so that an unwritable cache fails before the computation.
            np.save(stage, make())
    kept: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    return kept
