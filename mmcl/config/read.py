"""Reading of configurations: YAML files, which may extend a `base`, and command-line flags that override them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mmcl.config.convert import from_dict
from mmcl.config.flags import check_flag, parse_flags
from mmcl.config.plain_yaml import read_yaml
from mmcl.config.schema import Config
from mmcl.config.shipped import find_config, nearest
from mmcl.errors import UserError

T = TypeVar("T")


def load_config(path: str | Path, flags: Sequence[str] = (), settings: Mapping[str, Any] | None = None) -> Config:
    """Reads a configuration and applies flags to it.

    Args:
        path: a YAML file, or the name of a shipped configuration such as "clip_emoji". Settings that it omits come from its
            `base`, if it has one: a file in the same folder, or a shipped configuration.
        flags: as on a command line, e.g. `["--optim.lr", "3e-4", "--resume"]`. Several values form a list; a flag without a
            value is true. A component whose name is changed by a flag keeps no arguments but those that other flags give.
        settings: values by dotted key, such as {"optim.lr": 3e-4}; they take precedence over the file, and flags over them.

    Returns:
        The checked configuration; its `run_dir` is set.

    Raises:
        UserError: names the file, the key and the fix.

    Example:
        >>> config = load_config("clip_emoji", ["--optim.lr", "3e-4"])
        >>> config.optim.lr, config.run_dir
        (0.0003, 'runs/clip_emoji')
    """
    path = find_config(path)
    with _refused_if_too_deep(path):
        tree = _read_settings(path)
        for given in (settings or {}, parse_flags(flags)):
            for key in sorted(given, key=lambda key: not key.endswith(".name")):
                check_flag(key, given[key])
                _set_path(tree, key.split("."), given[key])
        config = from_dict(Config, tree, str(path))
    return config if config.run_dir else dataclasses.replace(config, run_dir=f"runs/{path.stem}")


def read_as(schema: type[T], path: Path) -> T:
    """Reads a dataclass from a YAML file. Raises UserError that names the file, the key and the fix."""
    with _refused_if_too_deep(path):
        return from_dict(schema, _read_mapping(path), str(path))


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, an invalid date, too many digits
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must contain a mapping of settings, not {type(tree).__name__}")
    return tree


@contextmanager
def _refused_if_too_deep(path: Path) -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise UserError(f"{path}: a value is nested too deeply, or contains itself") from None


def _read_settings(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Reads the settings of a file, merged over those of its `base`; `above` are the files that extend this one."""
    if not path.is_file():
        beside = difflib.get_close_matches(path.name, [one.name for one in path.parent.glob("*.y*ml")], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(str(path.with_name(name)) for name in beside)}?" if beside else nearest(path.stem)
        raise UserError(f"there is no configuration {path}; {hint}")
    tree = _read_mapping(path)
    base = tree.pop("base", None)
    if base is None:
        return tree
    below = find_config(base, beside=path.parent, where=f"{path}: base") if isinstance(base, str) else None
    if below is None or below in (*above, path):
        raise UserError(f"{path}: base is {base!r}; name another configuration, which is not based on this one")
    return _merged(_read_settings(below, (*above, path)), tree)


def _merged(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Merges mappings key by key. A component with another name replaces that of the base, since its arguments differ."""
    merged = dict(base)
    for key, value in top.items():
        below: Any = base.get(key)
        mappings = isinstance(below, dict) and isinstance(value, dict)
        renamed = mappings and value.get("name", below.get("name")) != below.get("name")
        merged[key] = _merged(below, value) if mappings and not renamed else value
    return merged


def _set_path(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets one leaf; a number in the path indexes a list, and 0 begins one. A component of another name loses its arguments,
    as in `_merged`."""
    node: Any = tree
    for depth, key in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(node, list):
            if not key.isdecimal() or int(key) >= len(node):
                raise UserError(f"--{'.'.join(path)}: {'.'.join(path[:depth])} has entries 0 to {len(node) - 1}, not {key!r}")
            if last:
                node[int(key)] = value
            node = node[int(key)]
            continue
        if not isinstance(node, dict):
            raise UserError(f"--{'.'.join(path)}: {'.'.join(path[:depth])} is a single value and has no {key!r}")
        if last and key == "name" and node.get(key, value) != value:
            node.pop("args", None)
        if last:
            node[key] = value
        elif node.get(key) is None:
            node[key] = [{}] if path[depth + 1] == "0" else {}
        node = node[key]
