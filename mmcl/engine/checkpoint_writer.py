"""Writing of checkpoints: the training loop copies the tensors, and a thread writes them to disk.

A checkpoint is written to a temporary folder, synced and then renamed. The manifest is written once the files of all processes
are on the disk. Old checkpoints are removed only after the new one is in place, and are renamed before they are deleted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from safetensors.torch import save_file

from mmcl.engine.checkpoint import FORMAT_VERSION, MANIFEST, Snapshot, delete, seal, sha256, step_folders, step_name
from mmcl.engine.launch import SLOW_SECONDS
from mmcl.errors import UserError
from mmcl.files.atomic import staged, sync
from mmcl.files.untrusted import reason

T = TypeVar("T")

_SPARE_BYTES = 2**20


class CheckpointWriter:
    """Write one checkpoint at a time; a new one waits for the previous one. Nothing is written after a failure.

    A process that fails must not raise on its own: the others would wait for it. Instead, the loop reads `failure`, and all
    processes stop at the same step.

    Args:
        folder: folder of the checkpoints.
        keep: number of newest checkpoints to keep.
        shared: whether all processes write, each its shard; then all of them create a writer and save the same steps. They
            agree over a group of their own, because training uses the other one meanwhile.
    """

    def __init__(self, folder: Path, *, keep: int, shared: bool = False):
        self.folder, self.keep = folder, keep
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=SLOW_SECONDS)) if shared else None
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
            options: dict[str, Any] = {"keep": self.keep, "spare": spare, "group": self._group}
            self._pending = self._thread.submit(write_checkpoint, self.folder, snapshot, **options)

    @property
    def failure(self) -> BaseException | None:
        """Error of the finished write; None while it is in progress and after success. All that write have the same."""
        return self._pending.exception() if self._pending and self._pending.done() else None

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._pending:
            self._pending.exception()


def write_checkpoint(
    folder: Path, snapshot: Snapshot, *, keep: int, spare: int | None = None, group: dist.ProcessGroup | None = None
) -> Path:
    """Write `folder/step-<step>` atomically, then remove all checkpoints but the newest `keep` and that of step `spare`.

    Args:
        folder: folder of the checkpoints, which all processes see.
        snapshot: the contents, or this process's shard of them.
        keep, spare: see above.
        group: the processes whose snapshots are shards of one checkpoint, by rank; all of them call this.

    Raises:
        UserError: it cannot be written, for example because the disk is full. The partial checkpoint is removed and existing
            checkpoints are kept. All processes raise the error of the first that failed.
    """
    write = _Write(folder, snapshot, group)
    try:
        with write.open_stage:
            needed = sum(write.each(lambda: snapshot.nbytes))
            stage = write.first(lambda: write.make_stage(needed))
            files = write.each(lambda: write.put_files(stage))
            write.first(lambda: write.publish(stage, files, keep=keep, spare=spare))
    except Exception as error:  # OSError, or a bare RuntimeError of torch
        raise UserError(f"{write.why(error)}; the checkpoints before it are untouched") from error
    return write.final


@dataclass
class _Write:
    """The writing of a checkpoint by one process or several, step by step. The first process makes its folder."""

    folder: Path
    snapshot: Snapshot
    group: dist.ProcessGroup | None
    open_stage: ExitStack = field(default_factory=ExitStack)

    @property
    def final(self) -> Path:
        return self.folder / step_name(self.snapshot.step)

    def each(self, work: Callable[[], T]) -> list[T]:
        """Return what every process makes of `work`, by rank. Raises UserError in all of them if it fails in one."""
        if self.group is None:
            return [work()]
        outcomes: list[Any] = [None] * self.snapshot.shards
        dist.all_gather_object(outcomes, self._outcome(work), group=self.group)
        for _, failure in outcomes:
            if failure is not None:
                raise UserError(failure)
        return [result for result, _ in outcomes]

    def first(self, work: Callable[[], T]) -> T:
        """Return what the first process makes of `work`, which the others do not call."""
        return self.each(lambda: work() if self.snapshot.shard == 0 else None)[0]  # type: ignore[return-value]

    def _outcome(self, work: Callable[[], T]) -> tuple[T | None, str | None]:
        try:
            return work(), None
        except Exception as error:  # as in `write_checkpoint`
            return None, self.why(error)

    def why(self, error: Exception) -> str:
        return str(error) if isinstance(error, UserError) else f"{self.final} cannot be written ({reason(error)})"

    def make_stage(self, needed: int) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in (*self.folder.glob(".tmp-*"), *self.folder.glob(".del-*")):
            delete(leftover)
        self._check_space(needed + _SPARE_BYTES)
        stage = self.open_stage.enter_context(staged(self.final))
        stage.mkdir()
        return stage

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UserError(
                f"{self.folder}: {free / 1e6:.0f} MB are free and the checkpoint of step {self.snapshot.step} needs "
                f"{needed / 1e6:.0f}; make room and continue with --resume"
            )

    def put_files(self, stage: Path) -> dict[str, Any]:
        """Write this process's files. Returns their entries in the manifest."""
        if not stage.is_dir():
            raise UserError(f"{self.folder}: process {self.snapshot.shard} does not see it; put run_dir where all see the same")
        return {name: _put_file(stage / name, tensors) for name, tensors in self.snapshot.files.items()}

    def publish(self, stage: Path, files: list[dict[str, Any]], *, keep: int, spare: int | None) -> None:
        """Write the manifest, give the folder its name, and remove old checkpoints."""
        manifest = {
            "format_version": FORMAT_VERSION,
            "step": self.snapshot.step,
            "shards": self.snapshot.shards,
            "files": {name: entry for entries in files for name, entry in entries.items()},
            **self.snapshot.facts,
        }
        manifest["sha256"] = seal(manifest)
        (stage / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        self.open_stage.close()
        for old in step_folders(self.folder)[keep:]:
            if spare is None or old.name != step_name(spare):
                _remove(old)


def _put_file(file: Path, tensors: dict[str, Any]) -> dict[str, Any]:
    """Write a file through to the disk, which only the process that wrote it can do on a file system of several machines."""
    save_file(tensors, file)
    sync(file)
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def _remove(path: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that an interrupted deletion does not look like a checkpoint."""
    doomed = path.with_name(f".del-{path.name}")
    path.rename(doomed)
    delete(doomed)
