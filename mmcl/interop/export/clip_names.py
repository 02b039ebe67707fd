"""CLIP's weights and configuration in the names of open_clip and of transformers: the same numbers, renamed.

Both libraries have the architecture of Radford et al. (2021). open_clip stacks the weights of query, key and value, and
multiplies projections from the right.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor

from mmcl.errors import UserError

Weights = Mapping[str, Tensor]

_IMAGE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # as transformers spells it
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
}
_TEXT = {
    "text.token_embedding": "text_model.embeddings.token_embedding",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.ln_final": "text_model.final_layer_norm",
    "text.transformer.resblocks": "text_model.encoder.layers",
}
_BLOCK = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_OUT = ("attn.out_proj", "self_attn.out_proj")
_PROJECTIONS = {"visual.proj": "visual_projection.weight", "text.text_projection": "text_projection.weight"}
_STACKED = ("q_proj", "k_proj", "v_proj")
_LAYER_NORM_EPS = 1e-5

_VISION_KEYS = ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size")
_TEXT_KEYS = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "eos_id")
_NO_EFFECT = ("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs")
"""Of a text configuration: the tokenizer, which is exported by itself."""


def to_transformers(weights: Weights) -> dict[str, Tensor]:
    """Renames open_clip's weights, with "visual." and "text." in front of those of the towers."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name in _PROJECTIONS:
            renamed[_PROJECTIONS[name]] = tensor.T.contiguous()
            continue
        place = _replaced(name, {**_IMAGE, **_TEXT})
        block = re.fullmatch(r"(.*\.layers\.\d+)\.(.*)\.(weight|bias)", place)
        if (stacked := re.fullmatch(r"(.*\.layers\.\d+)\.attn\.in_proj_(weight|bias)", place)) is not None:
            for part, rows in zip(_STACKED, tensor.chunk(3), strict=True):
                renamed[f"{stacked[1]}.self_attn.{part}.{stacked[2]}"] = rows.contiguous()
        elif block is not None:
            inner = dict([*_BLOCK.items(), _OUT])
            renamed[f"{block[1]}.{inner[block[2]]}.{block[3]}"] = tensor
        else:
            renamed[place] = tensor
    return renamed


def to_open_clip(weights: Weights) -> dict[str, Tensor]:
    """Renames the weights of a `CLIPModel` of transformers; the reverse of `to_transformers`."""
    renamed: dict[str, Tensor] = {}
    back = {theirs: ours for ours, theirs in {**_IMAGE, **_TEXT}.items()}
    inner = {theirs: ours for ours, theirs in [*_BLOCK.items(), _OUT]}
    projections = {theirs: ours for ours, theirs in _PROJECTIONS.items()}
    for name, tensor in weights.items():
        place = _replaced(name, back)
        block = re.fullmatch(r"(.*\.resblocks\.\d+)\.(.*)\.(weight|bias)", place)
        if name in projections:
            renamed[projections[name]] = tensor.T.contiguous()
        elif block is None:
            renamed[place] = tensor
        elif block[2].removeprefix("self_attn.") in _STACKED:
            parts = [weights[f"{name.partition('.self_attn.')[0]}.self_attn.{part}.{block[3]}"] for part in _STACKED]
            renamed[f"{block[1]}.attn.in_proj_{block[3]}"] = torch.cat(parts)
        else:
            renamed[f"{block[1]}.{inner[block[2]]}.{block[3]}"] = tensor
    return renamed


def config_for_transformers(config: Mapping[str, Any], *, end_id: int | None) -> dict[str, Any]:
    """Returns the configuration of a `CLIPModel` for one of open_clip.

    Args:
        config: `embed_dim`, `vision_cfg`, `text_cfg`, and `quick_gelu` if it is set.
        end_id: end token of the tokenizer, at which the text tower pools.

    Raises:
        UserError: the towers have something that `CLIPModel` lacks; names it.
    """
    vision, text = CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])
    for where, value, known in (("vision_cfg", vision, _VISION_KEYS), ("text_cfg", text, (*_TEXT_KEYS, *_NO_EFFECT))):
        for key in _unusual(value, known):
            raise UserError(f"CLIPModel of transformers has no {where}.{key} {getattr(value, key)!r}")
    if not isinstance(vision.layers, int):
        raise UserError("CLIPModel of transformers has no ResNet as its image tower")
    if text.pool_type not in ("argmax", "eos") or end_id is None or (text.pool_type == "eos" and text.eos_id != end_id):
        raise UserError(f"CLIPModel of transformers pools at the end token, not as text_cfg.pool_type {text.pool_type!r} does")
    shared = {"hidden_act": "quick_gelu" if config.get("quick_gelu") else "gelu", "projection_dim": config["embed_dim"]}
    return {
        "model_type": "clip",
        "projection_dim": config["embed_dim"],
        "vision_config": {
            **shared,
            "hidden_size": vision.width,
            "intermediate_size": int(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.width // vision.head_width,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layer_norm_eps": _LAYER_NORM_EPS,
        },
        "text_config": {
            **shared,
            "hidden_size": text.width,
            "intermediate_size": int(text.width * text.mlp_ratio),
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocab_size,
            "eos_token_id": end_id,
            "pad_token_id": end_id,
            "layer_norm_eps": _LAYER_NORM_EPS,
        },
    }


def config_for_open_clip(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns open_clip's configuration for that of a `CLIPModel` of transformers.

    Raises:
        UserError: the model has something that open_clip's CLIP lacks; names it.
    """
    vision, text = config["vision_config"], config["text_config"]
    for where, part in (("vision_config", vision), ("text_config", text)):
        if part["hidden_act"] not in ("gelu", "quick_gelu") or part["hidden_act"] != vision["hidden_act"]:
            raise UserError(f"CLIP of open_clip has no {where}.hidden_act {part['hidden_act']!r} there")
        if part["layer_norm_eps"] != _LAYER_NORM_EPS:
            raise UserError(f"CLIP of open_clip has no {where}.layer_norm_eps {part['layer_norm_eps']}")
    # The wrong end token of old configurations stands for the largest one, see CLIPTextModel.
    end = {} if text["eos_token_id"] == 2 else {"pool_type": "eos", "eos_id": text["eos_token_id"]}
    return {
        "embed_dim": config["projection_dim"],
        **({"quick_gelu": True} if vision["hidden_act"] == "quick_gelu" else {}),
        "vision_cfg": {
            "image_size": vision["image_size"],
            "layers": vision["num_hidden_layers"],
            "width": vision["hidden_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
            "patch_size": vision["patch_size"],
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
            "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
            **end,
        },
    }


def _unusual(config: Any, known: tuple[str, ...]) -> Iterator[str]:
    """Yields the fields that have another value than by default, except known ones."""
    for field in dataclasses.fields(config):
        if field.name not in known and getattr(config, field.name) != field.default:
            yield field.name


def _replaced(name: str, places: Mapping[str, str]) -> str:
    prefix = next((prefix for prefix in places if name == prefix or name.startswith(f"{prefix}.")), "")
    return places[prefix] + name.removeprefix(prefix) if prefix else name
