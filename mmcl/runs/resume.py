"""Record of everything a run depends on, saved at its start and with each checkpoint; `--resume` checks it."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import mmcl
from mmcl.config import AnchorConfig, Config, config_hash, flat_settings, from_dict, is_decisive, is_within, unflattened
from mmcl.data.derived.subset import Subset
from mmcl.data.identity import spread_rows
from mmcl.encoders.adapters import frozen_weights
from mmcl.engine.checkpoint import MANIFEST, Checkpoint
from mmcl.errors import UserError
from mmcl.files.atomic import write_file
from mmcl.files.digest import digest
from mmcl.files.untrusted import read_json
from mmcl.runs.components import complete_settings
from mmcl.runs.plan import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator

COMPARED = 1_000
"""Number of samples whose images and texts every resume compares."""
FILE = "identity.json"
_KINDS = {
    "settings": dict,
    "frozen": dict,
    "start": dict | None,
    "teachers": dict | None,
    "clusters": str | None,
    "data": str,
    "images": str | None,
    "all_images": str | None,
    "environment": dict | None,
}
_DATA = "data.train"
"""Name of the training data in the comparison of settings."""
_LIBRARIES = {
    **{name: name for name in ("accelerate", "datasets", "numpy", "pyarrow", "safetensors", "timm", "tokenizers", "torch")},
    **{"PIL": "pillow", "open_clip": "open_clip_torch", "torchvision": "torchvision", "transformers": "transformers"},
}
"""Libraries that may affect the last bits of the results: module -> distribution."""


def identify(plan: Plan, accelerator: Accelerator) -> dict[str, Any]:
    """Return the settings, frozen weights, training data and environment of a run as JSON values. All processes call this.

    The weights are those that checkpoints leave out, and those of the start that anchors keep the run near to, as digests by
    tower; of stored teachers, they are digests of the shards, with the scale; of hard batches, of the rows that are compared.
    The data are represented by the source's `fingerprint` and by the images and texts of up to 1,000 evenly spaced samples, or
    of all samples with `verify_data`.
    """
    config, method, source = plan.config, plan.method, plan.source
    with accelerator.main_process_first():  # The others use what the first has cached.
        images = Subset(source, spread_rows(len(source), COMPARED)).identity
        all_images = source.identity if config.verify_data else None
    return {
        "config_hash": config_hash(config),
        "settings": flat_settings(without_start_settings(config)),
        "frozen": {name: _digest(frozen) for name, tower in method.towers.items() if (frozen := frozen_weights(tower))},
        "start": {name: _digest(method.towers[name].state_dict()) for name in method.pretrained}
        if _is_anchored(config)
        else {},
        "teachers": {one.key: one.teacher.scale for one in plan.teachers},
        "clusters": plan.hard_batches.key if plan.hard_batches else None,
        "data": source.fingerprint,
        "images": images,
        "all_images": all_images,
        "environment": _environment(accelerator),
    }


def refuse_existing_run(run_dir: Path) -> None:
    """Raise UserError if a folder holds a run, which a new one would overwrite."""
    if (run_dir / "config.yaml").exists():
        raise UserError(f"{run_dir} holds a run already: continue it with --resume, or give another --run_dir")


def without_start_settings(config: Config) -> Config:
    """Return the configuration without the settings that apply to a single start."""
    return dataclasses.replace(config, resume=False, verify_data=False, allow_change=())


def compare(saved: dict[str, Any], now: dict[str, Any], config: Config) -> list[str]:
    """Describe how a run differs from the one that it continues, one line per difference.

    Raises:
        UserError: a difference would change its order or its curve, and `allow_change` does not name it.
    """
    before, after = _with_defaults(saved["settings"], now["settings"])
    changed = {key: f"{key}: {before.get(key)} -> {after.get(key)}" for key in sorted({*before, *after})}
    changed = {key: line for key, line in changed.items() if before.get(key) != after.get(key)}
    if (difference := _changed_data(saved, now)) is not None:
        changed[_DATA] = f"{_DATA}: {difference}"
    refused = {
        key: line
        for key, line in changed.items()
        if (is_decisive(key) or key == _DATA) and not any(is_within(key, path) for path in config.allow_change)
    }
    if refused:
        raise UserError(
            f"{config.run_dir} cannot be continued with other settings ({'; '.join(refused.values())}): restore them, start a "
            f"new run with another --run_dir, or allow it with --allow_change {' '.join(refused)}"
        )
    for name in sorted({*saved["frozen"], *now["frozen"]}):
        _refuse_other_weights("frozen weights", name, saved["frozen"].get(name), now["frozen"].get(name), config)
    start, start_now = (facts.get("start") or {} for facts in (saved, now))
    for name in sorted(start.keys() & start_now.keys()):
        _refuse_other_weights("anchors", name, start[name], start_now[name], config)
    if (saved.get("teachers") or {}) != (now.get("teachers") or {}):
        raise UserError(
            f"{config.run_dir} cannot be continued with other rows of teachers: restore the folders of data.embeddings, or "
            "start a new run with another --run_dir"
        )
    clusters = saved.get("clusters"), now.get("clusters")
    if all(clusters) and clusters[0] != clusters[1] and _DATA not in changed:
        raise UserError(
            f"{config.run_dir} cannot be continued with clusters of other rows: restore the folder of "
            "data.hard_batches.embeddings, or start a new run with another --run_dir"
        )
    if config.verify_data and saved.get("all_images") is None:
        raise UserError(
            f"{config.run_dir}: --verify_data needs a run that was started with it; else {COMPARED:,} samples are compared"
        )
    return [*changed.values(), *_changed_environment(saved, now)]


def _refuse_other_weights(what: str, name: str, before: object, after: object, config: Config) -> None:
    """Raise UserError if weights that checkpoints leave out are not those of the saved run."""
    if before != after:
        raise UserError(
            f"{config.run_dir} cannot be continued on other {what}: the {name} tower of "
            f"{config.init or 'this configuration'} had the fingerprint {str(before)[:8]} and has {str(after)[:8]}; restore "
            "it, or start a new run with another --run_dir"
        )


def write_identity(run_dir: Path, identity: dict[str, Any]) -> None:
    """Save the identity of a run, in case it is stopped before its first checkpoint."""
    write_file(run_dir / FILE, json.dumps(identity, indent=1) + "\n")


def read_identity(run_dir: Path, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Read a run's identity from its checkpoint, or from its own file if there is none. Raises UserError if unreadable."""
    where = run_dir / FILE if checkpoint is None else checkpoint.path / MANIFEST
    identity = read_json(where) if checkpoint is None else checkpoint.manifest.get("identity")
    if not isinstance(identity, dict) or not all(isinstance(identity.get(key), kind) for key, kind in _KINDS.items()):
        raise UserError(f"{where} is damaged; start without --resume, in another --run_dir")
    return identity


def saved_precision(run_dir: Path) -> str | None:
    """Return the precision with which a run was started; None if there is no run. Raises UserError if it cannot be read."""
    exists = (run_dir / FILE).exists()
    return read_identity(run_dir, None)["settings"].get("train.precision") if exists else None


def _is_anchored(config: Config) -> bool:
    return config.train.anchor != AnchorConfig()


def _digest(weights: Mapping[str, Tensor]) -> str:
    return digest(*(digest(name, str(p.dtype), list(p.shape), _bytes(p)) for name, p in weights.items()))


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _with_defaults(*settings: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """Add omitted settings with their defaults, so that a default that is given explicitly does not count as a change.

    Settings written by another version of mmcl are returned unchanged.
    """
    try:
        return [complete_settings(from_dict(Config, unflattened(flat), "settings")) for flat in settings]
    except UserError:
        return settings


def _changed_data(saved: dict[str, Any], now: dict[str, Any]) -> str | None:
    if saved["data"] != now["data"]:
        return f"the training data changed, {saved['data'][:8]} -> {now['data'][:8]}"
    both = [(key, saved[key], now[key]) for key in ("images", "all_images") if saved.get(key) and now[key]]
    differing = next((key for key, before, after in both if before != after), None)
    return None if differing is None else "the training data changed: other images under the same list"


def _changed_environment(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Describe changes of the environment: they affect only the last bits of the results, so the run may continue."""
    before, after = saved.get("environment") or {}, now["environment"]
    return [f"{key}: {before[key]} -> {after[key]}" for key in after if key in before and before[key] != after[key]]


def _environment(accelerator: Accelerator) -> dict[str, Any]:
    device = accelerator.device
    versions = {name: metadata.version(name) for module, name in _LIBRARIES.items() if module in sys.modules}
    return {
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "python": platform.python_version(),
        "mmcl": mmcl.__version__,
        **versions,
    }
