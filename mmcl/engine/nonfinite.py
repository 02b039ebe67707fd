"""What happens to a step whose loss or gradient is not finite: the device undoes it before the host knows of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from mmcl.config import Config, to_dict
from mmcl.engine.weight_layout import own_part
from mmcl.files.atomic import write_file
from mmcl.types import Batch


class Snapshot:
    """Copy of tensors, for undoing the changes of a forward pass or of `Method.commit`.

    Args:
        tensors: buffers, such as running statistics, or parameters.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        self._pairs: list[tuple[Tensor, Tensor]] = [(tensor, own_part(tensor).clone()) for tensor in tensors]

    @torch.no_grad()
    def undo_if(self, is_bad: Tensor) -> None:
        """Restore the copied values if `is_bad`, a bool scalar on the device. The host does not wait for it.

        Nor can the versions of the tensors show whether anything was restored, so they stay as they are: see `mark_changed`.
        """
        for tensor, copy in self._pairs:
            now = own_part(tensor).data
            torch.where(is_bad, copy, now, out=now)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the copied values."""
        for tensor, copy in self._pairs:
            own_part(tensor).copy_(copy)


def mark_changed(tensors: Iterable[Tensor]) -> None:
    """Note that `Snapshot.undo_if` has restored tensors: a `HostCount` reads its value again."""
    torch.autograd.graph.increment_version(list(tensors))


def write_crash_bundle(folder: Path, step: int, rank: int, batch: Batch, metrics: dict[str, float], config: Config) -> Path:
    """Write the information needed to debug a failed step: one JSON file per process."""
    path = folder / f"step-{step:07d}-rank-{rank}.json"
    bundle = {
        "step": step,
        "rank": rank,
        "metrics": {name: str(value) for name, value in metrics.items()},
        "samples": batch.index.tolist(),
        "ids": batch.ids.tolist(),
        "bad_samples": [asdict(bad) for bad in batch.bad_samples],
        "config": to_dict(config),
    }
    write_file(path, json.dumps(bundle, indent=1))
    return path
