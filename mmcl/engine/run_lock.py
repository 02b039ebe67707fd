"""Lock that ensures a single writer per run directory."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmcl.errors import UserError
from mmcl.files.atomic import check_file, check_folder
from mmcl.logging import get_logger

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = get_logger(__name__)

LOCK = ".lock"
FOLDERS, FILES = ("checkpoints", "features", "model", "report"), ("config.yaml", "metrics.jsonl", "bad_samples.jsonl", LOCK)
"""Names of the folders and files in a run directory; a folder's name must not be a file, nor the reverse."""


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Lock the run directory against other processes; it is created if necessary.

    The lock is a POSIX record lock. The operating system releases it however the process ends, so a stale lock cannot block a
    run, and loader processes do not inherit it. On a network file system it works across machines if the system supports such
    locks (NFS 4 does). If they are not supported, nothing is locked and a warning is logged.

    Raises:
        UserError: the directory cannot be written, or another process holds the lock; the message names the process.
    """
    check_folder(run_dir, flag="run_dir", made_by="config.yaml")
    made = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in FOLDERS:
        check_folder(run_dir / name, flag="run_dir:")
    for name in FILES:
        check_file(run_dir / name, flag="run_dir:")
    with (run_dir / LOCK).open("a+", encoding="utf-8") as file:
        try:
            if fcntl:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{run_dir} is being written by {holder}: wait for it, or give another --run_dir") from None
        except OSError:
            logger.warning(f"{run_dir} is on a file system without locks: let no second run write there")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):  # the directory was removed meanwhile, or another run has started in it
                if [path.name for path in run_dir.iterdir()] == [LOCK]:  # the run was refused before it started
                    (run_dir / LOCK).unlink()
                    for folder in made:
                        folder.rmdir()


def is_locked(run_dir: Path) -> bool:
    """Return True if another process holds the lock, without taking it.

    False if the system cannot tell; the question is put as Linux does (F_GETLK of fcntl(2)).
    """
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0) if fcntl else b""
    try:
        with (run_dir / LOCK).open("rb") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
    except (AttributeError, OSError):
        return False
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


_FLOCK = "hhqqi4x"
"""Layout of `struct flock` on 64-bit Linux: type, whence, start, length, process."""
