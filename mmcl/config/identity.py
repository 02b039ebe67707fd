"""Which settings decide what a run learns, and the digest of them: what `--resume` compares."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from mmcl.config.convert import to_dict
from mmcl.config.schema import Config

_WITHOUT_EFFECT = (
    "allow_change",
    "run_dir",
    "resume",
    "verify_data",
    "evaluate",
    "data.root",
    "data.train.path",  # the data themselves are compared
    "data.cache",
    "data.workers",
    "data.max_pixels",
    "data.max_bad_fraction",
    "data.max_bad_consecutive",
    "train.max_skipped",
    "train.fsdp",
    "train.micro_batch",
    "train.on_nonfinite",
    "train.threads",
    "train.log_every",
    "train.save_every",
    "train.save_minutes",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.best_is",
    "train.patience",
    "train.export",
    "train.timeout_seconds",
    "train.trackers",
)


def flat_settings(config: Config) -> dict[str, Any]:
    """All settings as {"optim.lr": 0.001, ...}, JSON values."""
    return flattened(to_dict(config))


def flattened(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"optim": {"lr": 0.001}} -> {"optim.lr": 0.001}; lists and empty mappings are values."""
    flat: dict[str, Any] = {}

    def flatten(value: Any, path: str) -> None:
        if isinstance(value, dict) and value:
            for key, child in value.items():
                flatten(child, f"{path}.{key}" if path else key)
        else:
            flat[path] = value

    flatten(tree, "")
    return flat


def unflattened(flat: Mapping[str, Any]) -> dict[str, Any]:
    """What `flattened` was made of."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *above, last = key.split(".")
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value
    return tree


def config_hash(config: Config) -> str:
    """Hex digest of the decisive settings: equal for two runs that learn the same, given the same data."""
    decisive = {key: value for key, value in flat_settings(config).items() if is_decisive(key)}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def is_decisive(key: str) -> bool:
    """Whether a setting of `flat_settings` decides what is learned; a run continues only under equal ones."""
    is_place = re.fullmatch(r"data\.mix\.\w+\.path", key)  # the data themselves are compared
    return not is_place and not any(is_within(key, path) for path in _WITHOUT_EFFECT)


def is_within(key: str, path: str) -> bool:
    """Whether a dotted key is `path` or lies below it."""
    return f"{key}.".startswith(f"{path}.")
