"""Checkpoints in the background: the training loop pays for a copy of the tensors, a thread for the disk."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from mmcl.engine.checkpoint import Snapshot, write_checkpoint


class CheckpointWriter:
    """Writes one checkpoint at a time; one that comes too early waits for the one before it.

    Args:
        folder: where the checkpoints lie.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, *, keep: int):
        self.folder, self.keep = folder, keep
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[Path] | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        """Lets what is being written come to its end, whatever ended the run."""
        self._thread.shutdown()

    def save(self, snapshot: Snapshot) -> None:
        """Starts writing. Raises what the checkpoint before failed with."""
        self.wait()
        self._pending = self._thread.submit(write_checkpoint, self.folder, snapshot, keep=self.keep)

    def raise_failure(self) -> None:
        """Raises what a finished write failed with, without waiting for an unfinished one."""
        if self._pending and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is being written. Raises UserError where writing failed."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()
