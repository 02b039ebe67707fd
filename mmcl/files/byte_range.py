"""Parts of files, read by offset: an image in a shard is no file of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mmcl.errors import UserError
from mmcl.files.remote import Copies, RemoteFile
from mmcl.files.remote_filesystem import is_url

_OPEN_FILES = 128
"""Descriptors that a process keeps at a time, well below the usual limit of 1,024."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file that is not changed while it is in use.

    Attributes:
        path: of the file.
        size: in bytes.
        version: its `st_mtime_ns`.
    """

    path: str
    size: int
    version: str

    @classmethod
    def find(cls, path: str) -> LocalFile:
        """The file at a path. Raises UserError when there is none."""
        try:
            stat = os.stat(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        return cls(path, stat.st_size, str(stat.st_mtime_ns))

    def read(self, offset: int, size: int) -> bytes:
        """Some bytes, fewer at its end. Raises UserError when the file is missing or has changed."""
        try:
            file = _open(self)  # Held by a name: the cache may forget it, and it would be closed.
            # Reading at an offset moves no cursor: threads, and processes after a fork, may share the descriptor.
            return os.pread(file.descriptor, size, offset)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}") from None

    def local(self) -> Path:
        """Its path."""
        return Path(self.path)

    def nearby(self, name: str) -> Path | None:
        """A file in its folder, or in the one above."""
        folder = Path(self.path).parent
        return next((place for place in (folder / name, folder.parent / name) if place.is_file()), None)


def find_file(path: str, copies: Copies) -> LocalFile | RemoteFile:
    """The file at a path or URL. Raises UserError when there is none."""
    return RemoteFile.find(path, copies) if is_url(path) else LocalFile.find(path)


@dataclass(frozen=True, slots=True)
class FilePart:
    """Some bytes of a file.

    Attributes:
        file: where they are.
        offset, size: of the part, in bytes.
    """

    file: LocalFile | RemoteFile
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes. Raises UserError when the file is missing, has changed or is too short."""
        content = self.file.read(self.offset, self.size)
        if len(content) < self.size:
            end = self.offset + len(content)
            raise UserError(f"{self.file.path}: ends at byte {end}, inside of a member: it is truncated")
        return content


class _OpenFile:
    """Closed when nobody holds it: a thread may still read when the cache below forgets it."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


@lru_cache(maxsize=_OPEN_FILES)
def _open(file: LocalFile) -> _OpenFile:
    opened = _OpenFile(os.open(file.path, os.O_RDONLY))
    if str(os.fstat(opened.descriptor).st_mtime_ns) != file.version:
        raise UserError(f"{file.path}: has changed since it was indexed; start again")
    return opened
