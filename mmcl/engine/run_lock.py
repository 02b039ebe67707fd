"""One writer for a run directory."""

from __future__ import annotations

import os
import socket
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


FOLDERS, FILES = ("checkpoints", "features", "model", "report"), ("config.yaml", "metrics.jsonl", "bad_samples.jsonl", ".lock")
"""Contents of a run directory: none of the folders may be a file, none of the files a folder."""


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Holds the run directory, which is made if need be; another process cannot hold it meanwhile.

    The lock is the operating system's (POSIX record lock): it ends with the process, however that ends, so no stale lock can
    block a run, and loader processes do not inherit it. On a network file system it holds between machines where the system
    supports such locks (NFS 4 does); where it has none, nothing is locked, and a warning says so.

    Raises:
        UserError: it cannot be written, or another process holds it; says which.
    """
    check_folder(run_dir, flag="run_dir")
    made = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in FOLDERS:
        check_folder(run_dir / name, flag="run_dir:")
    for name in FILES:
        check_file(run_dir / name, flag="run_dir:")
    with (run_dir / ".lock").open("a+", encoding="utf-8") as file:
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
            if [path.name for path in run_dir.iterdir()] == [".lock"]:  # the run was refused before it began
                (run_dir / ".lock").unlink()
                for folder in made:
                    with suppress(OSError):  # another run has begun beside it
                        folder.rmdir()
