"""Checkpoints: weights, optimiser and one step number, in safetensors and JSON. Order and randomness need no state.

A checkpoint is written beside its place and renamed into it when every byte is on disk, so that a folder named step-* is always
whole; its manifest holds the size and the sha256 of each file, because safetensors loads a flipped bit without a word.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmcl.errors import UserError

FORMAT_VERSION = 1
_MANIFEST = "MANIFEST.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    step: int
    manifest: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, module: nn.Module, optimiser: torch.optim.Optimizer, *, identity: dict[str, Any], keep: int
) -> Path:
    """Writes `folder/step-<step>` atomically, then removes all but the newest `keep`.

    Args:
        identity: what must be equal on resume (configuration hash, ...), JSON values.
    """
    final = folder / f"step-{step:07d}"
    stage = folder / f".tmp-{final.name}"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    save_file(_module_tensors(module), stage / "model.safetensors")
    save_file(_optimiser_tensors(module, optimiser), stage / "optimizer.safetensors")
    files = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(stage.iterdir())}
    manifest = {"format_version": FORMAT_VERSION, "step": step, "files": files, "identity": identity}
    (stage / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for file in stage.iterdir():
        _sync(file)
    _sync(stage)
    shutil.rmtree(final, ignore_errors=True)
    stage.rename(final)
    _sync(folder)
    for old in _step_folders(folder)[keep:]:
        shutil.rmtree(old)
    return final


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose every file is whole, or None. Says which ones it passed over."""
    for path in _step_folders(folder):
        try:
            return verify(path)
        except UserError as error:
            print(f"warning: {error}; trying the checkpoint before it", flush=True)
    return None


def verify(path: Path) -> Checkpoint:
    """Reads the manifest and compares every file with it.

    Raises:
        UserError: names the file that is missing, cut short or changed.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        files, version = manifest["files"], manifest["format_version"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{path}: {_MANIFEST} is missing or damaged") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format {version}; this version of mmcl reads {FORMAT_VERSION}")
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{path}: {name} is missing")
        if file.stat().st_size != expected["bytes"] or _sha256(file) != expected["sha256"]:
            raise UserError(f"{path}: {name} is damaged (its checksum differs)")
    return Checkpoint(path, manifest["step"], manifest)


def load_checkpoint(checkpoint: Checkpoint, module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Restores weights, buffers and optimiser state in place.

    Raises:
        UserError: the checkpoint holds other tensors than the model.
    """
    state = load_file(checkpoint.path / "model.safetensors")
    own = _module_tensors(module)
    if set(state) != set(own) or any(state[name].shape != tensor.shape for name, tensor in own.items()):
        differing = sorted(set(state) ^ set(own)) or [name for name, t in own.items() if state[name].shape != t.shape]
        raise UserError(f"{checkpoint.path} is of another model: {differing[0]} does not fit; start with another run_dir")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
    _load_optimiser(load_file(checkpoint.path / "optimizer.safetensors"), module, optimiser)


def _module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each storage once: tied weights are restored through their first name."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach().contiguous() if not tensor.is_contiguous() else tensor.detach()
    return tensors


def _optimiser_tensors(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state by parameter name: "name/exp_avg"."""
    return {
        f"{name}/{key}": torch.as_tensor(value).contiguous()
        for name, parameter in module.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def _load_optimiser(tensors: dict[str, Tensor], module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    parameters = dict(module.named_parameters())
    for path, tensor in tensors.items():
        name, key = path.rsplit("/", 1)
        parameter = parameters[name]
        # A memory layout other than the parameter's would be right, but not bit for bit as fast nor as before.
        value = tensor.to(parameter.device)
        if tensor.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        optimiser.state[parameter][key] = value


def _step_folders(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
