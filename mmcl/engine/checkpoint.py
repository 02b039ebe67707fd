"""Checkpoints: weights, their average, optimizer state and step number, in safetensors and JSON. Order and randomness need no
state.

Frozen weights of encoders are left out: every start of a run builds them again, and compares them with those of the first
(`mmcl.runs.resume`).

A checkpoint is written to a temporary folder, synced and then renamed, so a folder named step-* is always complete. The
manifest is written last. It holds the size and sha256 of each file, because safetensors silently loads a flipped bit, and a
sha256 of itself. Old checkpoints are removed only after the new one is in place, and are renamed before they are deleted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from mmcl.config import from_dict
from mmcl.encoders.adapters import frozen_weights
from mmcl.errors import UserError
from mmcl.files.atomic import staged
from mmcl.files.untrusted import read_json, read_safetensors, reason
from mmcl.logging import get_logger

logger = get_logger(__name__)

FORMAT_VERSION = 1
MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.safetensors", "average.safetensors"
MANIFEST = "MANIFEST.json"
_SPARE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copy of a checkpoint's contents, so that training can continue while it is written.

    Attributes:
        step: the number of steps done.
        model, optimizer: tensors by name, on the CPU.
        facts: JSON values for the manifest.
        average: moving average of the weights, likewise; {} without one.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of each file."""
        files = {MODEL: self.model, OPTIMIZER: self.optimizer}
        return {**files, AVERAGE: self.average} if self.average else files


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    step: int
    manifest: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """A file of a checkpoint, as described in its manifest."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Manifest:
    """The schema of a manifest, without the facts that a run adds (`Snapshot.facts`)."""

    step: int
    files: dict[str, _File]

    def __post_init__(self) -> None:
        missing = [name for name in (MODEL, OPTIMIZER) if name not in self.files]
        if missing or self.step < 0:
            raise UserError(f"{MANIFEST}: " + (f"it lists no {missing[0]}" if missing else f"step is {self.step}"))


def take_snapshot(
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    average: Mapping[str, Tensor] | None = None,
    keep: bool = True,
    **facts: Any,
) -> Snapshot:
    """Copy trained parameters, persistent buffers, the state of the optimizer, and the average of the weights if there is one.

    Sharded tensors are gathered, so all processes must call this. Processes without `keep` get no tensors.
    """

    def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        whole = ((name, _whole(tensor)) for name, tensor in tensors.items())
        return {name: _copy(tensor) for name, tensor in whole if keep}

    model, state = copied(_module_tensors(module)), copied(_optimizer_tensors(module, optimizer))
    return Snapshot(step, model, state, facts, copied(average or {}))


def write_checkpoint(folder: Path, snapshot: Snapshot, *, keep: int, spare: int | None = None) -> Path:
    """Write `folder/step-<step>` atomically, then remove all checkpoints but the newest `keep` and that of step `spare`.

    Raises:
        UserError: it cannot be written, for example because the disk is full. The partial checkpoint is removed and existing
            checkpoints are kept.
    """
    final = folder / _name(snapshot.step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in (*folder.glob(".tmp-*"), *folder.glob(".del-*")):
            _delete(leftover)
        _check_space(folder, snapshot)
        with staged(final) as stage:
            stage.mkdir()
            _write_files(stage, snapshot)
        for old in _step_folders(folder)[keep:]:
            if spare is None or old.name != _name(spare):
                _remove(old)
    except Exception as error:  # OSError, or a bare RuntimeError of torch
        what = str(error) if isinstance(error, UserError) else f"{final} cannot be written ({reason(error)})"
        raise UserError(f"{what}; the checkpoints before it are untouched") from error
    return final


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint whose files are all intact, or None. Logs the ones it skips."""
    for path in _step_folders(folder):
        try:
            return verify(path)
        except UserError as error:
            logger.warning(f"{error}; trying the checkpoint before it")
    return None


def checkpoint_of_step(folder: Path, step: int) -> Checkpoint:
    """Return the checkpoint of a step. Raises UserError when it is missing or damaged."""
    return verify(folder / _name(step))


def set_newer_aside(checkpoint: Checkpoint) -> None:
    """Rename damaged checkpoints newer than this one, so that they do not displace intact ones among the newest."""
    folders = _step_folders(checkpoint.path.parent)
    for path in folders[: folders.index(checkpoint.path)]:
        aside = path.with_name(f"damaged-{path.name}")
        if aside.exists():
            _delete(aside)
        path.rename(aside)


def verify(path: Path) -> Checkpoint:
    """Read the manifest and check every file against it.

    Raises:
        UserError: a file is missing, truncated or changed; the message names it.
    """
    try:
        manifest = read_json(path / MANIFEST)
    except UserError:
        raise UserError(f"{path}: {MANIFEST} is missing or damaged") from None
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format {version}; this version of mmcl reads {FORMAT_VERSION}")
    if manifest.pop("sha256", None) != _seal(manifest):
        raise UserError(f"{path}: {MANIFEST} is damaged (its checksum differs)")
    try:
        known = from_dict(_Manifest, {key: manifest[key] for key in ("step", "files") if key in manifest}, MANIFEST)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if path.name != _name(known.step):
        raise UserError(f"{path} holds step {known.step}: was the folder renamed?")
    for name in (MODEL, OPTIMIZER, AVERAGE):
        if name in known.files:
            _verify_file(path / name, known.files[name])
    return Checkpoint(path, known.step, manifest)


def load_checkpoint(checkpoint: Checkpoint, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore weights, buffers and optimizer state in place.

    Raises:
        UserError: the checkpoint's tensors do not match the model's.
    """
    moments, parameters = read_safetensors(checkpoint.path / OPTIMIZER), dict(module.named_parameters())
    _refuse(checkpoint, sorted({path.rpartition("/")[0] for path in moments} - set(parameters)))
    shapes = {path: (tensor.shape, parameters[path.rpartition("/")[0]].shape) for path, tensor in moments.items()}
    _refuse(checkpoint, [path for path, (shape, whole) in shapes.items() if shape.numel() != 1 and shape != whole])
    load_weights(checkpoint, module)
    for path, tensor in moments.items():
        name, _, key = path.rpartition("/")
        optimizer.state[parameters[name]][key] = _like(parameters[name], tensor)


def load_weights(checkpoint: Checkpoint, module: nn.Module) -> None:
    """Restore weights and buffers in place.

    Raises:
        UserError: as `load_checkpoint` does.
    """
    _fill(_module_tensors(module), checkpoint, MODEL)


def load_average(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> bool:
    """Fill tensors with the average of the weights. Returns False, and changes nothing, if the checkpoint has none.

    Raises:
        UserError: as `load_checkpoint` does.
    """
    if AVERAGE not in checkpoint.manifest["files"]:
        return False
    _fill(tensors, checkpoint, AVERAGE)
    return True


def _fill(tensors: Mapping[str, Tensor], checkpoint: Checkpoint, file: str) -> None:
    state = read_safetensors(checkpoint.path / file)
    misfits = [name for name, tensor in tensors.items() if name in state and not _is_alike(state[name], tensor)]
    _refuse(checkpoint, [*sorted(set(state) ^ set(tensors)), *misfits])
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(_laid_out(state[name], tensor))


def _is_alike(read: Tensor, tensor: Tensor) -> bool:
    return read.shape == tensor.shape and read.is_floating_point() == tensor.is_floating_point()


def _refuse(checkpoint: Checkpoint, misfits: list[str]) -> None:
    if misfits:
        raise UserError(f"{checkpoint.path} is of another model: {misfits[0]} does not fit; start with another run_dir")


def _write_files(stage: Path, snapshot: Snapshot) -> None:
    files = {}
    for name, tensors in snapshot.files.items():
        save_file(tensors, stage / name)
        files[name] = {"bytes": (stage / name).stat().st_size, "sha256": _sha256(stage / name)}
    manifest = {
        "format_version": FORMAT_VERSION,
        "step": snapshot.step,
        "files": files,
        **snapshot.facts,
    }
    manifest["sha256"] = _seal(manifest)
    (stage / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _verify_file(file: Path, expected: _File) -> None:
    if not file.is_file():
        raise UserError(f"{file.parent}: {file.name} is missing")
    if file.stat().st_size != expected.bytes or _sha256(file) != expected.sha256:
        raise UserError(f"{file.parent}: {file.name} is damaged (its checksum differs)")


def _check_space(folder: Path, snapshot: Snapshot) -> None:
    needed = sum(tensor.nbytes for group in snapshot.files.values() for tensor in group.values()) + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {free / 1e6:.0f} MB are free and the checkpoint of step {snapshot.step} needs {needed / 1e6:.0f}; "
            "make room and continue with --resume"
        )


def _module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers, except for frozen weights of encoders, each storage once: tied weights are
    restored through their first name."""
    tensors: dict[str, Tensor] = {}
    seen = {id(weight) for weight in frozen_weights(module).values()}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def _optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer state by parameter name: "name/exp_avg"."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _like(parameter: nn.Parameter, tensor: Tensor) -> Tensor:
    """Return the tensor in the parameter's memory layout; another layout would be slower and not bit-identical."""
    if tensor.shape != parameter.shape:
        return tensor.to(parameter.device)
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(_laid_out(tensor, parameter))


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _laid_out(whole: Tensor, target: Tensor) -> Tensor:
    """Return this process's shard if the target is sharded; every process reads the whole file, so nothing is sent."""
    if not isinstance(target, DTensor):
        return whole
    return distribute_tensor(whole.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def _name(step: int) -> str:
    return f"step-{step:07d}"


def _step_folders(folder: Path) -> list[Path]:
    """Return the checkpoint folders, newest first."""
    return sorted(folder.glob("step-*"), key=lambda path: (len(path.name), path.name), reverse=True)


def _remove(path: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that an interrupted deletion does not look like a checkpoint."""
    doomed = path.with_name(f".del-{path.name}")
    path.rename(doomed)
    _delete(doomed)


def _delete(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
