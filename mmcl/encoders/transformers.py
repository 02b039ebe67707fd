"""Vision, text and CLIP-like models of Hugging Face transformers, from a folder or the hub.

Remote code is never executed. A model's configuration is saved with it, so it can be rebuilt without the hub."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from mmcl.encoders.image_processor import preprocess_of
from mmcl.encoders.patches import PatchTokens
from mmcl.encoders.tokenizers import Tokenizer
from mmcl.encoders.tower import DualEncoder, ImageEncoder, PixelNorm, TextEncoder, check_tokenizer, fixed_length
from mmcl.encoders.transformers_folder import located, merged, without_bars
from mmcl.encoders.transformers_positions import arguments_at_size, fitted_to_size
from mmcl.encoders.transformers_tokenizer import load_tokenizer
from mmcl.errors import UserError, unknown_name
from mmcl.files.hub import hub_errors
from mmcl.files.untrusted import reason
from mmcl.logging import get_logger, note
from mmcl.preprocess import Preprocess
from mmcl.types import Tokens

logger = get_logger(__name__)

Pooling = Literal["auto", "pooler", "cls", "mean", "last", "eot"]
"""Pooling of hidden states: the model's own pooler, the first token, the mean over the text, its last token, or its first end
token. "auto" uses the pooler if the weights have one; otherwise the last token for decoders, the mean for other text models,
and the first token for vision models."""

_POOLINGS = ("pooler", "cls", "mean", "last", "eot")
TRAINED_WITHOUT_MASK = ("siglip", "siglip_text_model", "siglip2", "siglip2_text_model")
_ALL_NEEDED = {"size", "mean", "std"}
"""Fields of `Preprocess` that must be known to prepare a model's input."""
READS_PATCHES = ("siglip2", "siglip2_vision_model")
_EXTRA_TOKENS = {
    **dict.fromkeys(("clip_vision_model", "chinese_clip_vision_model", "altclip_vision_model", "metaclip_2_vision_model"), 1),
    **dict.fromkeys(("vit", "vit_msn", "dinov2", "dinov2_with_registers"), 1),
    **{"siglip_vision_model": 0, "deit": 2},
}
"""Number of class tokens of vision models whose positions are all added to the tokens before the first layer."""


def image_encoder(
    *,
    name: str | None = None,
    pretrained: bool = True,
    config: Mapping[str, Any] | None = None,
    pooling: Pooling = "auto",
    preprocess: Mapping[str, Any] | None = None,
    resize_positions: bool = False,
) -> TransformersImage:
    """Build a vision model, or the image side of a CLIP-like model with its projection.

    Args:
        name: a folder or a hub id.
        pretrained: whether to load the weights of `name`, or only its architecture.
        config: a configuration with `model_type` instead of `name`, for random weights.
        pooling: see `Pooling`; CLIP-like models have their own.
        preprocess: fields of `Preprocess` to override; None uses the settings of `name`'s image processor.
        resize_positions: whether to resample the position embeddings to the size of `preprocess`.
    """
    name, adapter = located(name, config)
    shown = _preprocess(name, preprocess)  # read first, so that errors come before the download of the weights
    model, missing = _build_model(name, config, pretrained, adapter)
    model = fitted_to_size(model, shown, name or type(model).__name__, resize=resize_positions)
    return TransformersImage(_side(model, "image"), pooling, missing, shown)


def text_encoder(
    tokenizer: Tokenizer | None = None,
    *,
    name: str | None = None,
    pretrained: bool = True,
    config: Mapping[str, Any] | None = None,
    pooling: Pooling = "auto",
    context_length: int | None = None,
) -> TransformersText:
    """Build a text model, or the text side of a CLIP-like model with its projection.

    Args:
        tokenizer: None uses the tokenizer of `name`.
        name, pretrained, config, pooling: as in `image_encoder`.
        context_length: longest text in tokens; None uses the largest that model and tokenizer allow.
    """
    name, adapter = located(name, config)
    model, missing = _build_model(name, config, pretrained, adapter)
    side = _side(model, "text")
    limit = _positions(side)
    if tokenizer is None:
        if name is None:
            raise UserError("transformers: a text encoder from a config needs a tokenizer; give name instead, or a tokenizer")
        tokenizer = load_tokenizer(name, context_length=context_length, most=limit, model_type=model.config.model_type)
    check_tokenizer(tokenizer, limit, side, type(model).__name__)
    return TransformersText(side, pooling, missing, tokenizer)


def dual_encoder(name: str, *, preprocess: Mapping[str, Any] | None = None, resize_positions: bool = False) -> DualEncoder:
    """Build both sides of a CLIP-like model (CLIP, SigLIP, ...) with its logit scale and bias.

    Args:
        name: a folder or a hub id.
        preprocess: fields of `Preprocess` that override those of `name`'s image processor.
        resize_positions: as in `image_encoder`.
    """
    place, adapter = located(name, None)
    name = str(place)
    _check_dual(name)
    shown = _changed_preprocess(name, preprocess)
    model, missing = _build_model(name, None, True, adapter)
    if not hasattr(model, "logit_scale"):
        raise _not_dual(name, type(model).__name__)
    model = fitted_to_size(model, shown, name, resize=resize_positions)
    text = _side(model, "text")
    image_encoder = TransformersImage(_side(model, "image"), "auto", missing, shown)
    tokenizer = load_tokenizer(name, most=_positions(text), model_type=model.config.model_type)
    text_encoder = TransformersText(text, "auto", missing, tokenizer)
    scale, bias = (_trained_value(model, key, missing) for key in ("logit_scale", "logit_bias"))
    if scale is None:
        note(logger, f"{name}: has no logit_scale; embeddings and similarities work, probabilities do not")
    return DualEncoder(image_encoder, text_encoder, None if scale is None else math.exp(scale), bias)


def _check_dual(name: str) -> None:
    """Raise UserError if a model is not CLIP-like, before its weights are downloaded."""
    with hub_errors(name):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    kind = transformers.MODEL_MAPPING.get(type(config), None)
    if not is_dual(kind):
        raise _not_dual(name, getattr(kind, "__name__", config.model_type))


def _not_dual(name: str, kind: str) -> UserError:
    return UserError(f"{name}: {kind} is not a CLIP-like model of image and text; use it as one tower's encoder")


def _trained_value(model: Any, name: str, missing: frozenset[str]) -> float | None:
    """Return the value of a scalar parameter; None if the checkpoint lacks it, because it then has its initial value."""
    parameter = None if name in missing else getattr(model, name, None)
    return None if parameter is None else parameter.item()


class TransformersImage(ImageEncoder):
    """Vision model, or the image side of a dual model; `missing` names the weights that its checkpoint lacks."""

    def __init__(self, model: nn.Module, pooling: Pooling, missing: frozenset[str], preprocess: Preprocess):
        super().__init__()
        self.model: Any = model
        self.preprocess = preprocess
        self.norm = PixelNorm(preprocess)
        _check_patches(model, preprocess)
        probe = torch.zeros(1, preprocess.channels, preprocess.height, preprocess.width)
        self.pooling = _resolve_pooling(pooling, model, missing, self._output, probe, without_pooler="cls")
        if self.pooling in ("last", "eot"):
            raise UserError(f"pooling {self.pooling!r} is for texts; a vision model has pooler, cls and mean")
        self.feature_dim = _feature_dim(self, probe)
        self.rebuild_args = {
            "config": _plain_config(model.config),
            "pooling": "auto" if is_dual(model) else self.pooling,
            "preprocess": json.loads(json.dumps(asdict(preprocess))),
        }

    def forward(self, image_BCHW: Tensor) -> Tensor:
        output = self._output(self.norm(image_BCHW))
        if self.pooling == "pooler":
            pooled_BF: Tensor = output.pooler_output.flatten(1)
            return pooled_BF
        hidden: Tensor = output.last_hidden_state
        hidden_BLF = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden
        return hidden_BLF.mean(1) if self.pooling == "mean" else hidden_BLF[:, 0]

    def patch_tokens(self) -> PatchTokens | None:
        config = _part_config(self.model.config, "vision_config")
        extra = _EXTRA_TOKENS.get(config.model_type)
        if extra is None:
            return None
        [embeddings] = [part for part in self.model.modules() if hasattr(part, "interpolate_pos_encoding")]
        extra += getattr(config, "num_register_tokens", 0)
        return PatchTokens(embeddings, extra, (config.patch_size, config.patch_size))

    def _output(self, pixels_BCHW: Tensor) -> Any:
        encode = self.model.get_image_features if is_dual(self.model) else self.model
        if self.model.config.model_type in READS_PATCHES:
            return encode(**_patches(pixels_BCHW, _part_config(self.model.config, "vision_config").patch_size))
        return encode(pixel_values=pixels_BCHW, **arguments_at_size(encode, pixels_BCHW, self.preprocess))


class TransformersText(TextEncoder):
    """Text model, or the text side of a dual model; `missing` names the weights that its checkpoint lacks.

    Models that were trained without an attention mask (SigLIP) get every text padded to the context length, as in training.
    """

    def __init__(self, model: nn.Module, pooling: Pooling, missing: frozenset[str], tokenizer: Tokenizer):
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        probe = Tokens(torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool))
        without_pooler = "last" if _is_decoder(model.config) else "mean"
        self.pooling = _resolve_pooling(pooling, model, missing, self._output, probe, without_pooler=without_pooler)
        if self.pooling == "eot" and tokenizer.end_id is None:
            raise UserError("pooling 'eot' needs a tokenizer with an end token; take 'last' or 'mean'")
        self.feature_dim = _feature_dim(self, probe)
        self.rebuild_args = {"config": _plain_config(model.config), "pooling": "auto" if is_dual(model) else self.pooling}

    def forward(self, tokens: Tokens) -> Tensor:
        output, mask_BL = self._output(tokens), tokens.mask
        if self.pooling == "pooler":
            pooled_BF: Tensor = output.pooler_output
            return pooled_BF
        hidden_BLF: Tensor = output.last_hidden_state
        if self.pooling == "mean":
            weight_BL1 = mask_BL[..., None].to(hidden_BLF.dtype)
            return (hidden_BLF * weight_BL1).sum(1) / weight_BL1.sum(1)
        position_B = mask_BL.new_zeros(mask_BL.shape[0], dtype=torch.long)
        if self.pooling == "last":
            position_B = mask_BL.sum(1) - 1
        elif self.pooling == "eot":
            position_B = ((tokens.ids == self.tokenizer.end_id) & mask_BL).int().argmax(1)
        return hidden_BLF[torch.arange(position_B.shape[0], device=position_B.device), position_B]

    def _output(self, tokens: Tokens) -> Any:
        encode = self.model.get_text_features if is_dual(self.model) else self.model
        if self.model.config.model_type in TRAINED_WITHOUT_MASK:
            return encode(input_ids=fixed_length(tokens, self.tokenizer.context_length, self.tokenizer))
        pad_id = _part_config(self.model.config, "text_config").pad_token_id
        ids_BL = tokens.ids if pad_id is None else tokens.ids.masked_fill(~tokens.mask, pad_id)
        return encode(input_ids=ids_BL, attention_mask=tokens.mask.long())


def read_config(name: str) -> dict[str, Any]:
    """Read the configuration of a folder or hub id, as JSON values."""
    with hub_errors(name):
        return _plain_config(transformers.AutoConfig.from_pretrained(name, trust_remote_code=False))


def is_dual(model: object) -> bool:
    """Return True if a model, or its class, embeds both images and texts, as CLIP does."""
    return hasattr(model, "get_image_features") and hasattr(model, "get_text_features")


def _build_model(
    name: str | None, config: Mapping[str, Any] | None, pretrained: bool, adapter: str | None
) -> tuple[Any, frozenset[str]]:
    """Build the model in float32. Returns it, and the names of its weights that the checkpoint lacks."""
    if name is None or not pretrained:
        model = transformers.AutoModel.from_config(_make_config(config or read_config(str(name))), dtype=torch.float32)
        return _encoder_of(model), frozenset()
    with hub_errors(name), without_bars(Path(name).is_dir()):
        model, info = transformers.AutoModel.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    model = model if adapter is None else merged(model, adapter, name)
    encoder, missing = _encoder_of(model), frozenset(info["missing_keys"])
    optional = ("pooler", "logit_scale", "logit_bias")
    needed = [k for k in missing if not any(part in k for part in optional) and (encoder is model or k.startswith("encoder."))]
    if needed:
        raise UserError(f"{name}: {len(needed)} weights are missing, among them {min(needed)}; download the model again")
    return encoder, missing


def _make_config(config: Mapping[str, Any]) -> Any:
    values = copy.deepcopy(dict(config))
    model_type = values.pop("model_type", None)
    if model_type not in transformers.CONFIG_MAPPING:
        raise unknown_name("transformers model_type", str(model_type), list(transformers.CONFIG_MAPPING))
    try:
        return transformers.AutoConfig.for_model(model_type, **values)
    except Exception as error:  # configurations raise various errors when they are validated
        raise UserError(f"transformers: not a configuration of {model_type}: {reason(error)}") from None


def _plain_config(config: Any) -> dict[str, Any]:
    """Return a configuration as JSON values, without entries that depend on where and when it was loaded."""
    values = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if key not in ("_name_or_path", "transformers_version", "dtype")}


def _part_config(config: Any, part: str) -> Any:
    return getattr(config, part, config)


def _encoder_of(model: Any) -> nn.Module:
    encoder: nn.Module = model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model
    return encoder


def _side(model: nn.Module, modality: Literal["image", "text"]) -> nn.Module:
    """Remove the other side and the logit scale from a dual model; return any other model unchanged."""
    if not is_dual(model):
        return model
    other = ("text_",) if modality == "image" else ("vision_", "visual_")
    side = copy.copy(model)
    side._modules = {name: module for name, module in model._modules.items() if not name.startswith(other)}
    side._parameters = {name: p for name, p in model._parameters.items() if name not in ("logit_scale", "logit_bias")}
    return side


def _is_decoder(config: Any) -> bool:
    kind = config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _resolve_pooling(
    pooling: str, model: nn.Module, missing: frozenset[str], output: Any, probe: Any, *, without_pooler: str
) -> str:
    """Resolve "auto" for this model. An unused pooler is removed, because its parameters would have no gradient."""
    if pooling not in ("auto", *_POOLINGS):
        raise unknown_name("pooling", pooling, ("auto", *_POOLINGS))
    has_pooler = getattr(_quietly(model, output, probe), "pooler_output", None) is not None
    if is_dual(model) and pooling != "auto":
        raise UserError(f"{type(model).__name__} pools in its own way; leave pooling at 'auto'")
    if pooling == "pooler" and not has_pooler:
        raise UserError(f"{type(model).__name__} has no pooler; choose another pooling")
    if pooling == "auto":
        pooling = "pooler" if has_pooler and not any("pooler" in key for key in missing) else without_pooler
    if pooling != "pooler" and isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None  # type: ignore[assignment]
    return pooling


def _feature_dim(encoder: nn.Module, probe: Any) -> int:
    return int(_quietly(encoder, encoder, probe).shape[-1])


def _quietly(model: nn.Module, call: Any, probe: Any) -> Any:
    """Run a forward pass without side effects: no gradient, no update of batch statistics."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return call(probe)
    except Exception as error:  # whatever the model's own code raises
        raise UserError(f"{type(model).__name__} cannot encode a blank input ({reason(error)}); choose another model") from None
    finally:
        model.train(training)


def _positions(model: nn.Module) -> int:
    """Return the length in tokens of the longest text that the model supports."""
    config = _part_config(model.config, "text_config")
    limit = getattr(config, "max_position_embeddings", None) or 1_000_000  # relative positions: no limit
    table = next((m for name, m in model.named_modules() if name.endswith("embeddings.position_embeddings")), None)
    offset = getattr(table, "padding_idx", None)  # RoBERTa's positions start after the padding id
    return int(limit) - (0 if offset is None else offset + 1)


def _changed_preprocess(name: str, fields: Mapping[str, Any] | None) -> Preprocess:
    """Return the settings of `name`'s image processor with overrides; if these suffice, it need not be supported."""
    if fields and fields.keys() >= _ALL_NEEDED:
        with suppress(UserError):
            return _preprocess(name, None).changed(fields)
        return Preprocess.from_json(fields)
    return _preprocess(name, None).changed(fields)


def _preprocess(name: str | None, given: Mapping[str, Any] | None) -> Preprocess:
    if given is not None:
        return Preprocess.from_json(given)
    if name is None:
        raise UserError("transformers: a vision model from a config needs preprocess: {size: 224, mean: [...], std: [...]}")
    with hub_errors(name):
        processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    return preprocess_of(processor, name)


def _check_patches(model: Any, preprocess: Preprocess) -> None:
    """Raise UserError if a model that takes patches cannot process images with these settings."""
    if model.config.model_type not in READS_PATCHES:
        return
    patch = _part_config(model.config, "vision_config").patch_size
    if preprocess.height % patch or preprocess.width % patch:
        size = f"{preprocess.height} x {preprocess.width}"
        raise UserError(f"preprocess: size {size} of {type(model).__name__} must be a multiple of its patches of {patch}")


def _patches(pixels_BCHW: Tensor, patch: int) -> dict[str, Tensor]:
    """Convert pixels to SigLIP 2's input: rows of patches, each [patch, patch, C] flattened, with their grid and a mask.

    The grid is that of all images and given once: SigLIP 2 then resizes its position embeddings once, and not for each row.
    """
    grid_BChpwp = pixels_BCHW.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    patches_BLP = grid_BChpwp.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    grid_12 = torch.tensor([[grid_BChpwp.shape[2], grid_BChpwp.shape[4]]], device=pixels_BCHW.device)
    mask_BL = torch.ones(patches_BLP.shape[:2], dtype=torch.long, device=pixels_BCHW.device)
    return {"pixel_values": patches_BLP, "spatial_shapes": grid_12, "pixel_attention_mask": mask_BL}
