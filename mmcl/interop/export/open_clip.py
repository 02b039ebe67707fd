"""Folders of open_clip: its own models, and CLIP of transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from mmcl.encoders.open_clip import OpenClipImage, OpenClipText
from mmcl.encoders.tokenizers import Tokenizer, clip_bpe
from mmcl.encoders.tower import fixed_length
from mmcl.errors import UserError
from mmcl.interop.export.clip_names import config_for_open_clip, to_open_clip
from mmcl.interop.export.differences import image_differences
from mmcl.interop.export.dual import as_dual, open_clip_config, open_clip_weights
from mmcl.interop.export.folding import fold_head, head_of
from mmcl.interop.export.hf_files import write_tokenizer
from mmcl.interop.export.target import ExportTarget, LoadedExport, instead
from mmcl.interop.graph_folder import Precision
from mmcl.interop.model import Model
from mmcl.preprocess import Preprocess
from mmcl.types import Tokens

CONFIG, WEIGHTS, TEXT_CONFIG = "open_clip_config.json", "open_clip_model.safetensors", "config.json"
_RESIZE = {"shortest": "shortest", "squash": "squash", "pad": "longest"}
_PROJECTIONS = {
    "image": ("visual.proj", "visual.attnpool.c_proj", "visual.head.proj"),
    "text": ("text.text_projection", "text.proj"),
}
"""Last layers of the towers, by which a linear head can be multiplied. None is that of an MLP, the width of whose hidden layer
depends on the width of the embeddings."""


class OpenClipExport(ExportTarget):
    """A folder of open_clip: its own towers, and CLIP of transformers. Linear heads become part of them."""

    precisions = ("fp32", "fp16")
    loads_from_hub = True

    def __init__(self, model: Model, *, precision: Precision = "fp32"):
        super().__init__(model, precision=precision)
        encoders = [model.towers[name].encoder for name in ("image", "text") if name in model.towers]
        self._text_config: Mapping[str, Any] | None = None
        match encoders:
            case [OpenClipImage() as image, OpenClipText() as text]:
                self.config, self.weights = _of_open_clip(model, image, text)
                self._text_config = text.rebuild_args["config"].get("hf_config")
            case _:
                dual = as_dual(model, "open_clip")
                if dual.config["model_type"] != "clip":
                    raise UserError(f"open_clip has no model of type {dual.config['model_type']!r}; try --to {instead(model)}")
                self.config, self.weights = config_for_open_clip(dual.config), to_open_clip(dual.weights)
        self._preprocess, self._lost = _preprocess_cfg(model.preprocess)

    def write(self, folder: Path) -> Sequence[str]:
        """Writes configuration, weights, and a tokenizer that is not CLIP's."""
        model, text_cfg, lost = self.model, self.config["text_cfg"], list(self._lost)
        lost += _choose_tokenizer(model.tokenizer, text_cfg, folder)
        if self._text_config is not None:
            (folder / TEXT_CONFIG).write_text(json.dumps(self._text_config), encoding="utf-8")
            lost.append(f"open_clip reads the configuration of the text tower by its name, {text_cfg['hf_model_name']}")
        weights, config = {**self.weights, **_scalars(model)}, dict(self.config)
        if model.logit_scale is None:
            lost.append("open_clip's models have a logit_scale, and the model has none: its probabilities mean nothing")
        if model.logit_bias is not None:
            config["init_logit_bias"] = model.logit_bias
        if _is_plain(text_cfg):  # the form that every version of open_clip reads
            weights = {name.removeprefix("text."): tensor for name, tensor in weights.items()}
        else:
            config["custom_text"] = True
        content = {"model_cfg": config, "preprocess_cfg": self._preprocess}
        (folder / CONFIG).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        half = self.precision == "fp16"
        tensors = {name: (t.half() if half and t.is_floating_point() else t).contiguous() for name, t in weights.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        return lost

    def load(self, folder: Path) -> LoadedExport:
        """Loads the folder by its name for open_clip."""
        return LoadedOpenClip(folder, self.model.tokenizer)

    def usage(self, place: str, *, on_hub: bool = False) -> str:
        """See `ExportTarget`."""
        name = f"{'hf-hub' if on_hub else 'local-dir'}:{place}"
        return (
            "import open_clip\n\n"
            f'model, _, show = open_clip.create_model_and_transforms("{name}")\n'
            f'tokenize = open_clip.get_tokenizer("{name}")\n'
            "model.eval().encode_image(show(image)[None]), model.encode_text(tokenize(texts))"
        )


def _of_open_clip(model: Model, image: OpenClipImage, text: OpenClipText) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns configuration and weights of towers of open_clip, with linear heads multiplied in."""
    config, weights = open_clip_config(image, text), open_clip_weights(image, text)
    for part in ("vision_cfg", "text_cfg"):
        if config[part].get("output_tokens") or config[part].get("embed_cls"):
            raise UserError(f"CoCa of open_clip has a text decoder, which is not kept here ({part}); try --to {instead(model)}")
    for name in ("image", "text"):
        head = head_of(model, name)
        refusal = f"open_clip: the {name} head {type(head).__name__} has no place in its models; try --to {instead(model)}"
        if fold_head(weights, _PROJECTIONS[name], head, refusal=refusal):
            config["embed_dim"] = head.embed_dim
    return config, weights


def _scalars(model: Model) -> dict[str, Tensor]:
    scale = 1.0 if model.logit_scale is None else model.logit_scale
    numbers = {"logit_scale": math.log(scale), "logit_bias": model.logit_bias}
    return {name: torch.tensor(number) for name, number in numbers.items() if number is not None}


def _is_plain(text_cfg: Mapping[str, Any]) -> bool:
    special = ("hf_model_name", "embed_cls", "no_causal_mask")
    return not any(text_cfg.get(key) for key in special) and text_cfg.get("pool_type", "argmax") in ("argmax", "eos")


def _choose_tokenizer(tokenizer: Tokenizer, text_cfg: dict[str, Any], folder: Path) -> list[str]:
    """Sets the tokenizer in a configuration, and writes its files unless it is CLIP's. Returns what is lost."""
    length, clean, lost = text_cfg.get("context_length", 77), tokenizer.clean, []
    for key in ("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"):
        text_cfg.pop(key, None)
    if tokenizer.context_length != length:
        lost.append(f"texts are cut at {length} tokens there, and at {tokenizer.context_length} here")
    if clean == "none":
        clean = "whitespace"
        lost.append("mojibake, HTML entities and white space in texts are repaired there")
    is_clips = tokenizer.to_json() == clip_bpe(tokenizer.context_length, clean=tokenizer.clean).to_json()
    options: dict[str, Any] = {} if clean == ("lower" if is_clips else "whitespace") else {"clean": clean}
    if not is_clips:
        write_tokenizer(tokenizer, folder, reads_padding=not _is_plain(text_cfg), blanks=True)
        text_cfg["hf_tokenizer_name"] = "tokenizer"  # any name: that of a folder is read from the folder
    if tokenizer.blank_id is not None:
        options["strip_sep_token"] = True
    if options:
        text_cfg["tokenizer_kwargs"] = options
    return lost


def _preprocess_cfg(preprocess: Preprocess) -> tuple[dict[str, Any], list[str]]:
    """Returns the image transform of open_clip, and what it does differently. Raises UserError if it cannot do it so."""
    fill = preprocess.fill if isinstance(preprocess.fill, int) else min(preprocess.fill)
    impossible = {
        f"images of {preprocess.channels} channels": preprocess.channels != 3,
        f"channels in the order {preprocess.channel_order}": preprocess.channel_order != "rgb",
        f"resize {preprocess.resize!r}": preprocess.resize not in _RESIZE,
        f"a resize to {preprocess.resize_size} before a crop to {preprocess.size}": (
            preprocess.resize_size not in (None, preprocess.size)
        ),
        f"interpolation {preprocess.interpolation!r}": preprocess.interpolation not in ("bicubic", "bilinear"),
        f"fill {preprocess.fill}": isinstance(preprocess.fill, tuple) and len(set(preprocess.fill)) > 1,
    }
    for what, applies in impossible.items():
        if applies:
            raise UserError(f"open_clip has no image transform for {what}; try --to onnx")
    lost = image_differences(preprocess, backend="pillow", crop_rounding="round", fill=fill)
    settings = {
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation,
        "resize_mode": _RESIZE[preprocess.resize],
        "fill_color": fill,
    }
    return settings, lost


class LoadedOpenClip:
    """A folder of open_clip, as the library loads it.

    Args:
        folder: the folder.
        tokenizer: mmcl's tokenizer, whose tokens are padded as the library pads them.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer):
        name = f"local-dir:{folder}"
        text_cfg = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
        # By its name, the configuration of the text tower would come from the hub: here it is that of the folder.
        local = {"text_cfg": {**text_cfg, "hf_model_name": str(folder), "hf_model_pretrained": False}}
        self.model, _, self.show = open_clip.create_model_and_transforms(name, **(local if "hf_model_name" in text_cfg else {}))
        self.model.eval()
        self.tokenize = open_clip.get_tokenizer(name)
        self._tokenizer = tokenizer

    @torch.inference_mode()
    def embed_pixels(self, pixels_BCHW: Tensor) -> np.ndarray:
        """See `LoadedExport`."""
        normalize = self.show.transforms[-1]
        rows: np.ndarray = self.model.encode_image(normalize(pixels_BCHW), normalize=True).numpy()
        return rows

    @torch.inference_mode()
    def embed_tokens(self, tokens: Tokens) -> np.ndarray:
        """See `LoadedExport`."""
        rows: np.ndarray = self.model.encode_text(self._padded(tokens), normalize=True).numpy()
        return rows

    @torch.inference_mode()
    def encode_image(self, images: Sequence[Image.Image | np.ndarray]) -> np.ndarray:
        """See `LoadedExport`."""
        pixels_BCHW = torch.stack([self.show(image) for image in images])
        rows: np.ndarray = self.model.encode_image(pixels_BCHW, normalize=True).numpy()
        return rows

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """See `LoadedExport`."""
        rows: np.ndarray = self.model.encode_text(self.tokenize(list(texts)), normalize=True).numpy()
        return rows

    def _padded(self, tokens: Tokens) -> Tensor:
        ids_BL = fixed_length(tokens, self.tokenize.context_length, self._tokenizer)
        text = getattr(self.model, "text", None)
        padding = getattr(getattr(text, "config", None), "pad_token_id", None)
        return ids_BL if padding is None else ids_BL.masked_fill(ids_BL == self._tokenizer.pad_id, padding)
