"""Remote files by URL: range requests for parts, and local copies of whole files in a folder of bounded size.

A file that has changed or is truncated raises an error that names it, and its content is not used.
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
from mmcl.files.remote_filesystem import RefusedError, changed, filesystem, with_retries
from mmcl.files.root import data_root

PIECE = 2**24
ROOM_WITHOUT_LIMIT = 10**10
"""Files of up to this size in bytes are copied even if the cache limit is smaller: a table cannot be read otherwise."""
SIDE_FILE_BYTES = 2**24
"""Largest size in bytes of a file beside the shards, such as a list of names."""
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "Last-Modified", "LastModified")
"""Keys under which services report the version of a file's content, most reliable first."""


@dataclass(frozen=True, slots=True)
class Copies:
    """A cache folder of whole files, with eviction of the least recently used.

    Attributes:
        folder: contains only the copies.
        limit: size of all copies in bytes; the newest copy is kept even if it is larger, up to 10 GB.
    """

    folder: Path
    limit: int

    @classmethod
    def below(cls, root: str | None, gigabytes: float) -> Copies:
        """Builds the cache below the data root. Raises UserError if the limit is negative."""
        if gigabytes < 0:
            raise UserError(f"cache_gb is {gigabytes}: give 0 or more")
        return cls(data_root(root) / "remote", int(gigabytes * 1e9))

    def make_room(self, size: int, url: str) -> None:
        """Deletes copies until another of `size` bytes fits. Raises UserError, without deleting any, if it cannot fit."""
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
    """A file on a server, in the version that was found.

    Attributes:
        path: its URL.
        size: in bytes.
        version: the server's version of the content, such as an ETag or a time; "" if the server gives none, and then only the
            size shows that the file has changed.
        copies: cache of whole files.
    """

    path: str
    size: int
    version: str
    copies: Copies = field(repr=False, compare=False)

    @classmethod
    def find(cls, url: str, copies: Copies) -> RemoteFile:
        """Finds the file at a URL. Raises UserError if it does not exist, the server is unreachable, or it gives no size."""
        info = with_retries(lambda: _info(url), url)
        if info["type"] == "directory":
            raise UserError(f'{url}: is a folder; name its files, as in "{url.rstrip("/")}/{{00000..00099}}.tar"')
        if info["size"] is None:
            raise UserError(f"{url}: the server does not report the size; download it")
        if info["size"] < 0:
            raise UserError(f"{url}: the server states a size of {info['size']} bytes; download it")
        version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
        return cls(url, int(info["size"]), version, copies)

    def read(self, offset: int, size: int) -> bytes:
        """Reads `size` bytes from the local copy if it exists, else by a range request.

        A dataset larger than the cache would evict every copy before it is read again. So only `local` makes copies; ranges of
        other files are read from the server.

        Raises:
            UserError: the server is unreachable or has no range requests, or the file has changed or is too short.
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
        """Returns a whole copy, fetched if needed. Raises UserError as `read` does, or if the copy cannot be written."""
        copy = self._copy
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(copy.parent / ".lock"):  # Other processes wait and then find the copy.
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
        """Returns a copy of another file in the same folder or its parent; None if the server has neither.

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
        """Downloads in chunks, so that a dropped connection costs one chunk; in one go if the server has no range requests."""
        try:
            with target.open("wb") as file:
                while (at := file.tell()) < self.size:
                    file.write(self._range(at, min(PIECE, self.size - at)))
        except web.NoRangesError:
            with_retries(lambda: self._fetch_at_once(target), self.path)
        self._check_unchanged()  # Not every service supports conditional requests, and all chunks must be of one version.

    def _fetch_at_once(self, target: Path) -> None:
        with target.open("wb") as file:
            read_whole(self.path, self.size, file.write)
            _check_length(file.tell(), self.size)

    def _range(self, offset: int, size: int) -> bytes:
        if size == 0:
            return b""
        try:
            return with_retries(lambda: self._request(offset, size), self.path)
        except web.NoRangesError:
            raise web.NoRangesError(
                f"{self.path}: the server does not support HTTP ranges, and there is no complete copy in "
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
        """Request headers that make a server refuse another version of the file."""
        if self.version.startswith('"'):
            return {"If-Match": self.version}
        return {"If-Unmodified-Since": self.version} if self.version.endswith("GMT") else {}


def _mark_used(copy: Path | int) -> None:
    """Updates the access time; keeps the modification time, since cached results depend on it."""
    os.utime(copy, ns=(time.time_ns(), os.stat(copy).st_mtime_ns))


def _info(url: str) -> dict[str, Any]:
    files = filesystem(scheme := urlsplit(url).scheme)
    info: dict[str, Any] = web.describe(files, url) if scheme in ("http", "https") else files.info(url)
    return info


@lru_cache(maxsize=2**16)
def _check_unchanged_once(file: RemoteFile, process: int) -> None:
    """Checks once per process, for services without conditional requests."""
    file._check_unchanged()


def _check_length(length: int, expected: int) -> None:
    if length != expected:
        raise EOFError(f"the server sent {length} of {expected} bytes")
