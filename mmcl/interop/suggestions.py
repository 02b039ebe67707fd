"""Names of models: what may be one, and suggestions for an unknown one. No library is imported for that."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from mmcl.errors import UserError, unknown_name
from mmcl.interop.catalog import catalog

_HUB_URL = re.compile(r"(?:https?://)?(?:www\.)?huggingface\.co/([^/]+/[^/?#]+)")
_PLACES = ("hf-hub", "local-dir")
ONNX = "onnx"
PREFIXES = ("open_clip", "hf", "timm", "torchvision", ONNX)
"""Of the libraries whose models are loaded by name, and of exported graphs."""


def may_be_model(name: str) -> bool:
    """True if a word can name a model: it has a library's prefix, or is a folder."""
    return name.partition(":")[0] in PREFIXES or Path(name).expanduser().is_dir()


def saved_with_preprocess(name: str | Path) -> UserError:
    """Builds the error for preprocessing that is given to a model which states its own."""
    return UserError(f"{name} was saved with its preprocessing; remove preprocess")


def unknown_model(name: str, *, holds: str) -> UserError:
    """Builds the error for a name that is not a model folder and has no known prefix.

    Args:
        name: the name as given by the user.
        holds: name of the file that identifies a model folder.
    """
    config = Path(name, "config.yaml")
    if config.is_file():
        return UserError(f"{name}: a run without a model; it is not finished: mmcl train {config} --run_dir {name} --resume")
    prefix, colon, rest = name.partition(":")
    if colon and not rest and prefix in PREFIXES:
        return UserError(f"{name}: the name after the prefix is missing; see mmcl.load_model for what it takes")
    suggestions = list(_suggested(name))
    if suggestions:
        return UserError(f"{name}: neither a run nor a model folder; did you mean {' or '.join(suggestions)}?")
    if colon and re.fullmatch(r"[A-Za-z][\w-]+", prefix):
        return unknown_name("prefix", prefix, PREFIXES, where=name)
    named = ", ".join(f"{one}:NAME" for one in PREFIXES)
    return UserError(f"{name}: neither a run nor a model folder; give one that holds {holds}, or {named}")


def _suggested(name: str) -> Iterator[str]:
    prefix, _, rest = name.partition(":")
    url = _HUB_URL.match(name)
    if url:
        yield f"hf:{url[1]}"
    elif prefix in _PLACES and rest:
        yield from (f"open_clip:{name}", f"timm:{name}")
    elif nearest := _nearest_folder(Path(name)):
        yield nearest
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not Path(name).exists():
        yield from _suggested_libraries(name)


def _nearest_folder(path: Path) -> str | None:
    """The most similarly named model folder or run next to `path`, if any."""
    if not path.parent.is_dir() or path.exists():
        return None
    beside = [folder.name for folder in path.parent.iterdir() if any((folder / at).is_dir() for at in ("model", "checkpoints"))]
    found = difflib.get_close_matches(path.name, beside, n=1)
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
