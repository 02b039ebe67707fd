"""Texts on which tokenizers differ, and tokenizers of every class that text encoders use, with small vocabularies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import transformers

from mmcl.encoders.tokenizers import clip_bpe

TEXTS = [
    "a photo of a cat",
    "A Photo Of A CAT",
    "",
    "  ",
    "   white \t space\r\n everywhere ",
    "They're DON'T we'LL it's I'd",
    "don’t “quote” me – ever",
    "fish &amp;amp; chips &lt;b&gt; &#x1F600; &eacute;",
    "schÃ¶n â€œmojibakeâ€\x9d naïve ünïcödé ﬁne",
    "emoji 😀👩‍👩‍👧‍👦🇩🇪❤️",
    "数学と日本語 हिन्दी العربية ελληνικά",
    "3.14 $5,000!!! (50%) #tag @user a_b-c",
    "internationalisation antidisestablishmentarianism " * 20,
    "word " * 300,
    "\x00\x07 control \u200b zero width \ufeff",
    "İstanbul ẞ ǅ",
    "e\u0301 is é",
    "tab\tand\u00a0nbsp\u3000wide\u2028line",
    "ﷺ ﬃ Ⅷ ½",
    "𝒻ancy 𝕥ext",
    "a.b,c;d:e/f\\g|h",
    "_under_score_",
    "new\nline",
    "...",
    "!?",
    "a",
    "<pad> </s> [SEP] <eos> in a caption",
    "<start_of_text> <mask> [MASK] <unk>",
    "▁a ▁cat",
    "1234567890 " * 3,
]
_WORDS = ["a", "photo", "of", "cat", "the", "in", "red", "white", "space", "word", "is"]


@cache
def _letters() -> tuple[str, ...]:
    return tuple(sorted({letter for text in TEXTS for letter in text + text.lower() + text.upper() if not letter.isspace()}))


def _numbered(tokens: Iterable[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


@cache
def _clip_model() -> tuple[list[str], list[tuple[str, str]]]:
    """The vocabulary of CLIP, and the first of its merges."""
    model = clip_bpe().to_json()["backend"]["model"]
    return list(model["vocab"]), [(left, right) for left, right in model["merges"][:2000]]


def _words(special: list[str]) -> dict[str, int]:
    """WordPiece, of BERT."""
    return _numbered([*special, *_WORDS, *_letters(), *(f"##{letter}" for letter in _letters())])


def _bytes(special: list[str]) -> dict[str, Any]:
    """Byte-level BPE, of GPT-2."""
    tokens, all_merges = _clip_model()
    alphabet, merges = tokens[:256], [(left, right) for left, right in all_merges if "</w>" not in left + right]
    return {"vocab": _numbered([*special, *alphabet, *map("".join, merges)]), "merges": merges}


def _pieces(special: list[str]) -> list[tuple[str, float]]:
    """Unigram, of T5 and XLM-R."""
    tokens = _numbered([*special, *(f"▁{word}" for word in _WORDS), "▁", *_letters()])
    return [(token, 0.0 if token in special else -2.0 - len(_WORDS) / len(token)) for token in tokens]


def _merged_pieces(special: list[str]) -> dict[str, Any]:
    """BPE over sentence pieces with a fallback to bytes, of Gemma and Llama."""
    steps = [(f"▁{word[:end]}", word[end]) for word in _WORDS for end in range(len(word))]
    merges = list(dict.fromkeys(steps))
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    return {"vocab": _numbered([*special, *fallback, "▁", *_letters(), *map("".join, merges)]), "merges": merges}


def _clip() -> Any:
    tokens, merges = _clip_model()
    vocab = _numbered([*tokens[:512], *map("".join, merges), "<|startoftext|>", "<|endoftext|>"])
    made: Callable[..., Any] = transformers.CLIPTokenizer  # its annotation forbids pairs, which it takes
    return made(vocab=vocab, merges=merges)


_BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
_XLMR = ["<s>", "<pad>", "</s>", "<unk>"]
SIGLIP2: dict[str, Any] = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right"}

MAKERS: dict[str, Callable[[], Any]] = {
    "CLIP": _clip,
    "BERT": lambda: transformers.BertTokenizer(vocab=_words(_BERT)),
    "BERT cased": lambda: transformers.BertTokenizer(vocab=_words(_BERT), do_lower_case=False),
    "MPNet": lambda: transformers.MPNetTokenizer(vocab=_words(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"])),
    "RoBERTa": lambda: transformers.RobertaTokenizer(**_bytes([*_XLMR, "<mask>"])),
    "GPT-2": lambda: transformers.GPT2Tokenizer(**_bytes(["<|endoftext|>"])),
    "Qwen2": lambda: transformers.Qwen2Tokenizer(**_bytes(["<|endoftext|>"])),
    "T5": lambda: transformers.T5Tokenizer(vocab=_pieces(["<pad>", "</s>", "<unk>"]), extra_ids=0),
    "XLM-R": lambda: transformers.XLMRobertaTokenizer(vocab=[*_pieces(_XLMR), ("<mask>", 0.0)]),
    "ALBERT": lambda: transformers.AlbertTokenizer(vocab=_pieces(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"])),
    "DeBERTa": lambda: transformers.DebertaV2Tokenizer(vocab=_pieces(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"])),
    "NLLB": lambda: transformers.NllbTokenizer(**_merged_pieces(_XLMR)),
    "Gemma": lambda: transformers.GemmaTokenizer(**_merged_pieces(_GEMMA)),
    "Gemma of SigLIP 2": lambda: transformers.GemmaTokenizer(**_merged_pieces(_GEMMA), **SIGLIP2),
    "SigLIP 2": lambda: transformers.Siglip2Tokenizer(**_merged_pieces(_GEMMA), **SIGLIP2),
    "Llama": lambda: transformers.LlamaTokenizer(**_merged_pieces(["<unk>", "<s>", "</s>"])),
}
"""By name, a tokenizer of transformers with a vocabulary of its own."""
