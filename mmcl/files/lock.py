"""A lock on a file between processes and within one, which ends with its holder however that ends."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import IO

from mmcl.errors import UserError
from mmcl.logging import get_logger

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = get_logger(__name__)


class FileLock:
    """An exclusive lock (flock), held from its creation until `release` or the end of the process.

    On a file system without locks, nothing is locked and a warning is logged.

    Args:
        path: the file; it is created, and stays.
        what: what is locked, for the message.

    Raises:
        UserError: it is held already; names the holder. Or the file cannot be written.

    Example:
        >>> lock = FileLock(Path("a.lock"), "the index")
        >>> FileLock(Path("a.lock"), "the index")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        mmcl.errors.UserError: the index is being written by process ...
        >>> lock.release()
    """

    def __init__(self, path: Path, what: str):
        try:
            self._file: IO[str] | None = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{what}: {path} cannot be written ({error.strerror})") from None
        try:
            if fcntl:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise UserError(f"{what} is being written by {holder}; wait until it is done") from None
        except OSError:
            logger.warning(f"{what} is on a file system without locks: let nothing else write there")
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def release(self) -> None:
        """Releases the lock; nothing happens if that was done before."""
        if self._file is not None:
            self._file.close()
            self._file = None
