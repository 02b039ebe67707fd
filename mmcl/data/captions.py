"""Validation and comparison of captions, which come from untrusted files too."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata

import numpy as np

from mmcl.errors import UserError
from mmcl.types import Tokens

MAX_CHARACTERS = 20_000


def caption_lines(text: str) -> tuple[str, ...]:
    """The captions in a text file: every line that is not empty. Only CR and LF end a line; a caption may hold the others."""
    return tuple(line.strip() for line in re.split(r"[\r\n]", text) if line.strip())


def checked_caption(caption: object, name: str) -> str:
    """A caption that a tokenizer can take: valid Unicode, neither empty nor absurdly long.

    Raises:
        UserError: names the sample and what is wrong with its caption.
    """
    if not isinstance(caption, str):
        raise UserError(f"{name}: the caption is of type {type(caption).__name__}, not a text")
    if not caption.strip():
        raise UserError(f"{name}: the caption is empty")
    if len(caption) > MAX_CHARACTERS:
        raise UserError(f"{name}: the caption has {len(caption)} characters, more than the limit of {MAX_CHARACTERS}")
    try:
        caption.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{name}: the caption is not valid Unicode") from None
    return caption


def token_ids(tokens: Tokens) -> np.ndarray:
    """Ids of texts as their encoder reads them: equal for equal tokens, whatever the text or the padding.

    Two captions that differ only in what a tokenizer drops (case, white space, everything behind the context length) are one
    text to the encoder. With two ids, a contrastive loss would push that text's embedding away from itself.

    Returns:
        int64 [B], from 0 to 2^63 - 1; the same in every process.
    """
    rows = zip(tokens.ids.numpy().astype("<i8"), tokens.mask.sum(1).tolist(), strict=True)
    return np.array([_hash(ids[:length].tobytes()) for ids, length in rows], np.int64)


def caption_key(text: object) -> str:
    """A caption without case, runs of white space, HTML entities and the Unicode form of its accents.

    Captions of equal keys are the same caption wherever no tokenizer is at hand to decide: in splits, mixtures, retrieval.
    """
    plain = unicodedata.normalize("NFC", html.unescape(html.unescape(str(text))))
    return " ".join(plain.split()).casefold()


def text_hash(text: str) -> int:
    """63 bits that are equal for equal texts, in every process; also of texts that are not valid Unicode."""
    return _hash(text.encode("utf-8", "surrogatepass"))


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1
