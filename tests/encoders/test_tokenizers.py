"""CLIP's tokenizer against open_clip, transformers' tokenizers against transformers, and properties of all tokenizers."""

from __future__ import annotations

import builtins
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer

from mmcl.encoders.tokenizers import Clean, Tokenizer, clip_bpe, from_transformers
from mmcl.errors import UserError
from tests.encoders.tiny import word_tokenizer

clip = cache(clip_bpe)
reference = cache(open_clip.SimpleTokenizer)

TEXTS = [
    "a photo of a cat",
    "",
    "   white \t space\r\n everywhere ",
    "They're DON'T we'LL it's I'd",
    "fish &amp;amp; chips &lt;b&gt; &#x1F600; &eacute;",
    "schÃ¶n â€œmojibakeâ€\x9d naïve ünïcödé ﬁne",
    "emoji 😀👩‍👩‍👧‍👦🇩🇪❤️",
    "数学と日本語 हिन्दी العربية ελληνικά",
    "3.14 $5,000!!! (50%) #tag @user a_b-c",
    "internationalisation antidisestablishmentarianism " * 20,
    "<start_of_text> in a caption <end_of_text>",
    "\x00\x07 control \u200b zero width \ufeff",
]


@pytest.mark.parametrize("text", TEXTS)
def test_clip_bpe_equals_open_clip(text: str) -> None:
    _assert_equal(text)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cn"]), max_size=60))
def test_clip_bpe_equals_open_clip_for_any_text(text: str) -> None:
    _assert_equal(text)


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_cleaning_equals_open_clip(clean: Clean) -> None:
    for text in TEXTS:
        _assert_equal(text, clean)


def _assert_equal(text: str, clean: Clean = "lower") -> None:
    expected = reference(clean=clean)(text)[0].tolist()
    tokens = clip(clean=clean)(text)
    length = int(tokens.mask.sum())
    assert tokens.ids[0, :length].tolist() == expected[:length]
    assert not any(expected[length:])


def test_a_batch_is_padded_to_its_longest() -> None:
    tokens = clip()(["a", "a b c d", ""])
    assert tokens.ids.shape == tokens.mask.shape == (3, 6)
    assert tokens.mask.sum(1).tolist() == [3, 6, 2]
    assert (tokens.ids[~tokens.mask] == clip().pad_id).all()
    for row, text in enumerate(["a", "a b c d", ""]):
        assert tokens.ids[row][tokens.mask[row]].tolist() == clip()(text).ids[0].tolist()


def test_truncation_keeps_the_end_token_and_is_counted() -> None:
    short = clip_bpe(context_length=5)
    texts = ["a", "one two three four five six"]
    ids = short(texts).ids
    assert ids.shape == (2, 5)
    assert ids[1].tolist() == [*clip()(texts[1]).ids[0, :4].tolist(), clip().end_id]
    assert short.lengths(texts).tolist() == clip().lengths(texts).tolist() == [3, 8]
    assert (short(texts).truncated, clip()(texts).truncated, short([]).truncated) == (1, 0, 0)
    assert (short.lengths("word " * 300) == 302).all()


def test_no_texts_make_no_rows() -> None:
    assert len(clip()([])) == 0


@pytest.mark.parametrize("bad", [None, 3, b"bytes", ["nested"], float("nan")])
def test_a_non_string_is_named(bad: object) -> None:
    with pytest.raises(UserError, match=f"text 1 is a {type(bad).__name__}"):
        clip()(["fine", bad])  # type: ignore[list-item]


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UserError, match="surrogate"):
        clip()("broken \ud800")


def test_a_context_without_room_is_refused() -> None:
    with pytest.raises(UserError, match="at least 3"):
        clip_bpe(context_length=2)


@pytest.mark.parametrize("which", ["clip", "words"])
def test_saved_and_loaded_is_the_same(which: str, tmp_path: Path) -> None:
    tokenizer = clip_bpe(40, clean="canonicalize") if which == "clip" else from_transformers(word_tokenizer(), context_length=9)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.to_json() == tokenizer.to_json()
    assert again.vocab_size == tokenizer.vocab_size
    np.testing.assert_array_equal(again(TEXTS).ids, tokenizer(TEXTS).ids)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ("[]", "JSON object"), ("{}", "format version"), ('{"format_version": 1}', "damaged")],
)
def test_a_damaged_file_is_one_clear_error(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=message):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_cut_file_is_one_clear_error(tmp_path: Path) -> None:
    content = json.dumps(clip().to_json())
    (tmp_path / "tokenizer.json").write_text(content[: len(content) // 2])
    with pytest.raises(UserError, match="not valid JSON"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_from_transformers_equals_transformers() -> None:
    theirs = word_tokenizer()
    ours = from_transformers(theirs, context_length=6)
    texts = ["a cat", "red dog on a hill with a cat", ""]
    expected = theirs(texts, padding=True, truncation=True, max_length=6, return_tensors="pt")
    tokens = ours(texts)
    assert tokens.ids.tolist() == expected["input_ids"].tolist()
    assert tokens.mask.long().tolist() == expected["attention_mask"].tolist()
    assert (ours.begin_id, ours.end_id, ours.pad_id) == (theirs.cls_token_id, theirs.sep_token_id, theirs.pad_token_id)


def test_blank_end_equals_open_clips_stripped_separator(tmp_path: Path) -> None:
    word_tokenizer().save_pretrained(tmp_path)
    theirs = HFTokenizer(str(tmp_path), context_length=6, strip_sep_token=True)
    ours = from_transformers(word_tokenizer(), context_length=6, clean="whitespace", blank_end=True)
    for text in ("a cat", "red dog on a hill with a cat"):
        ids = ours(text).ids[0].tolist()
        assert ids + [0] * (6 - len(ids)) == theirs(text)[0].tolist()


def test_a_tokenizer_without_a_limit_needs_one() -> None:
    theirs = word_tokenizer()
    theirs.model_max_length = int(1e30)
    with pytest.raises(UserError, match="context_length"):
        from_transformers(theirs)


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        backend_tokenizer = None

    with pytest.raises(UserError, match="no fast version"):
        from_transformers(Slow(), context_length=8)


def test_a_tokenizer_that_reads_special_tokens_as_text_is_refused() -> None:
    theirs = word_tokenizer()
    theirs.split_special_tokens = True
    with pytest.raises(UserError, match="split_special_tokens"):
        from_transformers(theirs)


def test_building_clip_bpe_does_not_import_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would take seconds."""
    imported = []

    def spy(name: str, *args: Any) -> Any:
        imported.append(name)
        return original(name, *args)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", spy)
    clip_bpe()
    assert not [name for name in imported if name.startswith("open_clip")]
