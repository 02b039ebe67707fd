"""Folders of open_clip: the library's own models give what the exported model gave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from mmcl.encoders.heads import LinearHead, MLPHead
from mmcl.encoders.tokenizers import clip_bpe
from mmcl.errors import UserError
from mmcl.interop.export import clip_names
from mmcl.interop.export.exporting import export
from mmcl.interop.export.open_clip import _choose_tokenizer, _preprocess_cfg
from mmcl.interop.load import load_model
from mmcl.interop.model import Model
from mmcl.preprocess import Preprocess
from tests.arithmetic import network_tolerance
from tests.encoders import tiny
from tests.interop.export import models
from tests.interop.export.test_transformers import same, with_heads

TEXTS = ["a cat", "the red dog on a hill", ""]


def weights_of(folder: Path) -> dict[str, Tensor]:
    weights = load_file(folder / "open_clip_model.safetensors")
    return {name: tensor for name, tensor in weights.items() if name not in ("logit_scale", "logit_bias")}


def loaded(folder: Path, **options: Any) -> tuple[Any, Any, Any]:
    model, _, show = open_clip.create_model_and_transforms(f"local-dir:{folder}", **options)
    return model.eval(), show, open_clip.get_tokenizer(f"local-dir:{folder}")


@pytest.mark.parametrize("kind", ["clip", "eos", "resnet", "siglip", "bert"])
@torch.no_grad()
def test_a_model_of_the_library_comes_back_byte_for_byte(kind: str, tmp_path: Path) -> None:
    model = models.of_open_clip(kind, tmp_path / "theirs")
    report = export(model, to="open_clip", out=tmp_path / "ours")
    assert max(report.parity.tensor.values()) < 1e-5
    assert max(report.parity.end_to_end.values()) < 1e-5
    assert same(weights_of(tmp_path / "ours"), weights_of(tmp_path / "theirs"))

    theirs, show, tokenize = loaded(tmp_path / "theirs")
    ours, our_show, our_tokenize = loaded(tmp_path / "ours")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 260, 3), dtype=np.uint8))
    assert torch.equal(our_show(image), show(image))
    assert torch.equal(our_tokenize(TEXTS), tokenize(TEXTS))
    assert same(ours.state_dict(), theirs.state_dict())
    for name, inputs in {"encode_image": show(image)[None], "encode_text": tokenize(TEXTS)}.items():
        rows, expected = (getattr(one, name)(inputs, normalize=True) for one in (ours, theirs))
        torch.testing.assert_close(rows, expected, rtol=0, atol=network_tolerance(theirs))
    torch.testing.assert_close(ours.logit_scale, theirs.logit_scale)
    assert (ours.logit_bias is None) == (theirs.logit_bias is None)
    again = load_model(f"open_clip:local-dir:{tmp_path / 'ours'}", device="cpu")
    np.testing.assert_allclose(again.encode_text(TEXTS), model.encode_text(TEXTS), atol=network_tolerance(model.towers))


@pytest.mark.parametrize("kind", ["clip", pytest.param("eos", marks=pytest.mark.long)])
def test_the_causal_text_tower_becomes_a_graph_for_texts_of_any_length(kind: str, tmp_path: Path) -> None:
    """Up to the full context length."""
    model = models.of_open_clip(kind, tmp_path / "theirs")
    long = " ".join(["word"] * 40)
    assert model.tokenizer([long]).ids.shape[1] == model.tokenizer.context_length
    assert max(export(model, to="pt2", out=tmp_path / "ours").parity.tensor.values()) < 1e-5


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("end", [2, 3])
def test_clip_of_transformers_goes_there_and_back(
    activation: str, end: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that of old configurations, whose end token 2 stands for the largest one."""
    for part in (tiny._TEXT, tiny._VISION):
        monkeypatch.setitem(part, "hidden_act", activation)
    monkeypatch.setitem(tiny._TEXT, "eos_token_id", end)
    model = models.of_transformers("clip", tmp_path / "theirs")
    report = export(model, to="open_clip", out=tmp_path / "open_clip")
    assert max(report.parity.tensor.values()) < 1e-5
    config = json.loads((tmp_path / "open_clip/open_clip_config.json").read_text())["model_cfg"]
    assert config.get("quick_gelu", False) == (activation == "quick_gelu")
    assert config["text_cfg"].get("pool_type") == (None if end == 2 else "eos")

    there = load_model(f"open_clip:local-dir:{tmp_path / 'open_clip'}", device="cpu")
    np.testing.assert_allclose(there.encode_text(TEXTS), model.encode_text(TEXTS), atol=network_tolerance(model.towers))
    if end == 2:
        return
    export(there, to="transformers", out=tmp_path / "back")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("back", "theirs"))
    torch.testing.assert_close(ours.pop("logit_scale"), theirs.pop("logit_scale"))
    assert same(ours, theirs)


@pytest.mark.parametrize("kind", ["clip", "resnet", "siglip"])
def test_linear_heads_become_part_of_the_projections(kind: str, tmp_path: Path) -> None:
    model = models.of_open_clip(kind, tmp_path / "theirs")
    torch.manual_seed(1)
    heads = {name: LinearHead(model.embed_dim, embed_dim=5) for name in ("image", "text")}
    headed = with_heads(model, **heads)
    report = export(headed, to="open_clip", out=tmp_path / "ours")
    assert max(report.parity.tensor.values()) < 1e-5
    again = load_model(f"open_clip:local-dir:{tmp_path / 'ours'}", device="cpu")
    assert again.embed_dim == 5
    np.testing.assert_allclose(again.encode_text(TEXTS), headed.encode_text(TEXTS), atol=network_tolerance(headed.towers))


def refused(model: Model, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        export(model, to="open_clip", out=folder / "out")
    assert not (folder / "out").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "heads", "message"),
    [
        ("clip", {"image": MLPHead(16, embed_dim=16)}, "the image head MLPHead has no place in its models; try --to"),
        ("bert", {"text": LinearHead(16, embed_dim=16)}, "the text head LinearHead has no place in its models; try --to"),
    ],
)
def test_no_head_is_dropped(kind: str, heads: dict[str, nn.Module], message: str, tmp_path: Path) -> None:
    """BERT's projection is an MLP, in which the width of the embeddings sets that of the hidden layer."""
    assert message in refused(with_heads(models.of_open_clip(kind, tmp_path / "theirs"), **heads), tmp_path)


REFUSED = {
    "hf SigLIP": "open_clip has no model of type 'siglip'; try --to",
    "timm + BERT": "open_clip has no model of the image tower 'timm' and text tower 'transformers'; try --to",
    "own + own": "open_clip has no model of the image tower 'strided_cnn' and text tower 'small_text'; try --to",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_towers_are_refused_by_name(name: str, tmp_path: Path) -> None:
    assert REFUSED[name] in refused(models.MODELS[name](tmp_path / "model"), tmp_path)


def test_coca_and_towers_of_two_models_are_refused(tmp_path: Path) -> None:
    coca = models.of_open_clip("coca", tmp_path / "coca")
    assert "CoCa of open_clip has a text decoder, which is not kept here (vision_cfg)" in refused(coca, tmp_path)
    one, other = (models.of_open_clip(kind, tmp_path / kind) for kind in ("clip", "eos"))
    mixed = Model(nn.ModuleDict({"image": one.towers["image"], "text": other.towers["text"]}))
    assert "the towers have different quick_gelu: None and True" in refused(mixed, tmp_path)


def test_the_form_is_the_one_that_every_version_reads_where_it_can_be(tmp_path: Path) -> None:
    for kind, plain in (("clip", True), ("siglip", False)):
        export(models.of_open_clip(kind, tmp_path / kind), to="open_clip", out=tmp_path / f"{kind}_out")
        config = json.loads((tmp_path / f"{kind}_out/open_clip_config.json").read_text())["model_cfg"]
        assert ("custom_text" not in config) == plain
        assert any(name.startswith("text.") for name in weights_of(tmp_path / f"{kind}_out")) != plain


def test_half_precision(tmp_path: Path) -> None:
    model = models.of_open_clip("clip", tmp_path / "theirs")
    report = export(model, to="open_clip", out=tmp_path / "ours", precision="fp16")
    assert {tensor.dtype for tensor in weights_of(tmp_path / "ours").values()} == {torch.float16}
    assert 0 < max(report.parity.tensor.values()) < report.bound == 5e-3


def test_the_wrong_activation_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(config: Mapping[str, Any]) -> dict[str, Any]:
        right = clip_names.config_for_open_clip(config)
        return {**right, "quick_gelu": not right.get("quick_gelu")}

    monkeypatch.setattr("mmcl.interop.export.open_clip.config_for_open_clip", wrong)
    assert "pixels differ by" in refused(models.of_transformers("clip", tmp_path / "theirs"), tmp_path)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("vision_config", {"hidden_act": "relu"}, "no vision_config.hidden_act 'relu'"),
        ("text_config", {"hidden_act": "gelu"}, "no text_config.hidden_act 'gelu'"),
        ("text_config", {"layer_norm_eps": 1e-6}, "no text_config.layer_norm_eps 1e-06"),
    ],
)
def test_what_clip_of_open_clip_lacks_is_named(part: str, values: dict[str, Any], message: str) -> None:
    usual = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    config = {"vision_config": dict(usual), "text_config": dict(usual)}
    config[part].update(values)
    with pytest.raises(UserError, match=message):
        clip_names.config_for_open_clip(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": "none"}, "no image transform for resize 'none'; try --to onnx"),
        ({"resize_size": 40}, "a resize to 40 before a crop to 32"),
        ({"interpolation": "lanczos"}, "interpolation 'lanczos'"),
        ({"fill": (1, 2, 3)}, r"fill \(1, 2, 3\)"),
        ({"channel_order": "bgr"}, "channels in the order bgr"),
    ],
)
def test_other_preprocessing_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _preprocess_cfg(replace(Preprocess(size=32), **changes))


def test_differences_in_preprocessing_are_told() -> None:
    assert _preprocess_cfg(Preprocess(size=32))[1] == []
    unlike = Preprocess(size=32, backend="torchvision", crop_rounding="floor", shrink_on_load=True, intensity=(0, 9))
    assert len(_preprocess_cfg(unlike)[1]) == 4


def test_a_tokenizer_that_open_clip_has_is_not_written(tmp_path: Path) -> None:
    text_cfg: dict[str, Any] = {"context_length": 20, "hf_tokenizer_name": "old"}
    assert _choose_tokenizer(clip_bpe(20), text_cfg, tmp_path) == []
    assert text_cfg == {"context_length": 20}
    assert _choose_tokenizer(clip_bpe(20, clean="canonicalize"), text_cfg, tmp_path) == []
    assert text_cfg == {"context_length": 20, "tokenizer_kwargs": {"clean": "canonicalize"}}
    assert list(tmp_path.iterdir()) == []


def test_what_becomes_of_texts_is_told(tmp_path: Path) -> None:
    text_cfg: dict[str, Any] = {"context_length": 20}
    lost = _choose_tokenizer(clip_bpe(12, clean="none"), text_cfg, tmp_path)
    assert [line.partition(" there")[0] for line in lost] == [
        "texts are cut at 20 tokens",
        "mojibake, HTML entities and white space in texts are repaired",
    ]
