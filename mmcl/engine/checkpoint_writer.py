"""Background writing of checkpoints: the training loop copies the tensors, and a thread writes them to disk."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from mmcl.engine.checkpoint import Snapshot, write_checkpoint


class CheckpointWriter:
    """Write one checkpoint at a time; a new one waits for the previous one. Nothing is written after a failure.

    Only one process writes, so it must not raise on its own: the others would wait for it. Instead, the loop reads `failure`,
    and all processes stop at the same step.

    Args:
        folder: folder of the checkpoints.
        keep: number of newest checkpoints to keep.
    """

    def __init__(self, folder: Path, *, keep: int):
        self.folder, self.keep = folder, keep
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[Path] | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        """Wait for the current write to finish, however the run ended."""
        self._thread.shutdown()

    def save(self, snapshot: Snapshot, *, spare: int | None = None) -> None:
        """Start writing once the previous checkpoint is written. The checkpoint of step `spare` is kept whatever its age."""
        self.wait()
        if self.failure is None:
            self._pending = self._thread.submit(write_checkpoint, self.folder, snapshot, keep=self.keep, spare=spare)

    @property
    def failure(self) -> BaseException | None:
        """Error of the finished write; None while it is in progress and after success."""
        return self._pending.exception() if self._pending and self._pending.done() else None

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._pending:
            self._pending.exception()
