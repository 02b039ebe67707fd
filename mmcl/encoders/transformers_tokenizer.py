"""Tokenizers of Hugging Face transformers, from a folder or the hub. Remote code is never executed."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any

import transformers
from tokenizers import Regex, normalizers
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from mmcl.encoders.tokenizers import Clean, Tokenizer, from_transformers
from mmcl.errors import UserError
from mmcl.files.hub import hub_errors
from mmcl.logging import get_logger, note

logger = get_logger(__name__)

_SIGLIP = ("siglip", "siglip_text_model", "siglip2", "siglip2_text_model")


def load_tokenizer(
    name: str,
    *,
    context_length: int | None = None,
    most: int | None = None,
    clean: Clean = "none",
    blank_end: bool = False,
    model_type: str | None = None,
) -> Tokenizer:
    """Load the tokenizer of a folder or hub id and convert it with `from_transformers`.

    Args:
        context_length: None uses the smaller of the tokenizer's own limit and `most`.
        most: number of positions of the model.
        model_type: type of the text model; SigLIP models were trained only on lower-cased texts.
    """
    with hub_errors(name):
        says = get_tokenizer_config(name)
        declared = says.get("tokenizer_class") or ""
        theirs = _fast_tokenizer(name, declared)
    if clean == "canonicalize" or (model_type in _SIGLIP and declared.startswith("SiglipTokenizer")):
        library = "transformers" if clean == "none" else "open_clip"
        note(
            logger,
            f"{name}: texts are lower-cased and lose their punctuation, as {library} and Google's zero-shot evaluation do it; "
            "SigLIP was trained on lower-cased texts with punctuation, which hf: names of SigLIP 2 keep",
        )
    # Some classes pad at the start by default, as is usual for generation; text towers are trained with padding at the end.
    theirs.padding_side = says.get("padding_side", "right")
    if model_type in _SIGLIP:
        backend = theirs.backend_tokenizer
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([*_siglip_normalizers(declared), *own])
    length = context_length or min(theirs.model_max_length, most or theirs.model_max_length)
    return from_transformers(theirs, context_length=length, clean=clean, blank_end=blank_end)


def _fast_tokenizer(name: str, declared: str) -> Any:
    """Load a tokenizer backed by the Rust library; from tokenizer.json if transformers has only a slow class (SigLIP)."""
    for load in (transformers.AutoTokenizer.from_pretrained, transformers.PreTrainedTokenizerFast.from_pretrained):
        try:
            theirs = load(name, trust_remote_code=False)
            if theirs.is_fast:
                return theirs
        except ImportError:  # a slow class needs sentencepiece
            pass
        except ValueError as error:
            if "backend tokenizer" not in str(error):  # only files of a slow class exist
                raise
    raise UserError(
        f"{name}: {declared or 'its tokenizer'} has no fast version here, and there is no tokenizer.json; save one beside it"
    )


def _siglip_normalizers(declared: str) -> Sequence[normalizers.Normalizer]:
    """Return the normalization applied to texts in SigLIP's training.

    Tokenizer files may lack it: for the first generation it is code in the slow tokenizer class, and for the second the
    fixed-resolution releases name the plain Gemma class.
    """
    lower = [normalizers.Lowercase()]
    if not declared.startswith("SiglipTokenizer"):
        return lower
    punctuation = normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), "")
    return [*lower, punctuation, normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
