"""Check of the component names of a configuration against the registries, before anything is built."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmcl.config import ComponentConfig, Config, EvaluatorConfig, SourceConfig, flattened, to_dict
from mmcl.data import SOURCES
from mmcl.data.augment import AUGMENTATIONS
from mmcl.encoders import ADAPTERS, HEADS, IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS
from mmcl.methods import METHODS
from mmcl.methods.method import check_positive
from mmcl.registry import Registry


def check_components(config: Config) -> None:
    """Check every component name and argument of a configuration against its registry.

    Raises:
        UserError: "image.encoder: unknown argument ...", or an argument is not used, see `check_targets`.
    """
    for where, registry, component in _components(config):
        registry.check(component.name, component.args, where=where)
    check_positive(config.method.args, "method.args.")
    check_targets(evaluated_sources(config.evaluate), config.evaluate)
    _check_targets_of_training(config)


def evaluated_sources(evaluators: Sequence[EvaluatorConfig], where: str = "evaluate") -> dict[str, SourceConfig | None]:
    """Return the data and banks of evaluators, by the setting of their arguments: "evaluate.0.data.args."."""
    return {
        f"{where}.{number}.{name}.args.": source
        for number, evaluator in enumerate(evaluators)
        for name, source in (("data", evaluator.data), ("bank", evaluator.bank))
    }


def check_targets(sources: Mapping[str, SourceConfig | None], evaluators: Sequence[EvaluatorConfig]) -> None:
    """Raise UserError for `target_columns` of evaluation data that no evaluator reads.

    Args:
        sources: by what a message puts before the name of the argument, see `evaluated_sources`.
        evaluators: all that run.
    """
    read = [one.data for one in evaluators if _reads_targets(one)]
    for where, source in sources.items():
        if source is not None and _targets(source) and source not in read:
            raise UserError(
                f"{where}target_columns is not used: no evaluator of these data asks its questions; remove it, or choose "
                "prompt_pairs"
            )


def _check_targets_of_training(config: Config) -> None:
    """Raise UserError for `target_columns` of training data whose held-out share no evaluator asks, or not of each part."""
    named = {where: _targets(source) for where, source in config.training_parts.items()}
    first = next((where for where, columns in named.items() if columns), None)
    if first is None:
        return
    if not any(_reads_targets(one) and one.data is None for one in config.evaluate):
        raise UserError(
            f"{first}.args.target_columns is not used: training reads no answers; remove it, or set data.holdout and evaluate "
            "prompt_pairs on the share that is held out"
        )
    for where, columns in named.items():
        if columns != named[first]:
            raise UserError(
                f"{where}.args.target_columns {'differ from' if columns else 'is missing, unlike'} those of {first} "
                f"({', '.join(named[first])}): name the same in every part, as their held-out shares are evaluated together"
            )


def _reads_targets(evaluator: EvaluatorConfig) -> bool:
    return bool(getattr(EVALUATORS[evaluator.name], "reads_targets", True))  # only `needs` says that one does not


def _targets(source: SourceConfig) -> list[str]:
    """Return the names of the target columns of a source, sorted, before its arguments have been checked."""
    given = source.args.get("target_columns") or []
    return sorted(map(str, given)) if isinstance(given, list | tuple) else [str(given)]


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
