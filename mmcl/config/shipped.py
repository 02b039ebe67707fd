"""Configurations shipped with mmcl, by name: `configs/` in a clone, `mmcl/configs/` in a wheel."""

from __future__ import annotations

import os
from pathlib import Path

from mmcl.errors import unknown_name

SUFFIXES = (".yaml", ".yml")


def shipped_configs() -> dict[str, Path]:
    """Maps names to files: "clip_emoji" to `clip_emoji.yaml`, "eval/emoji" to the suite `eval/emoji.yaml`."""
    package = Path(__file__).resolve().parents[1]
    folder = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("*.yaml"))}


def shipped_config(name: str, *, where: str = "") -> Path:
    """Returns the file of a shipped configuration. Raises UserError for an unknown name."""
    configs = shipped_configs()
    if name not in configs:
        raise unknown_name("configuration", name, configs, where=where)
    return configs[name]


def find_config(path_or_name: str | Path, *, beside: Path = Path(), where: str = "") -> Path:
    """Finds a configuration given as a file or as the name of a shipped one.

    Args:
        path_or_name: a path if the file exists or it ends in .yaml, else a name.
        beside: the folder to which a path is relative.
        where: prefix of error messages.

    Raises:
        UserError: there is neither a file nor a shipped configuration with that name. A path that ends in .yaml is not checked
            for existence here; reading it is.
    """
    path = beside / path_or_name
    if path.suffix in SUFFIXES or os.path.isfile(path):
        return path
    return shipped_config(str(path_or_name), where=where)


def summary(config: Path) -> str:
    """One-line description of a shipped configuration: its first line, a comment."""
    return config.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
