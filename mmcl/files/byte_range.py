"""Reading of byte ranges of files, such as an image in a shard."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mmcl.errors import UserError
from mmcl.files.remote import Copies, RemoteFile
from mmcl.files.remote_filesystem import is_url

_OPEN_FILES = 128
"""Maximum number of open file descriptors per process, well below the usual limit of 1,024."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A local file that must not change while it is in use.

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
        """Finds the file at a path. Raises UserError if it does not exist."""
        try:
            stat = os.stat(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        return cls(path, stat.st_size, str(stat.st_mtime_ns))

    def read(self, offset: int, size: int) -> bytes:
        """Reads `size` bytes, fewer at the end of the file. Raises UserError if the file is missing or has changed."""
        try:
            file = _open(self)  # This reference keeps the file open if the cache evicts it.
            # Reading at an offset does not move the file position: threads and forked processes may share the descriptor.
            return os.pread(file.descriptor, size, offset)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}") from None

    def local(self) -> Path:
        """Returns the path of the file."""
        return Path(self.path)

    def nearby(self, name: str) -> Path | None:
        """Finds a file by name in the same folder or its parent."""
        folder = Path(self.path).parent
        return next((place for place in (folder / name, folder.parent / name) if place.is_file()), None)


def find_file(path: str, copies: Copies) -> LocalFile | RemoteFile:
    """Finds the file at a path or URL. Raises UserError if it does not exist."""
    return RemoteFile.find(path, copies) if is_url(path) else LocalFile.find(path)


@dataclass(frozen=True, slots=True)
class FilePart:
    """A byte range of a file.

    Attributes:
        file: the file.
        offset, size: of the range, in bytes.
    """

    file: LocalFile | RemoteFile
    offset: int
    size: int

    def read(self) -> bytes:
        """Reads the bytes. Raises UserError if the file is missing, has changed or is too short."""
        content = self.file.read(self.offset, self.size)
        if len(content) < self.size:
            end = self.offset + len(content)
            raise UserError(f"{self.file.path}: ends at byte {end}, inside of a member: it is truncated")
        return content


class _OpenFile:
    """A file that is closed with its last reference: a thread may still be reading when the cache below evicts it."""

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
