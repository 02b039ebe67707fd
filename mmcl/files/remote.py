"""Files on servers, by URL: parts of them by range, and whole ones as copies in a folder of bounded size.

An object that has changed or is short is named, and nothing of it is used.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from mmcl.errors import UserError
from mmcl.files import web
from mmcl.files.ranges import read_range, read_whole
from mmcl.files.remote_filesystem import RefusedError, changed, filesystem, tried
from mmcl.files.root import data_root

PIECE = 2**24
ROOM_WITHOUT_LIMIT = 10**10
"""Bytes of a file that is copied however small the room for copies is: there is no other way to read a table."""
SIDE_FILE_BYTES = 2**24
"""Of a file beside the shards, such as a list of names, at most."""
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "Last-Modified", "LastModified")
"""What the services call the mark of an object's content, the best first."""


@dataclass(frozen=True, slots=True)
class Copies:
    """A folder of whole copies, of which the least recently used go.

    Attributes:
        folder: of the copies alone.
        limit: bytes of all copies; the newest one is kept even if it is larger, up to 10 GB.
    """

    folder: Path
    limit: int

    @classmethod
    def below(cls, root: str | None, gigabytes: float) -> Copies:
        """The folder below the data root. Raises UserError when the limit is negative."""
        if gigabytes < 0:
            raise UserError(f"cache_gb is {gigabytes}: give 0 or more")
        return cls(data_root(root) / "remote", int(gigabytes * 1e9))

    def make_room(self, size: int, url: str) -> None:
        """Deletes copies until another of `size` bytes fits. Raises UserError, and deletes none, where it cannot."""
        stats = {file: file.stat() for file in self.folder.iterdir() if file.name != ".lock"}
        held = sum(stat.st_size for stat in stats.values())
        free, total = shutil.disk_usage(self.folder).free + held, size + held
        if size > max(self.limit, ROOM_WITHOUT_LIMIT):
            raise UserError(f"{url}: has {size / 1e9:,.1f} GB, and copies may take {self.limit / 1e9:,.1f}: raise `cache_gb`")
        if size > free:
            raise UserError(f"{url}: has {size / 1e9:,.1f} GB, and the disk of {self.folder} has room for {free / 1e9:,.1f}")
        for file, stat in sorted(stats.items(), key=lambda item: item[1].st_atime_ns):
            if total <= self.limit:
                return
            file.unlink()
            total -= stat.st_size


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on a server, as it was when it was found.

    Attributes:
        path: its URL.
        size: in bytes.
        version: the server's mark of its content, such as an ETag or a time; "" where it gives none, and only the size tells
            that the file has changed.
        copies: where whole copies are kept.
    """

    path: str
    size: int
    version: str
    copies: Copies = field(repr=False, compare=False)

    @classmethod
    def find(cls, url: str, copies: Copies) -> RemoteFile:
        """The file at a URL. Raises UserError when there is none, or the server cannot be reached or states no size."""
        info = tried(lambda: _info(url), url)
        if info["type"] == "directory":
            raise UserError(f'{url}: is a folder; name its files, as in "{url.rstrip("/")}/{{00000..00099}}.tar"')
        if info["size"] is None:
            raise UserError(f"{url}: the server states no size; download it")
        if info["size"] < 0:
            raise UserError(f"{url}: the server states a size of {info['size']} bytes; download it")
        version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
        return cls(url, int(info["size"]), version, copies)

    def read(self, offset: int, size: int) -> bytes:
        """Some bytes: of the copy where there is one, else by a request for this range.

        A set that is larger than the room for copies would push out every copy before it is read again; so that copies are
        made by `local` alone, and this reads what lies in none from the server.

        Raises:
            UserError: the server cannot be reached, the object has changed or is too short, or the server gives no ranges.
        """
        try:
            descriptor = os.open(self._copy, os.O_RDONLY)
        except FileNotFoundError:
            return self._range(offset, size)
        try:
            _mark_used(descriptor)
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def local(self) -> Path:
        """A whole copy, which is fetched unless it is there. Raises UserError as `read`, or when it cannot be written."""
        copy = self._copy
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(copy.parent / ".lock"):  # Other processes wait, and find the copy.
                if not copy.exists():
                    self.copies.make_room(self.size, self.path)
                    stage = copy.with_name(f"{copy.name}.tmp")
                    self._fetch(stage)
                    stage.replace(copy)
                _mark_used(copy)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be copied to {copy.parent}: {error.strerror}") from None
        return copy

    def nearby(self, name: str) -> Path | None:
        """A copy of another file in its folder, or in the one above; None where the server gives neither.

        Raises:
            UserError: as `local`, or the file is larger than 16 MB.
        """
        folder = self.path.rpartition("/")[0]
        for place in (folder, folder.rpartition("/")[0]):
            if urlsplit(place).netloc:
                try:
                    found = RemoteFile.find(f"{place}/{name}", self.copies)
                    if found.size > SIDE_FILE_BYTES:
                        raise UserError(f"{found.path}: {found.size} bytes are too many for such a file")
                    return found.local()
                except RefusedError:
                    continue
        return None

    @property
    def _copy(self) -> Path:
        name = self.path.rpartition("/")[2][-100:]
        return self.copies.folder / f"{hashlib.sha256(repr(self).encode()).hexdigest()[:16]}-{name}"

    def _fetch(self, target: Path) -> None:
        """Piece by piece, so that a dropped connection costs one piece; at once where the server gives no ranges."""
        try:
            with target.open("wb") as file:
                while (at := file.tell()) < self.size:
                    file.write(self._range(at, min(PIECE, self.size - at)))
        except web.NoRangesError:
            tried(lambda: self._fetch_at_once(target), self.path)
        self._check_unchanged()  # Not every service takes a condition with a request, and the pieces must be of one version.

    def _fetch_at_once(self, target: Path) -> None:
        with target.open("wb") as file:
            read_whole(self.path, self.size, file.write)
            _check_length(file.tell(), self.size)

    def _range(self, offset: int, size: int) -> bytes:
        if size == 0:
            return b""
        try:
            return tried(lambda: self._request(offset, size), self.path)
        except web.NoRangesError:
            raise web.NoRangesError(
                f"{self.path}: the server gives no parts of files (HTTP ranges), and there is no whole copy in "
                f"{self.copies.folder}: raise `cache_gb` above the size of all files, or download them"
            ) from None

    def _request(self, offset: int, size: int) -> bytes:
        if urlsplit(self.path).scheme not in ("http", "https"):
            _check_unchanged_once(self, os.getpid())
        content = read_range(self.path, offset, size, self._condition())
        _check_length(len(content), size)
        return content

    def _check_unchanged(self) -> None:
        if RemoteFile.find(self.path, self.copies) != self:
            raise changed(self.path)

    def _condition(self) -> dict[str, str]:
        """The headers by which a server refuses to answer of another version."""
        if self.version.startswith('"'):
            return {"If-Match": self.version}
        return {"If-Unmodified-Since": self.version} if self.version.endswith("GMT") else {}


def _mark_used(copy: Path | int) -> None:
    """The time of change stays: what was made of the copy belongs to it."""
    os.utime(copy, ns=(time.time_ns(), os.stat(copy).st_mtime_ns))


def _info(url: str) -> dict[str, Any]:
    files = filesystem(scheme := urlsplit(url).scheme)
    info: dict[str, Any] = web.describe(files, url) if scheme in ("http", "https") else files.info(url)
    return info


@lru_cache(maxsize=2**16)
def _check_unchanged_once(file: RemoteFile, process: int) -> None:
    """In every process: for services that take no condition with a request."""
    file._check_unchanged()


def _check_length(length: int, expected: int) -> None:
    if length != expected:
        raise EOFError(f"the server sent {length} of {expected} bytes")
