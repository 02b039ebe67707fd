"""Averages of the weights of models that started from the same one."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from mmcl.data.source import Source
from mmcl.encoders.adapters import merge_adapters, merged_state_dict
from mmcl.encoders.tower import ImageEncoder, Tower
from mmcl.errors import UserError
from mmcl.interop.model import Model
from mmcl.logging import get_logger

logger = get_logger(__name__)

_BATCH = 256
"""Largest number of rows over which batch norm computes its statistics."""

_BatchNorm = nn.modules.batchnorm._BatchNorm


def merge(models: Sequence[Model], weights: Sequence[float] | None = None, *, statistics: Source | None = None) -> Model:
    """Returns the model whose weights are the weighted mean of those of several models.

    Between a model and its fine-tuned copy (WiSE-FT, Wortsman et al., "Robust fine-tuning of zero-shot models", 2022, eq. 1),
    some mean is often better than both on the new data, and forgets less of the old. The mean of several fine-tuned copies is a
    model soup (Wortsman et al., "Model soups", 2022). Both need models that were trained from the same weights.

    Floating-point tensors are averaged in float64, integer tensors are those of the last model. The inverse temperature is
    averaged in the log domain, where it is learned. Averaged weights have other activations than any of the models, so that
    statistics of batch norm that differ between the models have to be computed again (Izmailov et al., "Averaging Weights Leads
    to Wider Optima and Better Generalization", 2018, section 3.2).

    Args:
        models: two or more, with equal architecture, preprocessing and tokenizer.
        weights: one per model, which sum to 1; None for equal ones. With a negative weight the mean is an extrapolation.
        statistics: training data from which statistics of batch norm are computed again, as means over all images and captions;
            None averages them, with a warning where they differ.

    Returns:
        A new model, on the device of the first.

    Raises:
        UserError: the models differ in more than their weights, the weights are not numbers that sum to 1, or `statistics` has
            too few samples or an image that cannot be read.

    Example:
        >>> from mmcl import load_model
        >>> model = load_model("runs/clip_emoji")
        >>> same = merge([model, model], [0.25, 0.75])
        >>> bool((same.encode_text("a cat") == model.encode_text("a cat")).all())
        True
    """
    if len(models) < 2:
        raise UserError(f"a merge needs two or more models, not {len(models)}")
    shares = _checked_weights(weights, len(models))
    for number, model in enumerate(models[1:], start=2):
        _refuse_difference(models[0], model, number)
    models = [model for model, share in zip(models, shares, strict=True) if share != 0]
    shares = [share for share in shares if share != 0]
    towers = copy.deepcopy(models[0].towers)
    merge_adapters(towers)
    towers.load_state_dict(_mean_of_tensors([merged_state_dict(model.towers) for model in models], shares))
    merged = Model(
        towers,
        logit_scale=_mean_scale([model.logit_scale for model in models], shares),
        logit_bias=_mean([model.logit_bias for model in models], shares),
        embedding=models[0].embedding,
        class_names=models[0].class_names,
        matryoshka_dims=[dim for dim in models[0].matryoshka_dims if all(dim in one.matryoshka_dims for one in models)],
        provenance={"merged": [{"fingerprint": m.fingerprint, "weight": w} for m, w in zip(models, shares, strict=True)]},
        device=models[0].device,
    )
    if statistics_differ(models):
        if statistics is None:
            logger.warning("statistics of batch norm were averaged, which is inexact; give training data as `statistics`")
        else:
            _recompute_statistics(merged, statistics)
    return merged


def statistics_differ(models: Sequence[Model]) -> bool:
    """True if the models have batch norm with different statistics, which the mean of their weights does not determine."""
    layers = [[one for tower in model.towers.values() for one in _batch_norms(tower)] for model in models]
    return any(
        not torch.equal(getattr(own, name).cpu(), getattr(other, name).cpu())
        for others in layers[1:]
        for own, other in zip(layers[0], others, strict=True)
        for name in ("running_mean", "running_var")
    )


def _recompute_statistics(model: Model, source: Source) -> None:
    """Computes the statistics of batch norm in place, as means over all images and captions of a source."""
    for name, tower in model.towers.items():
        layers = list(_batch_norms(tower))
        if not layers:
            continue
        before = [(layer.momentum, layer.training) for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a cumulative mean over the batches, in place of a moving one
            layer.train()
        try:
            _encode_all(model, name, source)
        finally:
            for layer, (momentum, training) in zip(layers, before, strict=True):
                layer.momentum = momentum
                layer.train(training)


def _encode_all(model: Model, name: str, source: Source) -> None:
    """Encodes the images or captions of a source in batches of nearly equal size, since every batch counts alike."""
    items = source if name == "image" else [caption for index in range(len(source)) for caption in source[index].captions]
    if len(items) < 2:
        raise UserError(f"statistics of batch norm need two or more images and captions, but there are {len(items)}")
    size = math.ceil(len(items) / math.ceil(len(items) / _BATCH))
    if name == "image":
        model.encode_image(items, batch_size=size)
    else:
        model.encode_text(items, batch_size=size)  # type: ignore[arg-type]


def _batch_norms(module: nn.Module) -> Iterator[_BatchNorm]:
    return (one for one in module.modules() if isinstance(one, _BatchNorm) and one.track_running_stats)


def _checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1 / count] * count
    if len(weights) != count:
        raise UserError(f"there are {len(weights)} weights for {count} models; give one for each")
    if not all(map(math.isfinite, weights)) or abs(sum(weights) - 1) > 1e-6:
        raise UserError(f"the weights {', '.join(f'{one:g}' for one in weights)} do not sum to 1")
    return list(weights)


def _refuse_difference(first: Model, other: Model, number: int) -> None:
    """Raises UserError if the models differ in anything but the values of their weights."""
    before, after = _facts(first), _facts(other)
    for what in dict.fromkeys([*before, *after]):
        if before.get(what) != after.get(what):
            values = f": {before.get(what)} and {after.get(what)}" if what in _SHORT_FACTS else ""
            raise UserError(
                f"models 1 and {number} differ in their {what}{values}; only models with the same start can be merged"
            )


_SHORT_FACTS = ("towers", "output", "encoder of the image tower", "encoder of the text tower")
"""Facts whose values are short enough for a message."""


def _facts(model: Model) -> dict[str, Any]:
    """What has to be equal, by its name in words."""
    facts: dict[str, Any] = {
        "towers": ", ".join(sorted(model.towers)),
        "output": model.embedding,
        "classes": model.class_names,
    }
    for name, tower in model.towers.items():
        facts |= _facts_of_tower(name, tower)  # type: ignore[arg-type]
    facts |= {
        "temperature (one has none)": model.logit_scale is None,
        "bias of the logits (one has none)": model.logit_bias is None,
    }
    return facts


def _facts_of_tower(name: str, tower: Tower) -> dict[str, Any]:
    spec = tower.spec
    facts: dict[str, Any] = {
        f"encoder of the {name} tower": None if spec is None else spec.encoder,
        f"head of the {name} tower": None if spec is None else (spec.head, dict(spec.head_args)),
        f"weights of the {name} tower": {key: (value.shape, value.dtype) for key, value in merged_state_dict(tower).items()},
    }
    if isinstance(tower.encoder, ImageEncoder):
        facts["preprocessing of the images"] = asdict(tower.encoder.preprocess)
    else:
        facts["tokenizer"] = tower.encoder.tokenizer.to_json()  # type: ignore[union-attr,operator]
    return facts


def _mean_of_tensors(states: Sequence[dict[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    return {
        name: _mean_of([state[name] for state in states], weights) if last.is_floating_point() else last
        for name, last in states[-1].items()
    }


def _mean_of(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    if all(torch.equal(tensors[0], other) for other in tensors[1:]):
        return tensors[0]  # exactly, whatever the weights
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor.to(total), alpha=weight)
    return total.to(tensors[0].dtype)


def _mean(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(value * weight for value, weight in zip(numbers, weights, strict=True)) if numbers else None


def _mean_scale(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    if len(set(values)) == 1:
        return values[0]  # exactly
    mean = _mean([None if value is None else math.log(value) for value in values], weights)
    return None if mean is None else math.exp(mean)
