"""Both towers of any open_clip model: architectures, released weights and folders.

Only this file and open_clip_weights.py import open_clip. A model is described by its configuration, as in open_clip's JSON
files: `embed_dim`, `vision_cfg`, `text_cfg`, `quick_gelu`, ..., and additionally `preprocess_cfg` and, for a Hugging Face text
tower, `hf_config`. Each tower keeps its part of the configuration, so that it can be rebuilt offline.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import _build_text_tower, _build_vision_tower
from open_clip.modified_resnet import ModifiedResNet
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer, text_global_pool
from torch import Tensor, nn

from mmcl.encoders import transformers as hf
from mmcl.encoders.open_clip_weights import load_towers
from mmcl.encoders.patches import PatchTokens
from mmcl.encoders.positions import call_at_size
from mmcl.encoders.timm import at_size
from mmcl.encoders.timm import patch_tokens as timm_patch_tokens
from mmcl.encoders.tokenizers import Tokenizer, clip_bpe
from mmcl.encoders.tower import DualEncoder, ImageEncoder, PixelNorm, TextEncoder, check_tokenizer, fixed_length, say_preprocess
from mmcl.encoders.transformers_tokenizer import load_tokenizer
from mmcl.errors import UserError, unknown_name
from mmcl.files.hub import hub_errors
from mmcl.files.untrusted import read_json
from mmcl.logging import get_logger, note
from mmcl.preprocess import Preprocess, Resize
from mmcl.types import Tokens

logger = get_logger(__name__)

_IMAGE_KEYS = ("embed_dim", "vision_cfg", "quick_gelu", "preprocess_cfg", "preprocess")
_TEXT_KEYS = ("embed_dim", "text_cfg", "quick_gelu", "hf_config")
_RESIZE: Mapping[str, Resize] = {"shortest": "shortest", "squash": "squash", "longest": "pad"}
_FOLDER_CONFIG = "open_clip_config.json"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_WEIGHT_NAMES = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    *("open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)
"""Names of weight files, in the order in which open_clip looks for them in a folder."""
_CLIP_SCALE = math.log(1 / 0.07)
_RESNET_STRIDE = 32
"""Pixels of an image between two positions of a ResNet."""


def image_encoder(
    *,
    arch: str | None = None,
    pretrained: str | None = None,
    config: Mapping[str, Any] | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> OpenClipImage:
    """Build the image tower, including its projection.

    Args:
        arch: an architecture of open_clip, e.g. "ViT-B-32"; or, including weights, "local-dir:FOLDER", a folder with
            open_clip_config.json, or "hf-hub:ID", a hub repository with this file.
        pretrained: a tag of released weights, or a path to a checkpoint; None for random weights.
        config: your own configuration, instead of `arch`.
        preprocess: fields of `Preprocess` to override; position embeddings are resampled if `size` changes.
    """
    config, checkpoint = _resolve(arch, pretrained, config)
    encoder = OpenClipImage(_with_preprocess(config, preprocess))
    if checkpoint is not None:
        loaded = load_towers(checkpoint, config, visual=encoder.visual)
        _settle_preprocess(checkpoint, arch, encoder, config, loaded.is_original)
    return encoder


def text_encoder(
    tokenizer: Tokenizer | None = None,
    *,
    arch: str | None = None,
    pretrained: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> OpenClipText:
    """Build the text tower, including its projection; arguments as in `image_encoder`.

    Without `tokenizer` it uses the tokenizer of the architecture.
    """
    config, checkpoint = _resolve(arch, pretrained, config)
    encoder = OpenClipText(config, tokenizer)
    if checkpoint is not None:
        load_towers(checkpoint, config, text=encoder.text)
    return encoder


def dual_encoder(arch: str, pretrained: str | None = None, *, preprocess: Mapping[str, Any] | None = None) -> DualEncoder:
    """Build both towers of one model with its logit scale and bias; arguments and UserError as in `image_encoder`."""
    config, checkpoint = _resolve(arch, pretrained, None)
    image, text = OpenClipImage(_with_preprocess(config, preprocess)), OpenClipText(config, None)
    scale, bias = config.get("init_logit_scale", _CLIP_SCALE), config.get("init_logit_bias")
    if checkpoint is not None:
        scale, bias, is_original = load_towers(checkpoint, config, visual=image.visual, text=text.text)
        _settle_preprocess(checkpoint, arch, image, config, is_original)
        if scale is None:
            note(logger, f"{checkpoint}: has no logit_scale; embeddings and similarities work, probabilities do not")
    return DualEncoder(image, text, None if scale is None else math.exp(scale), bias)


def imagenet_templates(name: str) -> list[Callable[[str], str]]:
    """Return the CLIP authors' prompts for ImageNet: "openai_imagenet" (all 80) or "simple_imagenet" (a subset of seven)."""
    templates: list[Callable[[str], str]] = getattr(open_clip, f"{name.upper()}_TEMPLATES")
    return list(templates)


class OpenClipImage(ImageEncoder):
    """The image tower of an open_clip configuration, with random weights."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.visual: Any = _checked_build(_build_vision_tower, config, "vision_cfg", timm_model_pretrained=False)
        self.feature_dim = config["embed_dim"]
        self.show(config)

    def show(self, config: Mapping[str, Any]) -> None:
        """Set the preprocessing from a configuration."""
        shown = _preprocess(config.get("preprocess_cfg", {}), self.visual.image_size)
        self.preprocess = shown.changed(config.get("preprocess"))
        self.norm = PixelNorm(self.preprocess)
        self.rebuild_args = {"config": {key: config[key] for key in _IMAGE_KEYS if key in config}}

    def forward(self, image_BCHW: Tensor) -> Tensor:
        output = self._encoded(self.norm(image_BCHW))
        feature_BF: Tensor = output[0] if isinstance(output, tuple) else output  # CoCa's tower also gives its patches
        return feature_BF

    def _encoded(self, pixels_BCHW: Tensor) -> Any:
        visual, size = self.visual, (pixels_BCHW.shape[2], pixels_BCHW.shape[3])
        if isinstance(visual, TimmModel):
            with at_size(visual.trunk, size):
                return visual(pixels_BCHW)
        if size == (self.preprocess.height, self.preprocess.width):
            return visual(pixels_BCHW)
        if isinstance(visual, VisionTransformer):
            return call_at_size(visual, "positional_embedding", visual.grid_size, visual.patch_size, pixels_BCHW)
        if isinstance(visual, ModifiedResNet):
            side = visual.image_size // _RESNET_STRIDE
            table, stride = "attnpool.positional_embedding", (_RESNET_STRIDE, _RESNET_STRIDE)
            return call_at_size(visual, table, (side, side), stride, pixels_BCHW)
        return visual(pixels_BCHW)

    def patch_tokens(self) -> PatchTokens | None:
        visual = self.visual
        if isinstance(visual, TimmModel):
            return timm_patch_tokens(visual.trunk)
        if not isinstance(visual, VisionTransformer):
            return None
        if not isinstance(visual.patch_dropout, nn.Identity):
            raise UserError("it has a patch dropout of its own, vision_cfg.patch_dropout: remove that")
        return PatchTokens(visual.patch_dropout, 1, visual.patch_size)


class OpenClipText(TextEncoder):
    """The text tower of an open_clip configuration, with random weights.

    Causal towers that pool at the end token, and Hugging Face towers, which have a mask, take batches padded to their longest
    text. The others (SigLIP, CLIPA, CoCa) were trained at one length without a mask, so padding is part of their input.
    """

    def __init__(self, config: Mapping[str, Any], tokenizer: Tokenizer | None):
        super().__init__()
        text_cfg = config["text_cfg"]
        self.is_hf = bool(text_cfg.get("hf_model_name"))
        if self.is_hf:
            config = {**config, "hf_config": config.get("hf_config") or hf.read_config(text_cfg["hf_model_name"])}
        self.text: Any = _hf_text_tower(config) if self.is_hf else _checked_build(_build_text_tower, config, "text_cfg")
        self.context_length = text_cfg.get("context_length", 77)
        self.tokenizer = tokenizer or _tokenizer(text_cfg, self.context_length, config.get("tokenizer_folder"))
        check_tokenizer(self.tokenizer, self.context_length, self.text, "the open_clip text tower")
        self.feature_dim = config["embed_dim"]
        self.rebuild_args = {"config": {key: config[key] for key in _TEXT_KEYS if key in config}}

    def forward(self, tokens: Tokens) -> Tensor:
        if self.is_hf:
            output = self.text(tokens.ids.masked_fill(~tokens.mask, self.text.config.pad_token_id))
        elif self._reads_padding:
            output = self.text(fixed_length(tokens, self.context_length, self.tokenizer))
        else:
            output = self._encode_causal(tokens.ids)
        feature_BF: Tensor = output[0] if isinstance(output, tuple) else output
        return feature_BF

    @property
    def _reads_padding(self) -> bool:
        return self.text.attn_mask is None or self.text.cls_emb is not None or self.text.pool_type in ("last", "none")

    def _encode_causal(self, ids_BL: Tensor) -> Tensor:
        """Run open_clip's forward pass on L positions only; open_clip itself requires the full context length."""
        text, length = self.text, ids_BL.shape[1]
        dtype = text.transformer.get_cast_dtype()
        # By their numbers: a slice would exclude the full length from a traced graph.
        position_L = torch.arange(length, device=ids_BL.device)
        position_LF = nn.functional.embedding(position_L, text.positional_embedding)
        hidden_BLF = text.token_embedding(ids_BL).to(dtype) + position_LF.to(dtype)
        hidden_BLF = text.ln_final(text.transformer(hidden_BLF, attn_mask=text.attn_mask[position_L][:, position_L]))
        pooled_BF: Tensor = text_global_pool(hidden_BLF, ids_BL, text.pool_type, eos_token_id=text.eos_id)
        if text.text_projection is None:
            return pooled_BF
        is_linear = isinstance(text.text_projection, nn.Linear)
        projected_BF: Tensor = text.text_projection(pooled_BF) if is_linear else pooled_BF @ text.text_projection
        return projected_BF


def _resolve(arch: str | None, pretrained: str | None, config: Mapping[str, Any] | None) -> tuple[dict[str, Any], Path | None]:
    """Return the configuration, and the checkpoint if requested (downloaded if it is a tag)."""
    if (arch is None) == (config is None):
        raise UserError("open_clip: give either arch, e.g. ViT-B-32, or config")
    if config is not None:
        if pretrained is not None and not Path(pretrained).is_file():
            raise UserError(f"{pretrained}: no such file; with config, pretrained is the path of a checkpoint")
        return copy.deepcopy(dict(config)), Path(pretrained) if pretrained else None
    scheme, _, place = str(arch).partition(":")
    if place and scheme in ("local-dir", "hf-hub"):
        if pretrained is not None:
            raise UserError(f"open_clip {arch} brings its own weights; remove pretrained")
        return _read_folder(Path(place)) if scheme == "local-dir" else _read_repository(place)
    found = open_clip.get_model_config(arch) if arch in open_clip.list_models() else None
    if found is None:
        raise unknown_name("open_clip architecture", str(arch), open_clip.list_models())
    if pretrained is None:
        return found, None
    tag = get_pretrained_cfg(arch, pretrained)
    if tag:
        # The tag states how the weights were trained, whichever architecture name they are requested with. Either of the
        # two may state that they were trained with QuickGELU.
        quick_gelu = tag.get("quick_gelu", False) or found.get("quick_gelu", False)
        found.update(preprocess_cfg=_tag_preprocess(tag), quick_gelu=quick_gelu)
        return found, _download(tag, f"{arch}/{pretrained}")
    if not Path(pretrained).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(arch)) or "none"
        raise UserError(f"open_clip {arch}: {pretrained!r} is neither a file nor a tag of released weights; tags: {tags}")
    return found, Path(pretrained)


def _read_folder(folder: Path) -> tuple[dict[str, Any], Path]:
    """Return the configuration and the weights of a folder; all other files that it names must be in the folder too."""
    config = _folder_config(read_json(folder / _FOLDER_CONFIG), folder / _FOLDER_CONFIG)
    text_cfg = config["text_cfg"]
    config["tokenizer_folder"] = str(folder)  # not kept with the model, which would else name a place of this machine
    if text_cfg.get("hf_model_name"):
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{folder}: its text tower is {text_cfg['hf_model_name']}, whose config.json is not there; copy it in"
            )
        config["hf_config"] = hf.read_config(str(folder))
    files = sorted(file for suffix in _WEIGHT_SUFFIXES for file in folder.glob(f"*{suffix}"))
    if not files:
        raise UserError(f"{folder}: holds {_FOLDER_CONFIG} but no weights (*{', *'.join(_WEIGHT_SUFFIXES)}); copy them in")
    return config, min(files, key=lambda file: _WEIGHT_NAMES.index(file.name) if file.name in _WEIGHT_NAMES else 99)


def _read_repository(name: str) -> tuple[dict[str, Any], Path]:
    with hub_errors(name):
        file = download_pretrained_from_hf(name, filename=_FOLDER_CONFIG)
        return _folder_config(read_json(file), Path(name, _FOLDER_CONFIG)), Path(download_pretrained_from_hf(name))


def _folder_config(values: Mapping[str, Any], where: Path) -> dict[str, Any]:
    config = values.get("model_cfg")
    if not isinstance(config, dict) or not all(isinstance(config.get(key), dict) for key in ("vision_cfg", "text_cfg")):
        raise UserError(f"{where}: has no model_cfg with vision_cfg and text_cfg, as open_clip writes it")
    return {**config, "preprocess_cfg": values.get("preprocess_cfg") or {}}


def _with_preprocess(config: dict[str, Any], fields: Mapping[str, Any] | None) -> dict[str, Any]:
    if not fields:
        return config
    Preprocess(size=1).changed(fields)  # refuses invalid settings before a tower is built
    size = {"image_size": fields["size"]} if "size" in fields else {}
    return {**config, "vision_cfg": {**config["vision_cfg"], **size}, "preprocess": dict(fields)}


def _settle_preprocess(
    path: Path, arch: str | None, encoder: OpenClipImage, config: Mapping[str, Any], is_original: bool
) -> None:
    """Set the preprocessing for weights from a file; released weights and folders state theirs.

    A file in its authors' format has the preprocessing of the release. For other files open_clip uses OpenAI's, and so does
    mmcl.
    """
    if "preprocess_cfg" in config:
        return
    released = [_tag_preprocess(get_pretrained_cfg(arch, tag)) for tag in open_clip.list_pretrained_tags_by_model(arch or "")]
    usual = {_preprocess(cfg, encoder.visual.image_size) for cfg in released}
    if is_original and len(usual) == 1:
        encoder.show({**encoder.rebuild_args["config"], "preprocess_cfg": released[0]})
        note(logger, f"{path}: images are shown as to the released weights of {arch}")
        return
    if "preprocess" in encoder.rebuild_args["config"]:
        return
    others = "" if not usual or encoder.preprocess in usual else f" (released weights of {arch} have others)"
    say_preprocess(path, encoder.preprocess, f"{others}, and {'QuickGELU' if config.get('quick_gelu') else 'GELU'}")


def _tag_preprocess(tag: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tag[key] for key in ("mean", "std", "interpolation", "resize_mode", "fill_color") if tag.get(key) is not None}


def _download(tag: Mapping[str, Any], name: str) -> Path:
    with hub_errors(name):
        return Path(download_pretrained(tag))


def _checked_build(build: Any, config: Mapping[str, Any], part: str, **overrides: Any) -> Any:
    try:
        return build(config["embed_dim"], {**config[part], **overrides}, config.get("quick_gelu", False))
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"open_clip: {part} does not describe a tower ({error!r}); see open_clip's model_configs for examples"
        ) from None


def _hf_text_tower(config: Mapping[str, Any]) -> Any:
    """Build a Hugging Face text tower. open_clip reads its configuration only by name, so it is written to a folder."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config["hf_config"]), encoding="utf-8")
        return _checked_build(_build_text_tower, config, "text_cfg", hf_model_name=folder, hf_model_pretrained=False)


def _preprocess(cfg: Mapping[str, Any], image_size: int | tuple[int, int]) -> Preprocess:
    """Return the preprocessing that `open_clip.image_transform` applies in evaluation with the same settings."""
    height, width = image_size if isinstance(image_size, Sequence) else (image_size, image_size)
    resize = _RESIZE.get(cfg.get("resize_mode") or "shortest")
    if resize is None:
        raise unknown_name("resize_mode", cfg["resize_mode"], _RESIZE, where="open_clip")
    if cfg.get("interpolation") not in (None, "bicubic", "bilinear", "random"):
        raise unknown_name("interpolation", cfg["interpolation"], ("bicubic", "bilinear", "random"), where="open_clip")
    # In open_clip, "random" is bicubic in evaluation, and so is any resize that covers a non-square image.
    is_bilinear = cfg.get("interpolation") == "bilinear" and (resize != "shortest" or height == width)
    return Preprocess(
        size=(height, width),
        mean=_per_channel(cfg.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        std=_per_channel(cfg.get("std") or open_clip.OPENAI_DATASET_STD),
        interpolation="bilinear" if is_bilinear else "bicubic",
        resize=resize,
        fill=cfg.get("fill_color") or 0,
    )


def _per_channel(values: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(values) if isinstance(values, Sequence) else (values,) * 3


def _tokenizer(text_cfg: Mapping[str, Any], context_length: int, folder: str | None = None) -> Tokenizer:
    """Return the tokenizer that a configuration names, from the model's own folder if it has one."""
    name = text_cfg.get("hf_tokenizer_name")
    options = {"clean": "whitespace" if name else "lower", **(text_cfg.get("tokenizer_kwargs") or {})}
    clean, blank_end = options.pop("clean"), options.pop("strip_sep_token", False)
    options["tokenizer_mode"] = text_cfg.get("tokenizer_mode")
    unknown = [f"{key} {value!r}" for key, value in options.items() if value]
    if unknown:
        raise UserError(f"open_clip: {unknown[0]} of the tokenizer is not supported; give a tokenizer of your own")
    if not name:
        return clip_bpe(context_length, clean=clean)
    return load_tokenizer(folder or name, context_length=context_length, clean=clean, blank_end=blank_end)
