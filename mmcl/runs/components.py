"""Check of the component names of a configuration against the registries, before anything is built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mmcl.config import ComponentConfig, Config, EvaluatorConfig, SourceConfig, flattened, to_dict
from mmcl.data import SOURCES
from mmcl.data.augment import AUGMENTATIONS
from mmcl.encoders import ADAPTERS, HEADS, IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.evaluate import EVALUATORS
from mmcl.methods import METHODS
from mmcl.methods.method import check_positive
from mmcl.registry import Registry
from mmcl.runs.read_columns import check_columns, evaluated_sources


def check_components(config: Config) -> None:
    """Check every component name and argument of a configuration against its registry.

    Raises:
        UserError: "image.encoder: unknown argument ...", or a column is not used, see `check_columns`.
    """
    for where, registry, component in _components(config):
        registry.check(component.name, component.args, where=where)
    check_positive(config.method.args, "method.args.")
    check_columns(evaluated_sources(config.evaluate), config.evaluate)


def complete_settings(config: Config) -> dict[str, Any]:
    """Return all settings as `flat_settings` does, adding omitted arguments with their defaults."""
    tree = to_dict(config)
    for where, registry, component in _components(config):
        node: Any = tree
        for key in where.split("."):
            node = node[int(key) if isinstance(node, list) else key]
        parameters = registry.parameters(component.name).values()
        defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
        node["args"] = json.loads(json.dumps(defaults | dict(component.args), default=str))
    return flattened(tree)


def _components(config: Config) -> Iterator[tuple[str, Registry, ComponentConfig | SourceConfig | EvaluatorConfig]]:
    """Yield each component that a configuration chooses by name: its setting, its registry and its configuration."""
    yield "method", METHODS, config.method
    for modality, tower, encoders in (("image", config.image, IMAGE_ENCODERS), ("text", config.text, TEXT_ENCODERS)):
        if tower is not None and tower.encoder is not None:
            yield f"{modality}.encoder", encoders, tower.encoder
        if tower is not None and tower.head is not None:
            yield f"{modality}.head", HEADS, tower.head
        if tower is not None and tower.adapt is not None:
            yield f"{modality}.adapt", ADAPTERS, tower.adapt
    augmented = {
        "data": config.data.augment,
        **{f"data.views.{name}": v.augment or () for name, v in config.data.views.items()},
    }
    for where, augment in augmented.items():
        yield from ((f"{where}.augment.{number}", AUGMENTATIONS, one) for number, one in enumerate(augment))
    sources: dict[str, SourceConfig | None] = {**config.training_parts}
    for number, evaluator in enumerate(config.evaluate):
        yield f"evaluate.{number}", EVALUATORS, evaluator
        sources |= {f"evaluate.{number}.data": evaluator.data, f"evaluate.{number}.bank": evaluator.bank}
    for where, source in sources.items():
        if source is not None and source.name != "auto":
            yield where, SOURCES, source
