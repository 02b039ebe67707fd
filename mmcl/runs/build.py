"""Construction of the objects that a configuration names, with checks before anything slow happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mmcl import rng
from mmcl.config import ComponentConfig, Config, TowerConfig
from mmcl.data.batches.views import ImageView, build_image_views
from mmcl.data.source import Source
from mmcl.encoders.tower import TowerSpec
from mmcl.engine.parameter_groups import freeze_groups
from mmcl.errors import UserError
from mmcl.interop.load import load_model
from mmcl.interop.model import Model
from mmcl.methods import METHODS
from mmcl.methods.method import Method
from mmcl.runs.towers import build_towers, has_trained_weights


def build_method(config: Config) -> Method:
    """Build the towers and the method. The result is deterministic, so it is also the untrained model.

    Raises:
        UserError: `init` cannot be loaded or does not fit the method, or a group of `optim.groups` matches no parameter.
    """
    torch.manual_seed(rng.sample_seed(config.train.seed))
    given = starting_model(config)
    numbers = {} if given is None else _init_args(config, given)
    towers = build_towers(config, given)
    teachers = _teacher(config, towers)
    method: Method = METHODS.build(config.method.name, {**config.method.args, **numbers}, towers, *teachers)
    freeze_groups(method, config.optim.groups)
    method.pretrained = dict(_trained_parts(config, towers, given))
    if given is not None:
        method.from_init = (*_parts(towers, given), *(f"{name} {value:.3g}" for name, value in numbers.items()))
    return method


def _init_args(config: Config, given: Model) -> dict[str, float]:
    """Return the method's arguments that are taken from the initial model, because the configuration does not set them."""
    known = {"temperature": 1 / given.logit_scale if given.logit_scale else None, "bias": given.logit_bias}
    wanted = [name for name in _method_class(config).init_args if name not in config.method.args]
    return {name: value for name in wanted if (value := known[name]) is not None}


def _parts(towers: nn.ModuleDict, given: Model) -> Iterator[str]:
    """Yield the towers, or encoders below new heads, that are those of the initial model."""
    for name, tower in towers.items():
        if name in given.towers and tower.encoder is given.towers[name].encoder:
            yield f"{name} {'tower' if tower is given.towers[name] else 'encoder'}"


def _trained_parts(
    config: Config, towers: nn.ModuleDict, given: Model | None
) -> Iterator[tuple[str, Literal["tower", "encoder"]]]:
    """Yield the towers that start with trained weights: wholly, or in the encoder below a new head."""
    starts: Mapping[str, nn.Module] = {} if given is None else dict(given.towers)
    for name, tower in towers.items():
        asked: TowerConfig | None = getattr(config, name)
        is_of_init = name in starts and tower.encoder is starts[name].encoder
        if is_of_init or (asked and asked.encoder and has_trained_weights(name, asked.encoder)):
            has_new_head = tower is not starts.get(name) and any(True for _ in tower.head.parameters())  # type: ignore[union-attr]
            yield name, "encoder" if has_new_head else "tower"


def as_built(config: Config, method: Method) -> Config:
    """Return the configuration with the encoders and heads that `init` has, where it took the place of configured ones."""
    for name in method.towers if method.from_init else ():
        asked: TowerConfig | None = getattr(config, name)
        spec: TowerSpec | None = method.towers[name].spec  # type: ignore[assignment]
        if asked is not None and asked.encoder is not None and spec is not None:
            encoder = ComponentConfig(name=spec.encoder, args=dict(spec.encoder_args))
            head = ComponentConfig(name=spec.head, args=dict(spec.head_args))
            config = replace(config, **{name: replace(asked, encoder=encoder, head=head)})  # type: ignore[arg-type]
    return config


def _method_class(config: Config) -> type[Method]:
    """Return the class of a run's method. Raises UserError if a plug-in's class is not a `Method`."""
    found: Any = METHODS[config.method.name]
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"method {config.method.name!r} is not a subclass of mmcl.methods.method.Method: derive it from that")
    return found


def _teacher(config: Config, towers: nn.ModuleDict) -> list[Any]:
    """Return a method's arguments after the towers: [teacher's image tower or None] if it takes one, else []."""
    if not _method_class(config).takes_teacher:
        if config.teacher is not None:
            raise UserError(f"method {config.method.name} does not use a teacher: remove `teacher`")
        return []
    if config.teacher is None:
        return [None]
    teacher, student = load_model(config.teacher).towers["image"], towers["image"]
    sizes = [(tower.encoder.preprocess.size, tower.encoder.preprocess.channels) for tower in (teacher, student)]  # type: ignore[union-attr]
    if sizes[0] != sizes[1]:
        raise UserError(f"the teacher {config.teacher} sees images of {sizes[0]} (size, channels), the student of {sizes[1]}")
    return [teacher]


def image_views(config: Config, method: Method) -> dict[str, ImageView]:
    """Return the settings of each image view of a method. Raises UserError for `data.views` that it does not have."""
    names = [view for view, tower in method.views.items() if tower == "image"]
    if not names and config.data.views:
        raise UserError(f"data.views: method {config.method.name} has no image views; remove it")
    if not names:
        return {}
    encoder: Any = method.towers["image"].encoder
    return build_image_views(names, config.data, encoder.preprocess)


def starting_model(config: Config) -> Model | None:
    """Load the model that `init` names; None for random weights.

    Raises:
        UserError: the model does not exist.
    """
    if config.init is None:
        return None
    is_path = ":" not in config.init
    if is_path and config.init_missing == "random" and not Path(config.init).exists():
        return None
    return load_model(config.init)


def class_names(config: Config, method: Method, source: Source) -> Sequence[str] | None:
    """Return a classifier's class names, from its teacher or from the training data; None for other methods.

    Classes without a name are named by their number.
    """
    if method.classes is None:
        return None
    names = (load_model(config.teacher).class_names if config.teacher else source.class_names) or ()
    return [*names[: method.classes], *map(str, range(len(names), method.classes))]
