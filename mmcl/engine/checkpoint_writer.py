"""Checkpoints in the background: the training loop pays for a copy of the tensors, a thread for the disk."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from mmcl.engine.checkpoint import Snapshot, write_checkpoint


class CheckpointWriter:
    """Writes one checkpoint at a time; one that comes too early waits for the one before it. After a failure it writes nothing.

    Only one process writes, so it must not raise on its own: the others would wait for it. The loop reads `failure`, and all
    processes stop at the same step.

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

    def save(self, snapshot: Snapshot, *, spare: int | None = None) -> None:
        """Starts writing, once the checkpoint before is written. The checkpoint of step `spare` stays however old it is."""
        self.wait()
        if self.failure is None:
            self._pending = self._thread.submit(write_checkpoint, self.folder, snapshot, keep=self.keep, spare=spare)

    @property
    def failure(self) -> BaseException | None:
        """The error of a finished write; None while it goes on, and after success."""
        return self._pending.exception() if self._pending and self._pending.done() else None

    def wait(self) -> None:
        """Returns when nothing is being written."""
        if self._pending:
            self._pending.exception()
