"""Names of models: what may be one, and suggestions for an unknown one. No library is imported for that."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from mmcl.config.shipped import shipped_configs
from mmcl.errors import UserError, unknown_name
from mmcl.interop.catalog import catalog

_HUB_URL = re.compile(r"(?:https?://)?(?:www\.)?huggingface\.co/([^/]+/[^/?#]+)")
_PARTS = ("model", "checkpoints")
"""Folders of a run."""
_RUNS = Path("runs")
"""Where runs are by default."""
_PLACES = ("hf-hub", "local-dir")
ONNX = "onnx"
PREFIXES = ("open_clip", "hf", "timm", "torchvision", ONNX)
"""Of the libraries whose models are loaded by name, and of exported graphs."""


def may_be_model(name: str) -> bool:
    """True if a word can name a model: it has a library's prefix, is a folder, or may be an index, which names its model."""
    return name.partition(":")[0] in PREFIXES or Path(name).expanduser().is_dir() or may_be_index(name)


def may_be_index(name: str) -> bool:
    """True if a word has the ending that the documentation gives to every index."""
    return name.rstrip("/").endswith(".mmcl")


def saved_with_preprocess(name: str | Path) -> UserError:
    """Builds the error for preprocessing that is given to a model which states its own."""
    return UserError(f"{name} was saved with its preprocessing; remove preprocess")


def unknown_model(name: str, *, holds: str) -> UserError:
    """Builds the error for a name that is not a model folder and has no known prefix.

    Args:
        name: the name as given by the user.
        holds: name of the file that identifies a model folder.
    """
    if Path(name, "config.yaml").is_file():
        return unfinished_run(Path(name))
    prefix, colon, rest = name.partition(":")
    if colon and not rest and prefix in PREFIXES:
        return UserError(f"{name}: the name after the prefix is missing; see mmcl.load_model for what it takes")
    if "runs" in Path(name).parts[:-1] or runs_in(Path(name)):
        return unknown_run(Path(name))
    suggestions = list(_suggested(name))
    if suggestions:
        return UserError(f"{name}: neither a run nor a model folder; did you mean {' or '.join(suggestions)}?")
    if colon and re.fullmatch(r"[A-Za-z][\w-]+", prefix):
        return unknown_name("prefix", prefix, PREFIXES, where=name)
    named = ", ".join(f"{one}:NAME" for one in PREFIXES)
    return UserError(f"{name}: neither a run nor a model folder; give one that holds {holds}, or {named}")


def is_unfinished(path: Path) -> bool:
    """True for a run directory without a model."""
    return (path / "config.yaml").is_file() and not (path / "model").is_dir()


def unfinished_run(path: Path) -> UserError:
    """Builds the error for a run that is still training, or that was stopped."""
    again = f"mmcl train {path / 'config.yaml'} --run_dir {path} --resume"
    return UserError(f"{path}: a run without a model; it is not finished (mmcl watch {path}); if it was stopped: {again}")


def unknown_run(path: Path) -> UserError:
    """Builds the error for a path that is not a run directory: the runs in it, the most similar one, or what makes it."""
    if inside := runs_in(path):
        return UserError(f"{path}: holds runs; give one of them, such as {path / inside[0]}")
    if path.is_file() and (run := next((one for one in path.parents if one.name and _is_run(one)), None)):
        return UserError(f"{path}: a file of a run; give the run, {run}")
    if path.exists():
        return UserError(f"{path}: not a run directory; one has config.yaml and model/")
    if nearest := _nearest_folder(path):
        return UserError(f"{path}: no such run; did you mean {nearest}?")
    if path.name not in shipped_configs():
        return UserError(f"{path}: no such run; `mmcl train` makes one")
    return UserError(f"{path}: no such run; `mmcl train {path.name}` makes it")


def runs_in(path: Path) -> list[str]:
    """Names of the runs and model folders in a folder."""
    return sorted(one.name for one in path.iterdir() if _is_run(one)) if path.is_dir() else []


def _is_run(path: Path) -> bool:
    return any((path / at).is_dir() for at in _PARTS)


def _suggested(name: str) -> Iterator[str]:
    prefix, _, rest = name.partition(":")
    url = _HUB_URL.match(name)
    if url:
        yield f"hf:{url[1]}"
    elif prefix in _PLACES and rest:
        yield from (f"open_clip:{name}", f"timm:{name}")
    elif nearest := _nearest_folder(Path(name)):
        yield nearest
    elif name in runs_in(_RUNS):
        yield str(_RUNS / name)
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not Path(name).exists():
        yield from _suggested_libraries(name)


def _nearest_folder(path: Path) -> str | None:
    """The most similarly named model folder or run next to `path`, if any."""
    if path.exists():
        return None
    found = difflib.get_close_matches(path.name, runs_in(path.parent), n=1)
    return str(path.parent / found[0]) if found else None


def _suggested_libraries(name: str) -> Iterator[str]:
    names = [one for models in catalog().values() for one in models]
    weights = next((one for one in names if f"{one}/".startswith(f"open_clip:{name}/")), None)
    if weights is not None:
        yield weights
    elif "/" in name:
        yield f"hf:{name}"
    if any(f"{one}.".startswith(f"timm:{name}.") for one in names):
        yield f"timm:{name}"
    if f"torchvision:{name}" in names:
        yield f"torchvision:{name}"
