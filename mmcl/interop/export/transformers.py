"""Folders of transformers for CLIP-like models."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmcl.encoders.transformers import READS_PATCHES, TRAINED_WITHOUT_MASK
from mmcl.errors import UserError
from mmcl.interop.export.dual import as_dual
from mmcl.interop.export.hf_files import image_processor, write_tokenizer
from mmcl.interop.export.target import ExportTarget, LoadedExport
from mmcl.interop.graph_folder import Precision
from mmcl.interop.model import Model
from mmcl.types import Tokens


class TransformersExport(ExportTarget):
    """A folder of transformers: its own CLIP, SigLIP and SigLIP 2, and CLIP of open_clip. Linear heads become part of them."""

    precisions = ("fp32", "fp16")
    loads_from_hub = True

    def __init__(self, model: Model, *, precision: Precision = "fp32"):
        super().__init__(model, precision=precision)
        self.dual = as_dual(model, "transformers")
        self._reads_padding = self.dual.config["model_type"] in TRAINED_WITHOUT_MASK
        patch = self.dual.config["vision_config"]["patch_size"] if self.dual.config["model_type"] in READS_PATCHES else None
        self._processor, self._lost = image_processor(model.preprocess, patch_size=patch)

    @property
    def patches(self) -> dict[str, int]:
        """Settings of the image processor of a model that takes patches."""
        return {"patch_size": self._processor.patch_size, "max_num_patches": self._processor.max_num_patches}

    def write(self, folder: Path) -> Sequence[str]:
        """Writes the model, its tokenizer and its image processor, as `save_pretrained` does."""
        built, lost = build(self.model, self.dual.config, self.dual.weights)
        (built.half() if self.precision == "fp16" else built).save_pretrained(folder)
        self._processor.save_pretrained(folder)
        lost += write_tokenizer(self.model.tokenizer, folder, reads_padding=self._reads_padding)
        return [*lost, *self._lost]

    def load(self, folder: Path) -> LoadedExport:
        """Loads the folder by the automatic classes."""
        return LoadedTransformers(folder, pads=self._reads_padding)

    def usage(self, place: str, *, on_hub: bool = False) -> str:
        """See `ExportTarget`."""
        padding = 'padding="max_length"' if self._reads_padding else "padding=True"
        return (
            "from transformers import AutoImageProcessor, AutoModel, AutoTokenizer\n\n"
            f'model = AutoModel.from_pretrained("{place}", dtype="float32")\n'
            f'pixels = AutoImageProcessor.from_pretrained("{place}")(images, return_tensors="pt")\n'
            f'tokens = AutoTokenizer.from_pretrained("{place}")(texts, {padding}, truncation=True, return_tensors="pt")\n'
            "model.get_image_features(**pixels), model.get_text_features(**tokens)"
        )


def build(model: Model, config: dict[str, Any], weights: dict[str, Tensor]) -> tuple[Any, list[str]]:
    """Builds a model of transformers from its configuration, its weights, and the parameters of the logits.

    Returns:
        The model, and what it cannot express, one line each.

    Raises:
        UserError: the weights are not those of the configuration.
    """
    values = copy.deepcopy(config)
    built: Any = transformers.AutoModel.from_config(
        transformers.AutoConfig.for_model(values.pop("model_type"), **values), dtype=torch.float32
    )
    log_scale = None if model.logit_scale is None else math.log(model.logit_scale)
    lost = []
    for name, value in (("logit_scale", log_scale), ("logit_bias", model.logit_bias)):
        parameter = getattr(built, name, None)
        if parameter is None and value is not None:
            lost.append(f"{name} {value:.4g} has no place in {type(built).__name__}: its probabilities are others")
        if parameter is not None:
            if value is None:
                lost.append(f"{type(built).__name__} has {name}, and the model has none: its probabilities mean nothing")
            weights = {**weights, name: torch.full_like(parameter, 0.0 if value is None else value)}
    own = built.state_dict().keys()
    if own != weights.keys():
        different = min(own ^ weights.keys())
        raise UserError(f"{type(built).__name__} as installed here has other weights than the model, among them {different}")
    built.load_state_dict(weights)
    return built.eval(), lost


class LoadedTransformers:
    """A folder of transformers as its automatic classes load it.

    Args:
        folder: the folder.
        pads: whether texts are padded to the full length, as of models without a mask.
    """

    def __init__(self, folder: Path, *, pads: bool):
        self.model: Any = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor: Any = transformers.AutoImageProcessor.from_pretrained(folder)
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self._pads = pads

    def pixel_inputs(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """Returns the input of the model for pixels of its size, float32 in [0, 1]."""
        kept = {"do_resize": False, "do_center_crop": False, "do_rescale": False}
        return dict(self.processor(list(pixels_BCHW), **kept, return_tensors="pt"))

    def token_inputs(self, tokens: Tokens) -> dict[str, Tensor]:
        """Returns the input of the model for tokens."""
        padding = self.tokenizer.pad_token_id
        ids = tokens.ids.masked_fill(~tokens.mask, padding)
        if not self._pads:
            return {"input_ids": ids, "attention_mask": tokens.mask.long()}
        return {"input_ids": F.pad(ids, (0, self.tokenizer.model_max_length - ids.shape[1]), value=padding)}

    @torch.inference_mode()
    def embed_pixels(self, pixels_BCHW: Tensor) -> np.ndarray:
        """See `LoadedExport`."""
        return _unit(self.model.get_image_features(**self.pixel_inputs(pixels_BCHW)))

    @torch.inference_mode()
    def embed_tokens(self, tokens: Tokens) -> np.ndarray:
        """See `LoadedExport`."""
        return _unit(self.model.get_text_features(**self.token_inputs(tokens)))

    @torch.inference_mode()
    def encode_image(self, images: Sequence[Image.Image | np.ndarray]) -> np.ndarray:
        """See `LoadedExport`."""
        rows = [self.processor(image, return_tensors="pt") for image in images]
        return np.concatenate([_unit(self.model.get_image_features(**inputs)) for inputs in rows])

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """See `LoadedExport`."""
        padding = "max_length" if self._pads else True
        inputs = self.tokenizer(list(texts), padding=padding, truncation=True, return_tensors="pt")
        return _unit(self.model.get_text_features(**inputs))


def _unit(output: Any) -> np.ndarray:
    rows: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    unit: np.ndarray = F.normalize(rows.float(), dim=-1).numpy()
    return unit
