"""Configurations shipped with mmcl, by name: `configs/` in a clone, `mmcl/configs/` in a wheel."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from mmcl.errors import UserError

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
        raise UserError(f"{f'{where}: ' if where else ''}unknown configuration {name!r}; {nearest(name)}")
    return configs[name]


def nearest(name: str) -> str:
    """Says which shipped configurations a wrong name may mean, and what lists them all."""
    found = difflib.get_close_matches(name.lower(), shipped_configs(), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, found))}? " * bool(found) + "shipped ones have names: `mmcl list configs`"


def find_config(path_or_name: str | Path, *, beside: Path = Path(), where: str = "") -> Path:
    """Finds a configuration given as a file or as the name of a shipped one.

    Args:
        path_or_name: a path if the file exists or it ends in .yaml, else a name.
        beside: the folder to which a path is relative.
        where: prefix of error messages.

    Raises:
        UserError: it is a folder, or there is neither a file nor a shipped configuration with that name. A path that ends in
            .yaml is not checked for existence here; reading it is.
    """
    path = beside / os.path.expanduser(path_or_name)
    if os.path.isdir(path) and str(path_or_name) not in shipped_configs():
        raise UserError(f"{where}: {path} is a folder" if where else _instead_of_folder(path))
    if path.suffix in SUFFIXES or os.path.isfile(path):
        return path
    return shipped_config(str(path_or_name), where=where)


def _instead_of_folder(folder: Path) -> str:
    """Returns what to do about a folder in place of a configuration: a run, configurations in it, or data."""
    if (folder / "config.yaml").is_file():
        return f"{folder} is a run directory; its configuration is {folder / 'config.yaml'}, and --resume continues the run"
    if beside := sorted(path for suffix in SUFFIXES for path in folder.glob(f"*{suffix}")):
        return f"{folder} is a folder; give one of its configurations, such as {beside[0]}"
    return f"{folder} is a folder, not a configuration; to train on it: mmcl train clip_finetune --data.train.path {folder}"


def summary(config: Path) -> str:
    """One-line description of a shipped configuration: its first line, a comment."""
    return config.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
