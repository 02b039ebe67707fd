"""Tokenizers for all text encoders: one class around the Rust `tokenizers` library.

A tokenizer is saved as one JSON file, so a saved model needs neither the hub nor pickle. Batches are padded to their longest
text instead of the context length, because captions are short and a text tower would spend most of its time on padding.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import json
import os
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import ftfy
import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from mmcl.config import from_dict
from mmcl.errors import UserError, first_line, unknown_name
from mmcl.files.untrusted import read_json
from mmcl.types import Tokens

# Loader workers are forked. The library's threads do not survive this, and it would warn once per worker.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

Clean = Literal["none", "whitespace", "lower", "canonicalize"]
"""Cleaning of a text before it is split. All but "none" repair mojibake, decode HTML entities and collapse white space;
"lower" also lower-cases (CLIP), "canonicalize" lower-cases and drops ASCII punctuation (SigLIP)."""

PadSide = Literal["left", "right"]

FORMAT_VERSION = 1
MAX_VOCAB = 2**24
"""Largest vocabulary: far above any in use (about 260,000), with an embedding table that still fits into memory."""
_PROBES = ("", "a photo of a cat.", "  Two\t spaces\n", "it's 1,234 €", "日本語 ไทย", "👩‍👩‍👧 🏳️‍🌈", "é e\u0301", "a" * 200)


class Tokenizer:
    """Convert texts to `Tokens`: add special tokens, truncate to the context length, pad to the longest text.

    Texts are truncated at the end, or at the start if the backend's truncation says so. The end token is always kept.

    Attributes:
        vocab_size: one more than the largest token id, special ones included.
        context_length: largest number of tokens of a text, special ones included.
        pad_id: fills a row after its text; not part of the text, see `Tokens.mask`.
        begin_id, end_id: the special tokens around a text, or None if the tokenizer adds none.
        blank_id: a token that is always replaced by 0, as in the training of CLIPA (Li et al., 2023); or None.
        pad_side: side of the padding for encoders that read all texts at one length; batches are always padded at the end.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        context_length: int,
        pad_id: int,
        begin_id: int | None = None,
        end_id: int | None = None,
        clean: Clean = "none",
        blank_id: int | None = None,
        pad_side: PadSide = "right",
        where: str = "tokenizer",
    ):
        if clean not in _CLEANERS:
            raise unknown_name("text cleaning", clean, _CLEANERS)
        special = backend.num_special_tokens_to_add(False)
        if context_length <= special:
            raise UserError(
                f"context_length {context_length} leaves no room for a word; this tokenizer needs at least {special + 1}"
            )
        self._backend = backend
        self._backend.no_padding()
        side = (backend.truncation or {}).get("direction", "right")
        self._backend.enable_truncation(context_length, direction=side)
        self.context_length = context_length
        self.pad_id = pad_id
        self.begin_id = begin_id
        self.end_id = end_id
        self.clean: Clean = clean
        self.blank_id = blank_id
        self.pad_side: PadSide = pad_side
        self._where = where

    @cached_property
    def vocab_size(self) -> int:
        """Number of rows needed in an embedding table: one more than the largest id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def check(self) -> None:
        """Validate a tokenizer read from a file: its special ids, and texts that exercise all its parts.

        Raises:
            UserError: an id is not in the vocabulary, or a text cannot be tokenized.
        """
        size = self.vocab_size
        if not 0 < size <= MAX_VOCAB:
            raise UserError(f"{self._where}: it has token ids up to {size - 1:,}; vocabularies have 1 to {MAX_VOCAB:,} tokens")
        for name in ("pad_id", "begin_id", "end_id", "blank_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < size:
                raise UserError(f"{self._where}: {name} is {token}, and the vocabulary has the ids 0 to {size - 1:,}")
        if self.largest_id() >= size:
            raise UserError(f"{self._where}: it gives token ids that are not in its vocabulary")

    def largest_id(self) -> int:
        """Return the largest id in the padded tokens of texts that exercise all parts of the tokenizer."""
        return max(self.pad_id, *(max(encoding.ids, default=0) for encoding in self._encode(_PROBES)))

    def __call__(self, texts: str | Sequence[str]) -> Tokens:
        """Tokenize one or several texts to `Tokens` [B, L], L the longest of them. Raises UserError for a non-string."""
        import torch  # not needed where a model runs without it

        ids, mask, truncated = self.arrays(texts)
        return Tokens(torch.from_numpy(ids), torch.from_numpy(mask), truncated, self.padding_id)

    def arrays(self, texts: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray, int]:
        """Return ids, mask and number of truncated texts as in `Tokens`, in numpy's arrays."""
        encodings = self._encode(texts)
        rows = [encoding.ids or [self.pad_id] for encoding in encodings]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        mask = np.arange(max(lengths, default=1)) < lengths[:, None]
        ids = np.full(mask.shape, self.padding_id, dtype=np.int64)
        ids[mask] = [token for row in rows for token in row]
        if self.blank_id is not None:
            ids[ids == self.blank_id] = 0
        return ids, mask, sum(bool(encoding.overflowing) for encoding in encodings)

    @property
    def padding_id(self) -> int:
        """The id after the end of a text in a batch: `pad_id`, or 0 where that is the blank."""
        return 0 if self.pad_id == self.blank_id else self.pad_id

    def lengths(self, texts: str | Sequence[str]) -> np.ndarray:
        """Return the number of tokens of each text before truncation to `context_length`, int64 [B]."""
        special = self._backend.num_special_tokens_to_add(False)
        return np.array(
            [len(e.ids) + sum(len(rest.ids) - special for rest in e.overflowing) for e in self._encode(texts)], dtype=np.int64
        )

    def to_json(self) -> dict[str, Any]:
        """Return the complete state of the tokenizer as JSON values."""
        return {
            "format_version": FORMAT_VERSION,
            "context_length": self.context_length,
            "pad_id": self.pad_id,
            "begin_id": self.begin_id,
            "end_id": self.end_id,
            "clean": self.clean,
            "blank_id": self.blank_id,
            "pad_side": self.pad_side,
            "backend": json.loads(self._backend.to_str()),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any], *, where: str = "tokenizer") -> Tokenizer:
        """Build a tokenizer from the output of `to_json`. Raises UserError, prefixed with `where`, if it is invalid."""
        content = dict(content)
        backend = content.pop("backend", None)
        if content.pop("format_version", None) != FORMAT_VERSION:
            raise UserError(
                f"{where}: not a tokenizer of format version {FORMAT_VERSION}; save it again with this version of mmcl"
            )
        settings = from_dict(_Settings, content, where)
        with _contained(where):
            tokenizer = cls(Backend.from_str(json.dumps(backend)), **asdict(settings), where=where)
            tokenizer.check()
            return tokenizer

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to a JSON file."""
        Path(path).write_text(json.dumps(self.to_json(), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a file written by `save`. Raises UserError when the file is missing or damaged."""
        return cls.from_json(read_json(path), where=str(path))

    def _encode(self, texts: str | Sequence[str]) -> list[Any]:
        texts = [texts] if isinstance(texts, str) else list(texts)
        clean = _CLEANERS[self.clean]
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"text {number} is a {type(text).__name__}, not a string: {text!r:.40}; give strings")
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise UserError(
                    f"text {number} holds a lone surrogate and is not valid Unicode; decode its file as UTF-8"
                ) from None
        with _contained(self._where):
            return list(self._backend.encode_batch([clean(text) for text in texts]))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Settings:
    """The schema of a tokenizer file, without the Rust library's part and the version."""

    context_length: int
    pad_id: int
    begin_id: int | None
    end_id: int | None
    clean: Clean
    blank_id: int | None = None
    pad_side: PadSide = "right"


@contextmanager
def _contained(where: str) -> Iterator[None]:
    """Convert errors of the Rust library, which raises bare Exceptions, or a BaseException when it panics."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{where}: damaged tokenizer ({first_line(error)}); copy or save the file again") from None


@lru_cache(maxsize=2**16)  # captions recur every epoch, and cleaning is the slowest part
def _mended(text: str) -> str:
    """Repair mojibake, decode HTML entities (twice, as scraped captions are often escaped twice), collapse white space."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def _canonicalized(text: str) -> str:
    return " ".join(_mended(text).translate(_NO_PUNCTUATION).lower().split())


_CLEANERS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "whitespace": _mended,
    "lower": lambda text: _mended(text).lower(),
    "canonicalize": _canonicalized,
}

_BEGIN, _END = "<start_of_text>", "<end_of_text>"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip_bpe(context_length: int = 77, *, clean: Clean = "lower") -> Tokenizer:
    """Build CLIP's lower-cased byte-pair tokenizer (Radford et al., 2021; 49408 tokens) from open_clip's vocabulary file.

    A special token that is written out in a text becomes that token, as in open_clip. The results differ from open_clip only
    if such a token directly follows punctuation, and for letters that are newer than the Rust library's Unicode tables.
    """
    merges = _clip_merges()
    alphabet = _byte_alphabet()
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(merge) for merge in merges), _BEGIN, _END]
    vocab = {token: number for number, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>"))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (_BEGIN, _END)])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    begin_id, end_id = vocab[_BEGIN], vocab[_END]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A {_END}", special_tokens=[(_BEGIN, begin_id), (_END, end_id)]
    )
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, context_length=context_length, pad_id=0, begin_id=begin_id, end_id=end_id, clean=clean)


def _clip_merges() -> list[tuple[str, str]]:
    spec = importlib.util.find_spec("open_clip")  # locates the package without importing it, which would take seconds
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the CLIP vocabulary comes with open_clip, which is not installed; pip install open_clip_torch")
    vocabulary = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(vocabulary.read_bytes()).decode("utf-8").split("\n")
    # The first line is a comment; CLIP uses as many merges as make 49408 tokens with 2 x 256 bytes and 2 special tokens.
    pairs = (line.split() for line in lines[1 : 49408 - 2 * 256 - 2 + 1])
    return [(left, right) for left, right in pairs]


def _byte_alphabet() -> list[str]:
    """Return a printable character for each byte, in the order of CLIP's vocabulary: printable Latin-1 first, then the rest."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def from_transformers(
    tokenizer: Any, *, context_length: int | None = None, clean: Clean = "none", blank_end: bool = False
) -> Tokenizer:
    """Convert a fast tokenizer of transformers, including its special tokens.

    Args:
        tokenizer: a `transformers` tokenizer.
        context_length: context length of the text encoder; None uses the tokenizer's own limit.
        clean: cleaning before the tokenizer's own normalization.
        blank_end: whether to replace the separator by token 0, see `Tokenizer.blank_id`.

    Raises:
        UserError: the tokenizer is not backed by the Rust library, has no limit and none is given, or treats special tokens
            that are written out in a text as plain text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Backend):
        raise UserError(f"{type(tokenizer).__name__} has no fast version; choose a model with a tokenizer.json")
    if getattr(tokenizer, "split_special_tokens", False):
        raise UserError(f"{type(tokenizer).__name__}: split_special_tokens true is not supported; set it to false")
    limit = context_length or tokenizer.model_max_length
    if limit > 1_000_000:  # transformers writes "no limit" as 1e30
        raise UserError(f"{type(tokenizer).__name__} states no context length; set context_length")
    first = [tokenizer.bos_token_id, tokenizer.cls_token_id]
    last = [tokenizer.eos_token_id, tokenizer.sep_token_id]
    begin_id, end_id = (next((i for i in ids if i is not None), None) for ids in (first, last))
    backend = Backend.from_str(backend.to_str())  # a copy, because padding and truncation are set on the object
    pads = (tokenizer.pad_token_id, end_id, 0)
    pad_id = next(i for i in pads if i is not None)
    backend.enable_truncation(int(limit), direction=tokenizer.truncation_side)
    return Tokenizer(
        backend,
        context_length=int(limit),
        pad_id=pad_id,
        begin_id=begin_id,
        end_id=end_id,
        clean=clean,
        blank_id=tokenizer.sep_token_id if blank_end else None,
        pad_side=tokenizer.padding_side,
    )
