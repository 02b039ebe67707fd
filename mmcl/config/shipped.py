"""The configurations that come with mmcl, by name: those of `configs/` in a clone, which a wheel holds as `mmcl/configs/`."""

from __future__ import annotations

import os
from pathlib import Path

from mmcl.errors import unknown_name

SUFFIXES = (".yaml", ".yml")


def shipped_configs() -> dict[str, Path]:
    """Name -> file: "clip_emoji" for `clip_emoji.yaml`, "eval/emoji" for the suite `eval/emoji.yaml`."""
    package = Path(__file__).resolve().parents[1]
    folder = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("*.yaml"))}


def shipped_config(name: str, *, where: str = "") -> Path:
    """The file of a shipped configuration. Raises UserError where there is none of that name."""
    configs = shipped_configs()
    if name not in configs:
        raise unknown_name("configuration", name, configs, where=where)
    return configs[name]


def find_config(path_or_name: str | Path, *, beside: Path = Path(), where: str = "") -> Path:
    """What a user means by a configuration: a file, or a shipped configuration by its name.

    Args:
        path_or_name: an existing file or what ends in .yaml is a path, anything else a name.
        beside: the folder to which a path is relative.
        where: put in front of an error.

    Raises:
        UserError: there is neither a file nor a shipped configuration of that name. Whether there is a file at a path that
            ends in .yaml is left to the reader.
    """
    path = beside / path_or_name
    if path.suffix in SUFFIXES or os.path.isfile(path):
        return path
    return shipped_config(str(path_or_name), where=where)


def summary(config: Path) -> str:
    """One line about a shipped configuration: its first line, a comment."""
    return config.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
