"""Arrays in files that are filled through memory, or row by row."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

_HEADER_BYTES = 128


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


class GrowingArray:
    """A .npy file to which rows are appended, however many there will be; a context manager.

    Args:
        path: the file, which is created.

    Raises:
        OSError: it cannot be written, or the disk is full.
        ValueError: rows differ in width.

    Example:
        >>> with GrowingArray(Path("grown.npy")) as rows:
        ...     rows.append(np.ones((2, 3), np.float32))
        ...     rows.append(np.zeros((1, 3), np.float32))
        >>> np.load("grown.npy", mmap_mode="r").shape
        (3, 3)
    """

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._file.write(bytes(_HEADER_BYTES))
        self.count, self.width, self._dtype = 0, 0, np.dtype(np.float32)

    def append(self, rows_NF: np.ndarray) -> None:
        """Appends rows; the first ones determine the type and the width."""
        if self.count == 0:
            self._dtype, self.width = rows_NF.dtype.newbyteorder("<"), rows_NF.shape[1]
        if rows_NF.shape[1] != self.width:
            raise ValueError(f"rows of {rows_NF.shape[1]} numbers after rows of {self.width}")
        self._file.write(np.ascontiguousarray(rows_NF, self._dtype).data)
        self.count += len(rows_NF)

    def __enter__(self) -> GrowingArray:
        return self

    def __exit__(self, *error: object) -> None:
        with self._file:
            self._file.seek(0)
            # Version 1.0 of the format. The description is padded to a fixed length, so that it can be written last.
            what = f"{{'descr': {self._dtype.str!r}, 'fortran_order': False, 'shape': ({self.count}, {self.width}), }}"
            length = _HEADER_BYTES - 10
            self._file.write(b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + what.ljust(length - 1).encode() + b"\n")
