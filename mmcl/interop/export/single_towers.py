"""One tower as a folder of transformers, and its head as linear layers with activations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmcl.encoders.heads import LinearHead, MLPHead, NoHead, TanhHead
from mmcl.encoders.timm import TimmEncoder
from mmcl.encoders.transformers import TRAINED_WITHOUT_MASK, TransformersImage, TransformersText, is_dual
from mmcl.errors import UserError
from mmcl.interop.export.differences import image_differences
from mmcl.interop.export.folding import head_of
from mmcl.interop.export.hf_files import image_processor, write_tokenizer
from mmcl.interop.model import Model
from mmcl.preprocess import Preprocess

_POOLING = {"pooler": None, "cls": "cls", "mean": "mean", "last": "lasttoken"}
"""mmcl's names of poolings, and those of sentence-transformers; None for the model's own."""
_TIMM_RESIZE = {"shortest": "center", "squash": "squash", "pad": "border"}


@dataclass(frozen=True, slots=True)
class Layer:
    """activation(x W^T + b).

    Attributes:
        weight: [out, in].
        bias: [out], or None.
        activation: a module without parameters.
    """

    weight: Tensor
    bias: Tensor | None
    activation: nn.Module


@dataclass(frozen=True, kw_only=True, slots=True)
class SingleTower:
    """A tower in parts.

    Attributes:
        encoder: its encoder.
        output: which output of the model is taken, "last_hidden_state" or "pooler_output".
        pooling: what is done to it, as sentence-transformers calls it; None if it is one row already.
        layers: the head.
    """

    encoder: TimmEncoder | TransformersImage | TransformersText
    output: str
    pooling: str | None
    layers: list[Layer] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Width F of the features."""
        return self.encoder.feature_dim

    @property
    def pad_id(self) -> int:
        """Padding of the text model."""
        assert isinstance(self.encoder, TransformersText)
        padding = self.encoder.model.config.pad_token_id
        return self.encoder.tokenizer.pad_id if padding is None else int(padding)

    def write(self, folder: Path) -> list[str]:
        """Writes model and processor into a folder. Returns what is lost, one line each."""
        encoder = self.encoder
        if isinstance(encoder, TimmEncoder):
            return _write_timm(encoder, folder)
        encoder.model.save_pretrained(folder)
        if isinstance(encoder, TransformersText):
            return write_tokenizer(encoder.tokenizer, folder, reads_padding=False)
        processor, lost = image_processor(encoder.preprocess)
        processor.save_pretrained(folder)
        return lost


def single_towers(model: Model) -> dict[str, SingleTower]:
    """Returns the towers in parts: first the text tower, then the image tower.

    Raises:
        UserError: a tower is of neither timm nor transformers, pools in a way of its own, or has another head.
    """
    if set(model.towers) != {"image", "text"}:
        raise UserError("both towers are needed")
    return {name: _single_tower(model, name) for name in ("text", "image")}


def _single_tower(model: Model, name: str) -> SingleTower:
    encoder: Any = model.towers[name].encoder
    layers = list(_layers(head_of(model, name)))
    if isinstance(encoder, TimmEncoder):
        _check_timm(encoder.preprocess)
        return SingleTower(encoder=encoder, output="pooler_output", pooling=None, layers=layers)
    config = getattr(getattr(encoder, "model", None), "config", None)
    fits = isinstance(encoder, TransformersImage | TransformersText) and encoder.pooling in _POOLING
    if not fits or is_dual(encoder.model) or config is None:
        raise UserError(f"the {name} tower is not a model of its own")
    if getattr(config, "is_encoder_decoder", False) or config.model_type in TRAINED_WITHOUT_MASK:
        raise UserError(f"the {name} tower is part of a model of type {config.model_type!r}")
    pooling = _POOLING[encoder.pooling]
    output = "pooler_output" if pooling is None else "last_hidden_state"
    if isinstance(encoder, TransformersImage):
        image_processor(encoder.preprocess)
        if pooling is None and _pools_to_a_map(encoder):
            pooling = "mean"
    return SingleTower(encoder=encoder, output=output, pooling=pooling, layers=layers)


@torch.no_grad()
def _pools_to_a_map(encoder: TransformersImage) -> bool:
    """True if the model's pooler gives a map of one pixel, [B, F, 1, 1], as of ResNet, which the library takes for a token."""
    shown = encoder.preprocess
    pooled: Tensor = encoder.model(pixel_values=torch.zeros(1, 3, shown.height, shown.width)).pooler_output
    return pooled.ndim == 4


def _layers(head: nn.Module) -> Iterator[Layer]:
    match head:
        case NoHead():
            return
        case LinearHead():
            yield Layer(head.weight.detach(), None, nn.Identity())
        case TanhHead():
            yield Layer(head.linear.weight.detach(), head.linear.bias.detach(), nn.Tanh())
        case MLPHead():
            yield from map(_mlp_layer, head.layers)  # type: ignore[arg-type]
        case _:
            raise UserError(f"the head {type(head).__name__} is not a sequence of linear layers")


def _mlp_layer(parts: nn.Sequential) -> Layer:
    """Returns a layer with its batch norm, in evaluation mode, multiplied in."""
    linear, *others = parts
    assert isinstance(linear, nn.Linear)
    weight, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
    activation: nn.Module = nn.Identity()
    for part in others:
        if isinstance(part, nn.BatchNorm1d):
            assert part.running_mean is not None
            assert part.running_var is not None
            scale = torch.rsqrt(part.running_var + part.eps) * (1 if part.weight is None else part.weight.detach())
            shift = (0 if bias is None else bias) - part.running_mean
            weight, bias = weight * scale[:, None], shift * scale + (0 if part.bias is None else part.bias.detach())
        else:
            activation = part
    return Layer(weight, bias, activation)


def _check_timm(preprocess: Preprocess) -> None:
    if preprocess.channels != 3 or preprocess.channel_order != "rgb" or preprocess.resize not in _TIMM_RESIZE:
        raise UserError("timm has no transform for these images")


def _write_timm(encoder: TimmEncoder, folder: Path) -> list[str]:
    """Writes a model of timm as `TimmWrapperModel` of transformers reads it."""
    shown, args = encoder.preprocess, encoder.rebuild_args
    model_args = dict(args.get("model_args") or {})
    if hasattr(encoder.model, "set_input_size"):
        model_args["img_size"] = [shown.height, shown.width]
    resized = shown.resize_size or shown.size
    scaled, side = (size[0] if isinstance(size, tuple) else size for size in (resized, shown.size))
    config = {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperModel"],
        "architecture": str(args["name"]).partition(".")[0],
        "num_classes": 0,
        "num_features": encoder.feature_dim,
        "model_args": model_args,
        "pretrained_cfg": {
            "input_size": [3, shown.height, shown.width],
            "mean": list(shown.mean),
            "std": list(shown.std),
            "interpolation": shown.interpolation,
            "crop_pct": side / (scaled + 0.5) if scaled != side else 1.0,  # timm rounds the quotient down
            "crop_mode": _TIMM_RESIZE[shown.resize],
            "num_classes": 0,
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    tensors = {f"timm_model.{name}": tensor.contiguous() for name, tensor in encoder.model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    fill = round(255 * shown.mean[0]) if shown.resize == "pad" else 0  # that of timm
    return image_differences(shown, backend="pillow", crop_rounding="round", fill=fill)
