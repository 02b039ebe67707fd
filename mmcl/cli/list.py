"""`mmcl list`: the components that a configuration may name, the shipped configurations, and the models that can be loaded."""

from __future__ import annotations

import inspect
import json as json_module
import shutil
import sys
from typing import Any, Literal

from mmcl.cli.output import show
from mmcl.errors import UserError
from mmcl.interop.catalog import catalog
from mmcl.registry import Registry
from mmcl.terminal import printable_line

Kind = Literal[
    "all",
    "configs",
    "methods",
    "losses",
    "encoders",
    "heads",
    "adapters",
    "sources",
    "augmentations",
    "evaluators",
    "exports",
    "models",
]


def list_components(kind: Kind = "all", word: str = "", /, *, args: bool = False, json: bool = False) -> None:
    """List names for configurations, and models that can be loaded.

    Examples:
        mmcl list
        mmcl list encoders --args
        mmcl list models ViT-B-32

    The models are those of the newest open_clip, timm and torchvision when this version of mmcl was made. Later ones load
    by name, too.

    Args:
        kind: all, configs, methods, losses, encoders, heads, adapters, sources, augmentations, evaluators, exports or models.
            "all" leaves out the models, which are thousands.
        word: Only names that contain this.
        args: Show each entry's arguments with their defaults. This imports what implements them.
        json: Print JSON: {kind: {name: description}}. With --args {kind: {name: {argument: default}}}; of models, {kind: {name:
            {fact: value}}}.
    """
    table = catalog() if kind == "models" else _components(kind, args)
    found = {
        title: {name: about for name, about in named.items() if word.lower() in name.lower()} for title, named in table.items()
    }
    found = {title: named for title, named in found.items() if named}
    if not found:
        raise UserError(f"no {'name' if kind == 'all' else kind} with {word!r} in it; `mmcl list {kind}` lists all")
    show(json_module.dumps(found, indent=1, default=str, ensure_ascii=False) if json else _text(found))


def _components(kind: str, args: bool) -> dict[str, dict[str, Any]]:
    from mmcl.config.shipped import shipped_configs, summary

    table: dict[str, dict[str, Any]] = {
        title: {name: _arguments(registry, name) if args else registry.summary(name) for name in registry}
        for title, registry in _registries().items()
        if kind in ("all", title.split()[-1])
    }
    if kind in ("all", "configs"):
        table["configs"] = {name: summary(file) for name, file in shipped_configs().items()}
    return table


def _arguments(registry: Registry, name: str) -> dict[str, Any]:
    parameters = registry.parameters(name)
    return {key: "(required)" if p.default is inspect.Parameter.empty else p.default for key, p in parameters.items()}


def _text(table: dict[str, dict[str, Any]]) -> str:
    """Returns a line for each entry, cut to the width of a terminal; a pipe gets all of it."""
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    columns = shutil.get_terminal_size().columns if on_terminal else None
    lines = []
    for title, entries in table.items():
        lines.append(title)
        width = max(17, *map(len, entries)) + 1
        for name, about in entries.items():
            facts = about if isinstance(about, str) else ", ".join(f"{key}={value}" for key, value in about.items())
            line = f"  {name:<{width}}{printable_line(facts)}".rstrip()
            lines.append(line if columns is None or len(line) <= columns else f"{line[: columns - 1]}…")
    return "\n".join(lines)


def _registries() -> dict[str, Registry]:
    from mmcl.data import SOURCES
    from mmcl.data.augment import AUGMENTATIONS
    from mmcl.encoders import ADAPTERS, HEADS, IMAGE_ENCODERS, TEXT_ENCODERS
    from mmcl.evaluate import EVALUATORS
    from mmcl.interop.export import EXPORTS
    from mmcl.losses import LOSSES
    from mmcl.methods import METHODS

    return {
        "methods": METHODS,
        "losses": LOSSES,
        "image encoders": IMAGE_ENCODERS,
        "text encoders": TEXT_ENCODERS,
        "heads": HEADS,
        "adapters": ADAPTERS,
        "sources": SOURCES,
        "augmentations": AUGMENTATIONS,
        "evaluators": EVALUATORS,
        "exports": EXPORTS,
    }
