"""Parts of files, read by offset: a picture in a shard is no file of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

from mmcl.errors import UserError

_OPEN_FILES = 128
"""Descriptors that a process keeps at a time, well below the usual limit of 1,024."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """Some bytes of a file that is not changed while it is in use.

    Attributes:
        path: of the file.
        offset, size: of the part, in bytes.
        version: `st_mtime_ns` of the file when the part was found.
    """

    path: str
    offset: int
    size: int
    version: int

    def read(self) -> bytes:
        """The bytes. Raises UserError when the file is missing, has changed or is too short."""
        try:
            file = _open(self.path, self.version)  # Held by a name: the cache may forget it, and it would be closed.
            # Reading at an offset moves no cursor: threads, and processes after a fork, may share the descriptor.
            content = os.pread(file.descriptor, self.size, self.offset)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}") from None
        if len(content) < self.size:
            raise UserError(f"{self.path}: ends at byte {self.offset + len(content)}, inside of a member: it is truncated")
        return content


class _OpenFile:
    """Closed when nobody holds it: a thread may still read when the cache below forgets it."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


@lru_cache(maxsize=_OPEN_FILES)
def _open(path: str, version: int) -> _OpenFile:
    file = _OpenFile(os.open(path, os.O_RDONLY))
    if os.fstat(file.descriptor).st_mtime_ns != version:
        raise UserError(f"{path}: has changed since it was indexed; start again")
    return file
