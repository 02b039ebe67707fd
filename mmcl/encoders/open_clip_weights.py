"""Checkpoints for open_clip towers: older models, Google's and Apple's own formats, other resolutions."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import open_clip
from open_clip.convert import convert_state_dict, load_big_vision_weights
from open_clip.model import resize_pos_embed, resize_text_pos_embed
from torch import Tensor, nn

from mmcl.encoders.timm import resample_positions
from mmcl.errors import UserError
from mmcl.files.untrusted import check_unpacked, existing_file, load_into, read_tensors, reason
from mmcl.logging import get_logger, note

logger = get_logger(__name__)

_OLD_TEXT_KEYS = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
_FOREIGN_IMAGE_KEY = "image_encoder.model."
_MODEL_KEYS = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias")


class Loaded(NamedTuple):
    """Contents of a checkpoint other than the weights of the towers.

    Attributes:
        logit_scale: logarithm of the logit scale; None if the checkpoint has none.
        logit_bias: logit bias; None if the checkpoint has none.
        is_original: whether it uses the names of Google's or Apple's own code, and therefore their preprocessing.
    """

    logit_scale: float | None
    logit_bias: float | None
    is_original: bool


def load_towers(
    path: Path, config: Mapping[str, Any], *, visual: nn.Module | None = None, text: nn.Module | None = None
) -> Loaded:
    """Copy the weights of a checkpoint into one tower or both, and log it if position embeddings are resampled.

    Args:
        path: a state dict in any wrapping, or `.npz` for SigLIP models as released by Google.
        config: configuration of the whole model, as in open_clip.
        visual, text: towers built by open_clip.

    Raises:
        UserError: the file is missing or damaged, or its weights do not match the architecture.
    """
    if path.suffix == ".npz":
        state, is_original = _big_vision_state(path, config), True
    else:
        state, is_original = _state(path, config, visual, text)
    resampled = _resampled(state, visual, text)
    for prefix, tower in (("visual.", visual), ("text.", text)):
        if tower is not None:
            part = {name.removeprefix(prefix): tensor for name, tensor in resampled.items() if name.startswith(prefix)}
            load_into(tower, part, where=str(path))
    for name, tensor in resampled.items():
        if tensor.shape != state[name].shape:
            note(logger, f"{path}: {name} is resampled from {list(state[name].shape)} to {list(tensor.shape)}")
    return Loaded(_number(state, "logit_scale", path), _number(state, "logit_bias", path), is_original)


def _state(
    path: Path, config: Mapping[str, Any], visual: nn.Module | None, text: nn.Module | None
) -> tuple[dict[str, Tensor], bool]:
    """Return the tensors, with the text tower's under "text." as in newer open_clip models, and whether names are Apple's."""
    prefix, tower = ("visual", visual) if visual is not None else ("text", text)
    state = read_tensors(path, names=() if tower is None else (f"{prefix}.{name}" for name in tower.state_dict()))
    is_apples = any(name.startswith(_FOREIGN_IMAGE_KEY) for name in state)
    if is_apples:
        with _refusal(path, "Apple's MobileCLIP"):
            state = convert_state_dict(_whole(config), state)
    state = {f"text.{name}" if name.startswith(_OLD_TEXT_KEYS) else name: tensor for name, tensor in state.items()}
    state.pop("text.transformer.embeddings.position_ids", None)  # a constant, which older transformers saved
    return state, is_apples


def _big_vision_state(path: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert weights from the names of big_vision, Google's code for SigLIP, as open_clip does."""
    with _refusal(path, "Google's SigLIP"), zipfile.ZipFile(existing_file(path)) as archive:
        check_unpacked(path, archive)
    whole = _whole({"init_logit_bias": 0.0, **config})
    # Opened here because open_clip would not close it.
    with _refusal(path, "Google's SigLIP"), path.open("rb") as arrays:
        load_big_vision_weights(whole, arrays)
    weights: dict[str, Tensor] = whole.state_dict()
    return weights


def _whole(config: Mapping[str, Any]) -> Any:
    return open_clip.CustomTextCLIP(**copy.deepcopy({key: config[key] for key in _MODEL_KEYS if key in config}))


@contextmanager
def _refusal(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # open_clip looks up one name after another, in the file and in the model
        raise UserError(f"{path}: not weights of {kind} for this architecture: {reason(error)}") from None


def _resampled(state: Mapping[str, Tensor], visual: Any, text: Any) -> dict[str, Tensor]:
    """Resample position embeddings to the towers' numbers of patches and tokens, as open_clip and timm do."""
    resampled, towers = dict(state), SimpleNamespace(visual=visual, text=text)
    # Tensors that cannot be resampled are kept, and loading refuses them with their shape.
    if visual is not None:
        with suppress(RuntimeError):
            resize_pos_embed(resampled, towers)
        if hasattr(visual, "trunk"):
            resample_positions(visual.trunk, resampled, "visual.trunk.")
    if getattr(text, "positional_embedding", None) is not None:
        with suppress(AssertionError):
            resize_text_pos_embed(resampled, towers)
    return resampled


def _number(state: Mapping[str, Tensor], name: str, path: Path) -> float | None:
    if name not in state:
        return None
    if state[name].numel() != 1:
        raise UserError(f"{path}: {name} has shape {list(state[name].shape)}, where one number is expected")
    return state[name].item()
