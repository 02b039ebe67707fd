"""Every tokenizer class that text encoders use, read from files in its own format: the ids are the library's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from tokenizers import AddedToken, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from mmcl.encoders.open_clip import _tokenizer
from mmcl.encoders.tokenizers import Tokenizer, from_transformers
from mmcl.encoders.tower import fixed_length
from mmcl.encoders.transformers_tokenizer import load_tokenizer
from mmcl.errors import UserError
from tests.encoders.hard_texts import MAKERS, TEXTS

CONTEXT = 32


@pytest.fixture(scope="module")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    MAKERS[request.param]().save_pretrained(folder)
    return folder


every_class = pytest.mark.parametrize("saved", MAKERS, indirect=True)


def _rows(tokenizer: Tokenizer, texts: list[str] = TEXTS) -> list[list[int]]:
    tokens = tokenizer(texts)
    return [ids[mask].tolist() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]


@every_class
def test_ids_equal_transformers(saved: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(saved)
    ours = load_tokenizer(str(saved), context_length=CONTEXT)
    expected = theirs(TEXTS, truncation=True, max_length=CONTEXT)["input_ids"]
    # A text without any token is one padding token, so that no row is empty.
    assert _rows(ours) == [ids or [ours.pad_id] for ids in expected]
    assert len({tuple(row) for row in expected}) > len(TEXTS) * 0.8, "the vocabulary tells the texts apart"


@every_class
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_truncation_are_on_the_side_of_the_library(saved: Path, side: str) -> None:
    theirs = AutoTokenizer.from_pretrained(saved, padding_side=side, truncation_side=side)
    ours = from_transformers(theirs, context_length=12)
    theirs.pad_token_id = ours.pad_id  # some have none
    texts = [text for text in TEXTS if theirs(text)["input_ids"]]
    expected = theirs(texts, padding="max_length", truncation=True, max_length=12, return_tensors="pt")["input_ids"]
    assert torch.equal(fixed_length(ours(texts), 12, ours), expected)
    again = Tokenizer.from_json(json.loads(json.dumps(ours.to_json())))
    assert torch.equal(fixed_length(again(texts), 12, again), expected)


WITH_PADDING = sorted(MAKERS.keys() - {"GPT-2", "Llama"})
WITH_SEPARATOR = ("BERT", "MPNet", "RoBERTa", "XLM-R", "ALBERT")


@pytest.mark.parametrize(
    ("saved", "options"),
    [
        *((name, {"clean": clean}) for name in WITH_PADDING for clean in ("whitespace", "lower", "canonicalize")),
        *((name, {"strip_sep_token": True}) for name in WITH_SEPARATOR),
    ],
    indirect=["saved"],
    ids=str,
)
def test_ids_equal_open_clip(saved: Path, options: dict[str, Any]) -> None:
    theirs: Any = HFTokenizer(str(saved), context_length=CONTEXT, **options)
    theirs.tokenizer.padding_side = "right"
    ours = _tokenizer({"hf_tokenizer_name": str(saved), "tokenizer_kwargs": options}, CONTEXT)
    for text, expected, row in zip(TEXTS, theirs(TEXTS).tolist(), _rows(ours), strict=True):
        assert row == expected[: len(row)], text
        assert set(expected[len(row) :]) <= {ours.pad_id, 0}, text


def _own_vocabulary() -> list[str]:
    """One architecture for each way of using CLIP's vocabulary."""
    configs = {arch: open_clip.get_model_config(arch)["text_cfg"] for arch in open_clip.list_models()}
    own = {arch: cfg for arch, cfg in configs.items() if not cfg.get("hf_tokenizer_name")}
    ways = {json.dumps([cfg.get("context_length"), cfg.get("tokenizer_kwargs")]): arch for arch, cfg in own.items()}
    return list(ways.values())


@pytest.mark.parametrize("arch", _own_vocabulary())
def test_ids_of_architectures_with_clips_vocabulary_equal_open_clip(arch: str) -> None:
    text_cfg = open_clip.get_model_config(arch)["text_cfg"]
    ours = _tokenizer(text_cfg, text_cfg.get("context_length", 77))
    for text, expected, row in zip(TEXTS, open_clip.get_tokenizer(arch)(TEXTS).tolist(), _rows(ours), strict=True):
        assert row == expected[: len(row)], text
        assert not any(expected[len(row) :]), text


def test_what_every_other_architecture_asks_of_its_tokenizer_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    load = Mock()
    monkeypatch.setattr("mmcl.encoders.open_clip.load_tokenizer", load)
    configs = [open_clip.get_model_config(arch)["text_cfg"] for arch in open_clip.list_models()]
    others = [cfg for cfg in configs if cfg.get("hf_tokenizer_name")]
    assert len(others) > 40
    for cfg in others:
        kwargs = cfg.get("tokenizer_kwargs", {})
        clean, blank_end = kwargs.get("clean", "whitespace"), kwargs.get("strip_sep_token", False)
        _tokenizer(cfg, 40)
        assert load.call_args.kwargs == {"context_length": 40, "clean": clean, "blank_end": blank_end}


@pytest.mark.parametrize(
    "text_cfg",
    [
        {"tokenizer_mode": "clips"},
        {"tokenizer_kwargs": {"reduction_mask": "random"}},
        {"hf_tokenizer_name": "nowhere", "tokenizer_kwargs": {"language": "deu_Latn"}},
    ],
    ids=str,
)
def test_unsupported_settings_are_named(text_cfg: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"clips|random|deu_Latn"):
        _tokenizer(text_cfg, 40)


def _siglip_folder(folder: Path) -> Path:
    """The first SigLIP: transformers has a class for the sentencepiece file alone, beside which lies the fast file."""
    pieces = [
        ("<unk>", 0.0),
        ("</s>", 0.0),
        *((f"▁{word}", -1.0) for word in ("a", "cat", "dog")),
        *((c, -9.0) for c in "▁acdgotA.!"),
    ]
    backend = Backend(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "</s>")])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    declared = {"tokenizer_class": "SiglipTokenizer", "model_max_length": 64, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(declared))
    (folder / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "siglip", "text_config": {"bos_token_id": 1, "eos_token_id": 1}})
    )
    return folder


def test_the_fast_file_of_the_first_siglip_is_read(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(_siglip_folder(tmp_path)), model_type="siglip")
    assert (tokenizer.context_length, tokenizer.pad_id, tokenizer.end_id) == (64, 1, 1)
    assert _rows(tokenizer, ["a cat"]) == [[2, 3, 1]]
    assert _rows(tokenizer, [" A  Cat. ", "a_cat!", "A cat\n"]) == [[2, 3, 1], _rows(tokenizer, ["acat"])[0], [2, 3, 1]]


def test_a_slow_tokenizer_without_a_fast_file_is_one_clear_line(tmp_path: Path) -> None:
    (_siglip_folder(tmp_path) / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"SiglipTokenizer has no fast version here, and there is no tokenizer\.json"):
        load_tokenizer(str(tmp_path), model_type="siglip")


@pytest.mark.parametrize("saved", ["Gemma of SigLIP 2", "SigLIP 2"], indirect=True)
@pytest.mark.parametrize("model_type", ["siglip", "siglip2"])
def test_both_forms_of_siglip_2_see_lower_cased_texts(saved: Path, model_type: str, tmp_path: Path) -> None:
    expected = MAKERS["SigLIP 2"]()(TEXTS, truncation=True, max_length=CONTEXT)["input_ids"]
    tokenizer = load_tokenizer(str(saved), context_length=CONTEXT, model_type=model_type)
    assert _rows(tokenizer) == [ids or [0] for ids in expected]
    spellings = _rows(tokenizer, ["a photo of a cat", "A Photo of a CAT", "A PHOTO OF A CAT"])
    assert spellings[0] == spellings[1] == spellings[2]
    tokenizer.save(tmp_path / "tokenizer.json")
    assert _rows(Tokenizer.load(tmp_path / "tokenizer.json")) == _rows(tokenizer)


@pytest.mark.parametrize("saved", ["SigLIP 2"], indirect=True)
def test_differences_between_the_names_of_a_siglip_release_are_reported(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    by_hf = load_tokenizer(str(saved), context_length=CONTEXT, model_type="siglip")
    assert not caplog.text
    options = {"hf_tokenizer_name": str(saved), "tokenizer_kwargs": {"clean": "canonicalize"}}
    by_open_clip = _tokenizer(options, CONTEXT)
    assert "trained on lower-cased texts with punctuation, which hf: names of SigLIP 2 keep" in caplog.text
    plain = ["a photo of a cat", "A Photo of a CAT", "two dogs on a hill", "\u00c9t\u00e9"]
    assert _rows(by_hf, plain) == _rows(by_open_clip, plain)
    for text in ("a photo of a cat.", "it's a cat", "cat &amp; dog", "a_cat"):
        assert _rows(by_hf, [text]) != _rows(by_open_clip, [text]), text


def test_the_first_siglip_reports_its_text_cleaning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_tokenizer(str(_siglip_folder(tmp_path)), model_type="siglip")
    assert "lose their punctuation, as transformers and Google's zero-shot evaluation do it" in caplog.text
