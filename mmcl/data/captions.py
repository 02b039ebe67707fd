"""Validation and comparison of captions, which may come from untrusted files."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from dataclasses import dataclass

import numpy as np

from mmcl.errors import UserError
from mmcl.types import Tokens

MAX_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True)
class NotText:
    """What stands for a caption that is no text. It can be hashed, as texts are, and `checked_caption` refuses it.

    Attributes:
        type: name of the type of the value.
        content: the value, shortened.
    """

    type: str
    content: str

    def __repr__(self) -> str:
        return self.content


def text_or_not(value: object) -> str | NotText:
    """Returns a text as it is, and what stands for any other value."""
    return value if isinstance(value, str) else NotText(type(value).__name__, f"{value!r:.100}")


def caption_lines(text: str) -> tuple[str, ...]:
    """Returns the captions in a text, one per non-empty line. Only CR and LF end a line; other Unicode breaks are kept."""
    return tuple(line.strip() for line in re.split(r"[\r\n]", text) if line.strip())


def checked_caption(caption: object, name: str) -> str:
    """Returns the caption if a tokenizer can process it: valid Unicode, neither empty nor absurdly long.

    Raises:
        UserError: the caption is invalid; names the sample and the problem.
    """
    if not isinstance(caption, str):
        kind = caption.type if isinstance(caption, NotText) else type(caption).__name__
        raise UserError(f"{name}: the caption is of type {kind}, not a text")
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
    """Ids of tokenized texts: equal for equal tokens, whatever the original text or the padding.

    Captions that differ only in what the tokenizer discards (case, white space, everything beyond the context length) are the
    same text to the encoder. With different ids, a contrastive loss would push that text's embedding away from itself.

    Returns:
        int64 [B], from 0 to 2^63 - 1; the same in every process.
    """
    rows = zip(tokens.ids.numpy().astype("<i8"), tokens.mask.sum(1).tolist(), strict=True)
    return np.array([_hash(ids[:length].tobytes()) for ids, length in rows], np.int64)


def caption_key(text: object) -> str:
    """Normalizes case, white space, HTML entities and the Unicode form of a caption.

    Captions with equal keys are treated as equal where no tokenizer is available: in splits, mixtures and retrieval.
    """
    plain = unicodedata.normalize("NFC", html.unescape(html.unescape(str(text))))
    return " ".join(plain.split()).casefold()


def text_hash(text: str) -> int:
    """63-bit hash of a text, the same in every process; accepts invalid Unicode."""
    return _hash(text.encode("utf-8", "surrogatepass"))


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1
