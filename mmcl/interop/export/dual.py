"""CLIP-like models as transformers has them: one configuration, and the weights of both towers in one state dict."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmcl.encoders.open_clip import OpenClipImage, OpenClipText
from mmcl.encoders.transformers import TransformersImage, TransformersText, is_dual
from mmcl.errors import UserError
from mmcl.interop.export.clip_names import config_for_transformers, to_transformers
from mmcl.interop.export.folding import fold_head, head_of
from mmcl.interop.export.target import instead
from mmcl.interop.model import Model

_PROJECTIONS = {"image": ("visual_projection",), "text": ("text_projection", "text_model.head")}
"""Last layers of the towers, linear ones, by which a linear head can be multiplied."""


@dataclass(frozen=True, slots=True)
class Dual:
    """A model of both towers.

    Attributes:
        config: configuration of transformers, with its `model_type`.
        weights: the state dict of that model, without the parameters of the logits.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]


def as_dual(model: Model, target: str) -> Dual:
    """Returns a model in the form of transformers, with linear heads multiplied into its projections.

    Args:
        model: the model.
        target: name of the target, for errors.

    Raises:
        UserError: the towers are not those of a CLIP-like model of transformers, or a head cannot be part of it.
    """
    dual = _towers_as_dual(model, target)
    for name in ("image", "text"):
        head, kind = head_of(model, name), dual.config["model_type"]
        refusal = f"{target}: the {name} head {type(head).__name__} has no place in a model of type {kind!r}"
        if fold_head(dual.weights, _PROJECTIONS[name], head, refusal=f"{refusal}; try --to {instead(model)}"):
            _set_width(dual.config, int(head.embed_dim))  # type: ignore[arg-type]
    return dual


def _towers_as_dual(model: Model, target: str) -> Dual:
    encoders = [model.towers[name].encoder for name in ("image", "text") if name in model.towers]
    match encoders:
        case [TransformersImage() as image, TransformersText() as text] if is_dual(image.model):
            if image.rebuild_args["config"] == text.rebuild_args["config"]:
                weights = {**image.model.state_dict(), **text.model.state_dict()}
                return Dual(copy.deepcopy(dict(image.rebuild_args["config"])), weights)
        case [OpenClipImage() as image, OpenClipText() as text] if not text.is_hf and not hasattr(image.visual, "trunk"):
            try:
                config = config_for_transformers(open_clip_config(image, text), end_id=text.tokenizer.end_id)
            except UserError as error:
                raise UserError(f"{error}; try --to {instead(model)}") from None
            return Dual(config, to_transformers(open_clip_weights(image, text)))
    towers = " and ".join(f"{name} tower {tower.encoder_name!r}" for name, tower in model.towers.items())
    raise UserError(f"{target} has no model of the {towers}; try --to {instead(model)}")


def open_clip_config(image: OpenClipImage, text: OpenClipText) -> dict[str, Any]:
    """Returns the configuration of both towers of open_clip. Raises UserError if they are not of one model."""
    own, other = (dict(encoder.rebuild_args["config"]) for encoder in (image, text))
    for key in ("embed_dim", "quick_gelu"):
        if bool(own.get(key)) != bool(other.get(key)) or own.get(key, False) != other.get(key, False):
            raise UserError(f"the towers have different {key}: {own.get(key)} and {other.get(key)}")
    shared = {key: own[key] for key in ("embed_dim", "quick_gelu") if own.get(key)}
    return copy.deepcopy({**shared, "vision_cfg": own["vision_cfg"], "text_cfg": other["text_cfg"]})


def open_clip_weights(image: OpenClipImage, text: OpenClipText) -> dict[str, Tensor]:
    """Returns the weights of both towers of open_clip, with "visual." and "text." in front."""
    parts: Mapping[str, nn.Module] = {"visual": image.visual, "text": text.text}
    return {f"{prefix}.{name}": tensor for prefix, part in parts.items() for name, tensor in part.state_dict().items()}


def _set_width(config: dict[str, Any], width: int) -> None:
    """Sets the width of the embeddings in a configuration, wherever it stands."""
    for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
        for key in ("projection_dim", "projection_size"):
            if key in part:
                part[key] = width
