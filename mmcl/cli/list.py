"""`mmcl list`: what a configuration may name."""

from __future__ import annotations

import inspect
import json as json_module
from typing import Any, Literal

from tyro.conf import Positional

from mmcl.terminal import say, show

Kind = Literal["all", "methods", "encoders", "heads", "sources", "augmentations", "evaluators"]


def list_components(kind: Positional[Kind] = "all", /, *, args: bool = False, json: bool = False) -> None:
    """List methods, encoders, heads, data sources, augmentations and evaluators: mmcl list encoders --args

    Args:
        kind: Which of them.
        args: Show each entry's arguments with their defaults too (imports what implements them).
        json: Print JSON: {kind: {name: {argument: default}}}; arguments only with --args.
    """
    from mmcl.registry import Registry

    kinds = {title: registry for title, registry in _registries().items() if kind in ("all", title.split()[-1])}

    def arguments(registry: Registry, name: str) -> dict[str, Any]:
        return {key: _default(p) for key, p in registry.parameters(name).items()} if args else {}

    table = {title: {name: arguments(registry, name) for name in registry} for title, registry in kinds.items()}
    if json:
        show(json_module.dumps(table, indent=1, default=str))
        return
    for title, entries in table.items():
        say(title)
        for name, values in entries.items():
            say(f"  {name:<18}{', '.join(f'{key}={value}' for key, value in values.items())}".rstrip())


def _registries() -> dict[str, Any]:
    from mmcl.data import SOURCES
    from mmcl.data.augment import AUGMENTATIONS
    from mmcl.encoders import HEADS, IMAGE_ENCODERS, TEXT_ENCODERS
    from mmcl.evaluate import EVALUATORS
    from mmcl.methods import METHODS

    return {
        "methods": METHODS,
        "image encoders": IMAGE_ENCODERS,
        "text encoders": TEXT_ENCODERS,
        "heads": HEADS,
        "sources": SOURCES,
        "augmentations": AUGMENTATIONS,
        "evaluators": EVALUATORS,
    }


def _default(parameter: inspect.Parameter) -> Any:
    return "(required)" if parameter.default is parameter.empty else parameter.default
