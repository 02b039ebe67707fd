"""`mmcl list`: the components that a configuration may name."""

from __future__ import annotations

import inspect
import json as json_module
from typing import Any, Literal

from tyro.conf import Positional

from mmcl.cli.output import show
from mmcl.terminal import printable_line

Kind = Literal["all", "configs", "methods", "losses", "encoders", "heads", "sources", "augmentations", "evaluators"]


def list_components(kind: Positional[Kind] = "all", /, *, args: bool = False, json: bool = False) -> None:
    """List what a configuration may name, and the shipped configurations: mmcl list encoders --args

    Args:
        kind: Which of them.
        args: Show each entry's arguments with their defaults too (imports what implements them).
        json: Print JSON: {kind: {name: {argument: default}}}, arguments only with --args; and {"configs": {name: what it is}}.
    """
    from mmcl.config.shipped import shipped_configs, summary
    from mmcl.registry import Registry

    kinds = {title: registry for title, registry in _registries().items() if kind in ("all", title.split()[-1])}

    def arguments(registry: Registry, name: str) -> dict[str, Any]:
        return {key: _default(p) for key, p in registry.parameters(name).items()} if args else {}

    table: dict[str, dict[str, Any]] = {
        title: {name: arguments(registry, name) for name in registry} for title, registry in kinds.items()
    }
    if kind in ("all", "configs"):
        table["configs"] = {name: summary(file) for name, file in shipped_configs().items()}
    show(json_module.dumps(table, indent=1, default=str) if json else _text(table))


def _text(table: dict[str, dict[str, Any]]) -> str:
    lines = []
    for title, entries in table.items():
        lines.append(title)
        width = max(17, *map(len, entries)) + 1
        for name, about in entries.items():
            shown = about if isinstance(about, str) else ", ".join(f"{key}={value}" for key, value in about.items())
            lines.append(f"  {name:<{width}}{printable_line(shown)}".rstrip())
    return "\n".join(lines)


def _registries() -> dict[str, Any]:
    from mmcl.data import SOURCES
    from mmcl.data.augment import AUGMENTATIONS
    from mmcl.encoders import HEADS, IMAGE_ENCODERS, TEXT_ENCODERS
    from mmcl.evaluate import EVALUATORS
    from mmcl.losses import LOSSES
    from mmcl.methods import METHODS

    return {
        "methods": METHODS,
        "losses": LOSSES,
        "image encoders": IMAGE_ENCODERS,
        "text encoders": TEXT_ENCODERS,
        "heads": HEADS,
        "sources": SOURCES,
        "augmentations": AUGMENTATIONS,
        "evaluators": EVALUATORS,
    }


def _default(parameter: inspect.Parameter) -> Any:
    return "(required)" if parameter.default is parameter.empty else parameter.default
