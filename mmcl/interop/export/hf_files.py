"""Files of transformers beside a model: its tokenizer and its image processor."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Regex, normalizers
from tokenizers import Tokenizer as Backend

from mmcl.encoders.image_processor import RESAMPLE
from mmcl.encoders.tokenizers import Clean, Tokenizer
from mmcl.errors import UserError
from mmcl.interop.export.differences import image_differences
from mmcl.preprocess import Preprocess

_LOWER = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
_CLEANING: dict[Clean, Sequence[normalizers.Normalizer]] = {
    "none": (),
    "whitespace": _LOWER[:2],
    "lower": _LOWER,
    "canonicalize": [
        normalizers.Replace("_", " "),
        normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), ""),
        *_LOWER,
    ],
}


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, reads_padding: bool, blanks: bool = False) -> list[str]:
    """Writes a tokenizer as `transformers.AutoTokenizer` reads it.

    Args:
        tokenizer: the tokenizer.
        folder: where to write.
        reads_padding: whether the model has no mask, so that padding is part of every text.
        blanks: whether the caller's library replaces the separator by token 0, see `Tokenizer.blank_id`.

    Returns:
        What is lost, one line each.

    Raises:
        UserError: the tokenizer does something that transformers cannot.
    """
    if tokenizer.blank_id is not None and not blanks:
        raise UserError("transformers has no tokenizer that replaces its end token by 0; try --to onnx")
    content = tokenizer.to_json()["backend"]
    backend = Backend.from_str(json.dumps({**content, "truncation": None, "padding": None}))
    own = [] if backend.normalizer is None else [backend.normalizer]
    if cleaning := _CLEANING[tokenizer.clean]:
        backend.normalizer = normalizers.Sequence([*cleaning, *own])
    special = {
        "bos_token": tokenizer.begin_id,
        "eos_token": tokenizer.end_id,
        "pad_token": _padding(tokenizer, backend, reads_padding),
        "sep_token": tokenizer.blank_id,
    }
    tokens = {name: backend.id_to_token(number) for name, number in special.items() if number is not None}
    if (unknown := _unknown_token(content["model"])) is not None:
        tokens["unk_token"] = unknown
    written = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **tokens,
        model_max_length=tokenizer.context_length,
        padding_side=tokenizer.pad_side,
        truncation_side=(content["truncation"] or {}).get("direction", "right").lower(),
        model_input_names=["input_ids"] if reads_padding else ["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    written.save_pretrained(folder)
    return [] if tokenizer.clean == "none" else ["mojibake and HTML entities (&amp;) in texts are not repaired there"]


def _unknown_token(model: dict[str, Any]) -> str | None:
    """Token for unknown words of a model of the `tokenizers` library, as in its file."""
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")


def _padding(tokenizer: Tokenizer, backend: Backend, reads_padding: bool) -> int | None:
    """Id of the padding. A token of the vocabulary would be split off from texts as soon as it is called special, so another is
    taken where padding is masked."""
    special = {number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    if tokenizer.pad_id in special or reads_padding:
        return tokenizer.pad_id
    return tokenizer.end_id if tokenizer.end_id in special else tokenizer.pad_id


def image_processor(preprocess: Preprocess, *, patch_size: int | None = None) -> tuple[Any, list[str]]:
    """Returns an image processor of transformers, and what it does differently, one line each.

    Args:
        preprocess: preprocessing of the model.
        patch_size: of a SigLIP 2 model, which takes patches.

    Raises:
        UserError: transformers cannot do it so.
    """
    size = {"height": preprocess.height, "width": preprocess.width}
    resized = preprocess.resize_size or preprocess.size
    settings: dict[str, Any] = {
        "resample": next(number for number, name in RESAMPLE.items() if name == preprocess.interpolation),
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "do_convert_rgb": True,
    }
    if preprocess.channels != 3 or preprocess.channel_order != "rgb":
        raise _refusal("images other than RGB")
    lost = image_differences(preprocess, backend="torchvision", crop_rounding="truncate", fill=0)
    if patch_size is not None:
        if resized != preprocess.size or preprocess.resize != "squash":
            raise _refusal(f"resize {preprocess.resize!r} before patches")
        patches = (preprocess.height // patch_size) * (preprocess.width // patch_size)
        lost.append("images keep their aspect there (NaFlex), so that only square ones are seen as in training")
        return transformers.Siglip2ImageProcessor(**settings, patch_size=patch_size, max_num_patches=patches), lost
    if preprocess.resize == "squash" and resized == preprocess.size:
        return transformers.SiglipImageProcessor(**settings, size=size), lost
    if preprocess.resize == "shortest" and isinstance(resized, int):
        edge: dict[str, int] = {"shortest_edge": resized}
    elif preprocess.resize == "squash":
        edge = dict(zip(("height", "width"), resized if isinstance(resized, tuple) else (resized, resized), strict=True))
    else:
        raise _refusal(f"resize {preprocess.resize!r}" + ("" if preprocess.resize != "shortest" else f" to {resized}"))
    return transformers.CLIPImageProcessor(**settings, size=edge, do_center_crop=True, crop_size=size), lost


def _refusal(what: str) -> UserError:
    return UserError(f"transformers has no image processor for {what}; try --to onnx")
