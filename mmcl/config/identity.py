"""Settings that determine what a run learns, and their digest, which `--resume` compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mmcl.config.convert import to_dict
from mmcl.config.schema import Config
from mmcl.config.setting import decides


def flat_settings(config: Config) -> dict[str, Any]:
    """All settings as {"optim.lr": 0.001, ...}, with JSON values."""
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
    """Inverse of `flattened`."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *above, last = key.split(".")
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value
    return tree


def config_hash(config: Config) -> str:
    """Hex digest of the decisive settings: equal for two runs that learn the same model from the same data."""
    decisive = {key: value for key, value in flat_settings(config).items() if is_decisive(key)}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def is_decisive(key: str) -> bool:
    """True if a setting of `flat_settings` determines what is learned; a resume requires equal decisive settings."""
    return decides(Config, key)


def is_within(key: str, path: str) -> bool:
    """True if a dotted key is `path` or below it."""
    return f"{key}.".startswith(f"{path}.")
