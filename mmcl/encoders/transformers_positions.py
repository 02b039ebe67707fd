"""Position embeddings of vision models of transformers for images of another size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from mmcl.errors import UserError
from mmcl.logging import get_logger, note
from mmcl.preprocess import Preprocess

logger = get_logger(__name__)

_RESAMPLE = "interpolate_pos_encoding"
"""Method of embeddings that resample their positions, and argument of models that do so on request only."""
_TABLES = ("position_embedding.weight", "position_embeddings")


def fitted_to_size(model: Any, preprocess: Preprocess, name: str, *, resize: bool) -> Any:
    """Return a model for images of this size: `resample_positions` if that is asked for.

    Raises:
        UserError: the position embeddings are of another size, and the model does not resample them itself.
    """
    if resize:
        return resample_positions(model, preprocess, name)
    size = getattr(getattr(model.config, "vision_config", model.config), "image_size", None)
    if isinstance(size, int) and size != preprocess.size and any(map(_is_fixed, model.modules())):
        raise UserError(
            f"{name}: images of {preprocess.height} x {preprocess.width}, and position embeddings of {size} x {size} pixels; "
            "give the model's own size, or set resize_positions"
        )
    return model


def arguments_at_size(encode: Callable[..., Any], pixels_BCHW: Tensor, preprocess: Preprocess) -> dict[str, bool]:
    """Return the arguments with which a model, or a method of it, resamples its positions for images of another size."""
    is_own = tuple(pixels_BCHW.shape[2:]) == (preprocess.height, preprocess.width)
    on_request = _RESAMPLE in signature(getattr(encode, "forward", encode)).parameters
    return {_RESAMPLE: True} if on_request and not is_own else {}


def _is_fixed(part: nn.Module) -> bool:
    """True for embeddings that are resampled on request only."""
    return hasattr(part, _RESAMPLE) and _RESAMPLE in signature(part.forward).parameters


@torch.no_grad()
def resample_positions(model: Any, preprocess: Preprocess, name: str) -> Any:
    """Return a model for images of another size, with its position embeddings resampled as the library does
    (`interpolate_pos_encoding`: bicubic); the model itself if the size is its own.

    Args:
        model: a vision model, or a CLIP-like one.
        preprocess: preprocessing with the wanted size.
        name: the model, for messages.

    Raises:
        UserError: the model has no such embeddings, or the image is no square of whole patches.
    """
    config = copy.deepcopy(model.config)
    vision = getattr(config, "vision_config", config)
    if getattr(vision, "image_size", None) == preprocess.size:
        return model
    found = [(path, part) for path, part in model.named_modules() if hasattr(part, _RESAMPLE)]
    if len(found) != 1 or not isinstance(getattr(vision, "image_size", None), int):
        raise UserError(f"{name}: {type(model).__name__} has no position embeddings to resample; remove resize_positions")
    [(path, part)] = found
    patch = vision.patch_size
    if preprocess.height != preprocess.width or preprocess.height % patch:
        size = f"{preprocess.height} x {preprocess.width}"
        raise UserError(f"{name}: size {size} is no square of whole patches of {patch}; give another one")
    state, before = model.state_dict(), vision.image_size
    key = next(f"{path}.{table}" for table in _TABLES if f"{path}.{table}" in state)
    old = state[key]
    classes = old.shape[-2] - (before // patch) ** 2
    tokens = (preprocess.height // patch) ** 2 + classes
    table = part.interpolate_pos_encoding(old.new_zeros(1, tokens, old.shape[-1]), preprocess.height, preprocess.width)
    state[key] = table.reshape(*old.shape[:-2], tokens, old.shape[-1])
    vision.image_size = preprocess.height
    resized: nn.Module = transformers.AutoModel.from_config(config, dtype=torch.float32)
    resized.load_state_dict(state)
    note(logger, f"{name}: {key} is resampled from {list(old.shape)} to {list(state[key].shape)}")
    return resized.train(model.training)
