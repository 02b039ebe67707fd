"""An embedding job on Ray, in a process of its own, in which one actor kills itself with SIGKILL once."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from mmcl.config import SourceConfig
from mmcl.runs.embedding import runners
from mmcl.runs.embedding.job import EmbeddingJob
from mmcl.runs.embedding.runners import run_embedding_job

_STRUCK_AT = 3


class MortalWorker(runners._RayWorker):
    """Dies before it writes a certain shard, unless the file in the variable MORTAL exists already."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        struck = Path(os.environ["MORTAL"])
        if _STRUCK_AT in batch["number"] and not struck.exists():
            struck.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


def main(words: Sequence[str]) -> int:
    """Does the job `DATA MODEL FOLDER MARKER` with two workers. Returns the number of files that are left."""
    data, model, folder, marker = words
    os.environ["MORTAL"] = marker
    config = SourceConfig(path=data)
    job = EmbeddingJob(data=config, model=model, folder=Path(folder), shard_rows=4, device="cpu")
    with mock.patch.object(runners, "_RayWorker", MortalWorker):
        return run_embedding_job(job, "ray", workers=2).left
