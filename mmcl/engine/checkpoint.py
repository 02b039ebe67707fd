"""Checkpoints: weights, their average, optimizer state and step number, in safetensors and JSON. Order and randomness need no
state.

Frozen weights of encoders are left out: every start of a run builds them again, and compares them with those of the first
(`mmcl.runs.resume`).

A folder named step-* is always complete (`mmcl.engine.checkpoint_writer`). Its manifest holds the size and sha256 of each file,
because safetensors silently loads a flipped bit, and a sha256 of itself.

Each process of a run with sharded weights writes its own rows of them, so every file comes in as many shards. The rows of a
tensor follow each other in the order of the shards; what is not sharded is in the first. Readers see whole tensors, so a
checkpoint fits any layout of the weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from mmcl.config import from_dict
from mmcl.encoders.adapters import frozen_weights
from mmcl.errors import UserError
from mmcl.files.untrusted import read_json, read_safetensors
from mmcl.logging import get_logger

logger = get_logger(__name__)

FORMAT_VERSION = 1
MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.safetensors", "average.safetensors"
MANIFEST = "MANIFEST.json"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copy of a checkpoint's contents, so that training can continue while it is written.

    Attributes:
        step: the number of steps done.
        model, optimizer: tensors by name, on the CPU.
        facts: JSON values for the manifest.
        average: moving average of the weights, likewise; None without one.
        shard, shards: number of this process's shard, from 0, and their number.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Tensor] | None = None
    shard: int = 0
    shards: int = 1

    @property
    def files(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of each file."""
        files = {MODEL: self.model, OPTIMIZER: self.optimizer}
        if self.average is not None:
            files[AVERAGE] = self.average
        return {shard_name(name, self.shard, self.shards): tensors for name, tensors in files.items()}

    @property
    def nbytes(self) -> int:
        """Size of the tensors."""
        return sum(tensor.nbytes for tensors in self.files.values() for tensor in tensors.values())


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    step: int
    manifest: dict[str, Any]

    def files(self, name: str) -> list[Path]:
        """Return the paths of a file's shards; none if the checkpoint does not have it."""
        names = shard_names(name, self.manifest.get("shards", 1))
        return [self.path / shard for shard in names if shard in self.manifest["files"]]


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
    shards: int = 1

    def __post_init__(self) -> None:
        if self.step < 0 or self.shards < 1:
            raise UserError(f"{MANIFEST}: step is {self.step}, shards is {self.shards}")
        missing = next((name for name in self.needed() if name not in self.files), None)
        if missing:
            raise UserError(f"{MANIFEST}: it lists no {missing}")

    def needed(self) -> Iterator[str]:
        """Yield the names of the shards of all files."""
        has_average = any(name.startswith(Path(AVERAGE).stem) for name in self.files)
        for name in (MODEL, OPTIMIZER, AVERAGE) if has_average else (MODEL, OPTIMIZER):
            yield from shard_names(name, self.shards)


def shard_name(name: str, shard: int, shards: int) -> str:
    """Return the name of a shard of a file; the file's own if there is only one."""
    return name if shards == 1 else name.replace(".", f".shard-{shard + 1}-of-{shards}.")


def shard_names(name: str, shards: int) -> Iterator[str]:
    """Yield the names of a file's shards in the order of their rows."""
    return (shard_name(name, shard, shards) for shard in range(shards))


def take_snapshot(
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    average: Mapping[str, Tensor] | None = None,
    **facts: Any,
) -> Snapshot:
    """Copy trained parameters, persistent buffers, the state of the optimizer, and the average of the weights if there is one.

    If the weights are sharded, all processes must call this. Each copies its own rows of them, and the first also what is not
    sharded; nothing is sent.
    """
    mesh = next((weight.device_mesh for weight in module.parameters() if isinstance(weight, DTensor)), None)
    shard, shards = (mesh.get_rank(), mesh.size()) if mesh else (0, 1)

    def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = ((name, tensor.to_local() if isinstance(tensor, DTensor) else tensor) for name, tensor in tensors.items())
        return {name: _copy(part) for name, part in own if shard == 0 or (isinstance(tensors[name], DTensor) and len(part))}

    model, state = copied(_module_tensors(module)), copied(_optimizer_tensors(module, optimizer))
    return Snapshot(step, model, state, facts, None if average is None else copied(average), shard, shards)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint whose files are all intact, or None. Logs the ones it skips."""
    for path in step_folders(folder):
        try:
            return verify(path)
        except UserError as error:
            logger.warning(f"{error}; trying the checkpoint before it")
    return None


def checkpoint_of_step(folder: Path, step: int) -> Checkpoint:
    """Return the checkpoint of a step. Raises UserError when it is missing or damaged."""
    return verify(folder / step_name(step))


def set_newer_aside(checkpoint: Checkpoint) -> None:
    """Rename damaged checkpoints newer than this one, so that they do not displace intact ones among the newest."""
    folders = step_folders(checkpoint.path.parent)
    for path in folders[: folders.index(checkpoint.path)]:
        aside = path.with_name(f"damaged-{path.name}")
        if aside.exists():
            delete(aside)
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
    if manifest.pop("sha256", None) != seal(manifest):
        raise UserError(f"{path}: {MANIFEST} is damaged (its checksum differs)")
    try:
        known = from_dict(_Manifest, {key: manifest[key] for key in ("step", "files", "shards") if key in manifest}, MANIFEST)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if path.name != step_name(known.step):
        raise UserError(f"{path} holds step {known.step}: was the folder renamed?")
    for name in known.needed():
        _verify_file(path / name, known.files[name])
    return Checkpoint(path, known.step, manifest)


def load_checkpoint(checkpoint: Checkpoint, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore weights, buffers and optimizer state in place.

    Raises:
        UserError: the checkpoint's tensors do not match the model's.
    """
    moments, parameters = _Tensors(checkpoint, OPTIMIZER), dict(module.named_parameters())
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
    if not checkpoint.files(AVERAGE):
        return False
    _fill(tensors, checkpoint, AVERAGE)
    return True


class _Tensors(Mapping[str, Tensor]):
    """The tensors of a file, mapped from the disk. The shards of a tensor are joined whenever it is asked for, and not kept.

    Raises:
        UserError: shards do not fit together.
    """

    def __init__(self, checkpoint: Checkpoint, file: str):
        self._parts: dict[str, list[Tensor]] = {}
        for shard in checkpoint.files(file):
            for name, part in read_safetensors(shard).items():
                self._parts.setdefault(name, []).append(part)
        for name, parts in self._parts.items():
            if len(parts) > 1 and (parts[0].ndim == 0 or len({(part.dtype, part.shape[1:]) for part in parts}) > 1):
                raise UserError(f"{checkpoint.path} is damaged: the shards of {name} do not fit together")

    def __getitem__(self, name: str) -> Tensor:
        parts = self._parts[name]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _fill(tensors: Mapping[str, Tensor], checkpoint: Checkpoint, file: str) -> None:
    state = _Tensors(checkpoint, file)
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


def _verify_file(file: Path, expected: _File) -> None:
    if not file.is_file():
        raise UserError(f"{file.parent}: {file.name} is missing")
    if file.stat().st_size != expected.bytes or sha256(file) != expected.sha256:
        raise UserError(f"{file.parent}: {file.name} is damaged (its checksum differs)")


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


def _laid_out(whole: Tensor, target: Tensor) -> Tensor:
    """Return this process's shard if the target is sharded; every process reads the whole file, so nothing is sent."""
    if not isinstance(target, DTensor):
        return whole
    return distribute_tensor(whole.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def step_name(step: int) -> str:
    """Return the name of the folder of a step's checkpoint."""
    return f"step-{step:07d}"


def step_folders(folder: Path) -> list[Path]:
    """Return the checkpoint folders, newest first."""
    return sorted(folder.glob("step-*"), key=lambda path: (len(path.name), path.name), reverse=True)


def delete(path: Path) -> None:
    """Delete a file or folder; of a link, only the link."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)


def seal(manifest: dict[str, Any]) -> str:
    """Return the sha256 of a manifest without its own."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def sha256(file: Path) -> str:
    """Return the sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
