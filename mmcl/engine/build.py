"""From a configuration to the objects that it names, checked before anything slow happens."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmcl import rng
from mmcl.config import ComponentConfig, Config, EvaluatorConfig, SourceConfig, flattened, to_dict
from mmcl.data import SOURCES
from mmcl.data.augment import AUGMENTATIONS
from mmcl.data.class_order import ClassOrder
from mmcl.data.decode import allow_pixels
from mmcl.data.label_captions import LabelCaptions, has_captions
from mmcl.data.mixed_order import MixedOrder, rows_of_a_round
from mmcl.data.mixture import Mixture
from mmcl.data.open import open_source
from mmcl.data.order import BatchOrder, Order
from mmcl.data.root import data_root
from mmcl.data.source import Source
from mmcl.data.subset import Subset, label_subset, split_source
from mmcl.data.views import ImageView, build_image_views
from mmcl.data.weighted_captions import WeightedCaptions
from mmcl.encoders import HEADS, IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.engine.towers import build_towers
from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS
from mmcl.interop.load import load_model
from mmcl.interop.model import Model
from mmcl.methods import METHODS
from mmcl.methods.method import Method
from mmcl.registry import Registry
from mmcl.types import RunFacts


def check_components(config: Config) -> None:
    """Checks every name and argument of a configuration against its registry.

    Raises:
        UserError: "image.encoder: unknown argument ..."
    """
    for where, registry, component in _components(config):
        registry.check(component.name, component.args, where=where)


def complete_settings(config: Config) -> dict[str, Any]:
    """All settings as `flat_settings`, with the arguments that the configuration leaves out: they have their defaults."""
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
    """Everything that a configuration chooses by name: where it does so, from which registry, and what."""
    yield "method", METHODS, config.method
    for modality, tower, encoders in (("image", config.image, IMAGE_ENCODERS), ("text", config.text, TEXT_ENCODERS)):
        if tower is not None and tower.encoder is not None:
            yield f"{modality}.encoder", encoders, tower.encoder
        if tower is not None and tower.head is not None:
            yield f"{modality}.head", HEADS, tower.head
    augmented = {
        "data": config.data.augment,
        **{f"data.views.{name}": v.augment or () for name, v in config.data.views.items()},
    }
    for where, augment in augmented.items():
        yield from ((f"{where}.augment.{number}", AUGMENTATIONS, one) for number, one in enumerate(augment))
    sources: dict[str, SourceConfig | None] = {**_training_parts(config)}
    for number, evaluator in enumerate(config.evaluate):
        yield f"evaluate.{number}", EVALUATORS, evaluator
        sources |= {f"evaluate.{number}.data": evaluator.data, f"evaluate.{number}.bank": evaluator.bank}
    for where, source in sources.items():
        if source is not None and source.name != "auto":
            yield where, SOURCES, source


def build_source(config: SourceConfig, root: str | None, where: str) -> Source:
    """Opens a data source."""
    return open_source(config.name, config.path, root, config.args, where=where)


def _training_parts(config: Config) -> dict[str, SourceConfig]:
    """The training data by where the configuration names them."""
    if config.data.mix is None:
        return {"data.train": config.data.train}
    return {f"data.mix.{name}": part for name, part in config.data.mix.items()}


def build_training_data(config: Config) -> tuple[Source, Source | None]:
    """The training data, and the share of it that is set aside; None where `data.holdout` is 0. From here on images of up to
    `data.max_pixels` are decoded."""
    if config.data.max_pixels is not None:
        allow_pixels(config.data.max_pixels)
    sources = {where: build_source(part, config.data.root, where) for where, part in _training_parts(config).items()}
    if config.data.templates is not None:
        sources = _captioned(sources, config.data.templates)
    if config.data.caption_weights is not None:
        sources = {where: WeightedCaptions(source, config.data.caption_weights) for where, source in sources.items()}
    split: dict[str, Source] = {}
    if config.data.holdout > 0:
        cache = data_root(config.data.root) / "index"
        for where, source in sources.items():
            sources[where], split[where] = split_source(source, config.data.holdout, config.train.seed, cache=cache)
    source, held_out = _joined(sources), _joined(split) if split else None
    if config.data.labels is not None:
        source = _few_labels(source, config.data.labels, config.train.seed)
    return source, held_out


def _captioned(sources: Mapping[str, Source], templates: Sequence[str]) -> dict[str, Source]:
    """The same, with captions by class for those without any. Raises UserError when all have captions, or one has no labels."""
    if all(has_captions(source) for source in sources.values()):
        raise UserError("data.templates has no use: the training data have captions of their own; remove it")
    return {where: source if has_captions(source) else LabelCaptions(source, templates) for where, source in sources.items()}


def _joined(sources: Mapping[str, Source]) -> Source:
    """The only source, or the mixture of several parts by their own names."""
    if "data.train" in sources:
        return sources["data.train"]
    return Mixture({where.removeprefix("data.mix."): source for where, source in sources.items()})


def _few_labels(source: Source, amount: float, seed: int) -> Subset:
    size: dict[str, Any] = {"share": amount} if amount < 1 else {"per_class": int(amount)}
    return Subset(source, label_subset(required_labels(source, "data.labels"), **size, seed=seed))


def required_labels(source: Source, needed_by: str) -> np.ndarray:
    """Class numbers, int64 [N]. Raises UserError when the training data have none; names who needs them."""
    if source.labels is None:
        raise UserError(
            f"{needed_by} needs labels, and the training data have none: "
            "give data with classes, e.g. a folder with a subfolder for each, or set label_column"
        )
    return source.labels


def build_order(config: Config, source: Source) -> BatchOrder:
    """Which samples make up a step. Raises UserError when the batch does not fit the data."""
    batch_size, seed, samples = config.train.batch_size, config.train.seed, config.data.samples_per_class
    if isinstance(source, Mixture):
        return MixedOrder(source.sizes, _rows_of_a_round(config, source), batch_size, seed)
    if samples is None:
        return Order(len(source), batch_size, seed)
    return ClassOrder(required_labels(source, "data.samples_per_class"), batch_size, samples, seed)


def _rows_of_a_round(config: Config, source: Mixture) -> dict[str, int]:
    parts = config.data.mix or {}
    weights = {name: part.weight for name, part in parts.items() if part.weight is not None}
    epochs = {name: part.epochs for name, part in parts.items() if part.epochs is not None}
    return rows_of_a_round(source.sizes, weights=weights or None, epochs=epochs)


def check_data(config: Config, method: Method, source: Source) -> None:
    """Refuses, before the first step, data without the labels by which a method finds its positives, and weights of captions
    that no view shows.

    Raises:
        UserError: names the method.
    """
    if config.data.caption_weights is not None and "text" not in method.views.values():
        raise UserError(f"data.caption_weights has no use: method {config.method.name} shows no captions; remove it")
    if method.positives == "labels":
        classes = int(required_labels(source, f"method {config.method.name}").max()) + 1
        if method.classes is not None and classes > method.classes:
            raise UserError(
                f"image.head gives {method.classes} logits and the training data have {classes} classes: "
                f"set image.head.args.embed_dim to {classes}"
            )


def build_method(config: Config) -> Method:
    """Builds the towers and the method, always the same for a configuration: this is also the untrained model.

    Raises:
        UserError: `init` does not load, or does not fit the method.
    """
    torch.manual_seed(rng.sample_seed(config.train.seed))
    given = starting_model(config)
    method_args: dict[str, Any] = dict(config.method.args)
    accepted = inspect.signature(METHODS[config.method.name]).parameters.keys()
    if given is not None:
        known = {"temperature": 1 / given.logit_scale if given.logit_scale else None, "bias": given.logit_bias}
        for name in known.keys() & accepted:
            if known[name] is not None:
                method_args.setdefault(name, known[name])
    towers = build_towers(config, given)
    teachers = _teacher(config, towers, accepted)
    method: Method = METHODS.build(config.method.name, method_args, towers, *teachers)
    return method


def _teacher(config: Config, towers: nn.ModuleDict, accepted: Collection[str]) -> list[Any]:
    """What a method gets besides its towers: the teacher's image tower, where it distils one."""
    if config.teacher is None:
        return []
    if "teacher" not in accepted:
        raise UserError(f"method {config.method.name} has no use for a teacher: remove `teacher`")
    teacher, student = load_model(config.teacher).towers["image"], towers["image"]
    sizes = [(tower.encoder.preprocess.size, tower.encoder.preprocess.channels) for tower in (teacher, student)]  # type: ignore[union-attr]
    if sizes[0] != sizes[1]:
        raise UserError(f"the teacher {config.teacher} sees pictures of {sizes[0]} (size, channels), the student of {sizes[1]}")
    return [teacher]


def image_views(config: Config, method: Method) -> dict[str, ImageView]:
    """How each image view of a method shows the pictures. Raises UserError for `data.views` that it does not have."""
    names = [view for view, tower in method.views.items() if tower == "image"]
    if not names and config.data.views:
        raise UserError(f"data.views: method {config.method.name} has no image views; remove it")
    if not names:
        return {}
    encoder: Any = method.towers["image"].encoder
    return build_image_views(names, config.data, encoder.preprocess)


def run_facts(config: Config, order: BatchOrder) -> RunFacts:
    """The size and length of a run."""
    total_steps = config.train.steps or order.steps(config.train.epochs or 1)
    return RunFacts(global_batch=order.batch_size, total_steps=total_steps, steps_per_epoch=order.steps(1))


def starting_model(config: Config) -> Model | None:
    """The model that `init` names; None for random weights.

    Raises:
        UserError: there is no such model.
    """
    if config.init is None:
        return None
    is_path = ":" not in config.init
    if is_path and config.init_missing == "random" and not Path(config.init).exists():
        return None
    return load_model(config.init)


def class_names(config: Config, method: Method, source: Source) -> Sequence[str] | None:
    """What a classifier tells apart: the classes of its teacher, or of the training data; a number where there is no name. None
    for a method that knows no classes."""
    if method.classes is None:
        return None
    names = (load_model(config.teacher).class_names if config.teacher else source.class_names) or ()
    return [*names[: method.classes], *map(str, range(len(names), method.classes))]


def build_model(method: Method) -> Model:
    """What a method gives its users: its towers, in evaluation mode, and how it turns cosines into logits."""
    scale, bias = method.logit_scale, method.logit_bias
    return Model(
        method.towers,
        logit_scale=None if scale is None else float(scale.detach()),
        logit_bias=None if bias is None else float(bias.detach()),
        embedding=method.embedding,
        device=next(method.parameters()).device,
    )
