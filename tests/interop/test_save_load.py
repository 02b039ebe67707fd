"""Saving and loading of models: mmcl's own format, and the libraries' names."""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from mmcl.encoders.heads import NoHead
from mmcl.encoders.small_cnn import SmallCNN
from mmcl.encoders.tower import Tower, TowerSpec, build_tower
from mmcl.errors import UserError
from mmcl.files import atomic as files
from mmcl.interop.load import load_model
from mmcl.interop.model import Model
from mmcl.interop.save import save_model
from mmcl.preprocess import Preprocess
from tests.arithmetic import network_tolerance
from tests.encoders import tiny
from tests.faults.runs import kill_at
from tests.faults.test_checkpoints import in_child
from tests.interop.test_model import make_towers

_IMAGE = {"modality": "image", "encoder": "small_cnn", "encoder_args": {}, "head": "none", "head_args": {}}
TEXTS = ["a cat", "the red dog on a hill", ""]


def _images(model: Model) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (50, 60, 3), dtype=np.uint8)) for _ in range(2)]


def _assert_same(a: Model, b: Model) -> None:
    tolerance = network_tolerance(a.towers)
    np.testing.assert_allclose(a.encode_image(_images(a)), b.encode_image(_images(b)), atol=tolerance)
    if a.has_text:
        np.testing.assert_allclose(a.encode_text(TEXTS), b.encode_text(TEXTS), atol=tolerance)
    assert (a.logit_scale, a.logit_bias, a.embedding) == (b.logit_scale, b.logit_bias, b.embedding)
    assert a.fingerprint == b.fingerprint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(tmp_path / "run" / "model", make_towers(), logit_scale=14.3, provenance={"step": 7})
    return tmp_path / "run" / "model"


@pytest.mark.parametrize("name", ["run", "run/model"])
def test_our_own_format_comes_back_whole(name: str, saved: Path) -> None:
    model = load_model(saved.parent.parent / name, device="cpu")
    _assert_same(model, Model(make_towers(), logit_scale=14.3, device="cpu"))
    assert model.provenance == {"step": 7}
    assert sorted(file.name for file in saved.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_loading_leaves_the_random_numbers_as_they_were(saved: Path) -> None:
    before = torch.get_rng_state()
    load_model(saved, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("names", ["abc", ["a", "b"], ["a"] * 6 + [7], {"a": 1}], ids=str)
def test_class_names_that_do_not_fit_are_damage(names: object, saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "class_names": names}))
    with pytest.raises(UserError, match="is damaged"):
        load_model(saved)


@pytest.mark.parametrize("kind", ["clip", "siglip", "coca", "bert"])
def test_open_clip_checkpoints_load_and_move_to_our_format(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.open_clip_config(kind, tmp_path)
    theirs: Any = tiny.open_clip_model(config, kind, tmp_path / "weights.pt")
    monkeypatch.setattr(open_clip, "list_models", lambda: ["Tiny"])
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: json.loads(json.dumps(config)))
    model = load_model(f"open_clip:Tiny/{tmp_path / 'weights.pt'}", device="cpu")
    assert model.logit_scale == pytest.approx(theirs.logit_scale.exp().item())
    assert model.logit_bias == (None if theirs.logit_bias is None else theirs.logit_bias.item())
    model.save(tmp_path / "ours")
    for file in tmp_path.iterdir():  # nothing of the library's own files is needed any more
        if file.name != "ours":
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    _assert_same(load_model(tmp_path / "ours", device="cpu"), model)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers_models_load_and_move_to_our_format(kind: str, tmp_path: Path) -> None:
    theirs: Any = tiny.transformers_model(kind, tmp_path / "theirs")
    model = load_model(f"hf:{tmp_path / 'theirs'}", device="cpu")
    assert model.logit_scale == pytest.approx(theirs.logit_scale.exp().item())
    assert (model.logit_bias is None) == (kind == "clip")
    model.save(tmp_path / "ours")
    shutil.rmtree(tmp_path / "theirs")
    _assert_same(load_model(tmp_path / "ours", device="cpu"), model)


def test_probabilities_equal_transformers(tmp_path: Path) -> None:
    """From file to probability: resize, normalize, tokenize, encode, scale."""
    import transformers

    theirs = tiny.transformers_model("clip", tmp_path)
    model = load_model(f"hf:{tmp_path}", device="cpu")
    pictures, texts = _images(model), ["a cat", "the red dog", "one bird"]
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    tokens = tiny.word_tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**processor(pictures, return_tensors="pt"), **tokens).logits_per_image.softmax(-1).numpy()
    ours = model.probs(model.encode_image(pictures), model.encode_text(texts))
    assert np.ptp(expected, axis=1).min() > 0.05
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_images_of_native_resolution_are_refused(tmp_path: Path) -> None:
    tiny.transformers_model("siglip2", tmp_path)
    with pytest.raises(UserError, match=r"NaFlex.*not supported"):
        load_model(f"hf:{tmp_path}", device="cpu")


def test_timm_models_are_image_only(tmp_path: Path) -> None:
    torch.save(tiny.shaken(timm.create_model("test_vit")).state_dict(), tmp_path / "weights.pth")
    model = load_model(f"timm:test_vit/{tmp_path / 'weights.pth'}", device="cpu")
    assert not model.has_text
    model.save(tmp_path / "ours")
    _assert_same(load_model(tmp_path / "ours", device="cpu"), model)


def test_shared_tensors_are_stored_once(tmp_path: Path) -> None:
    towers = make_towers()
    encoder = towers["text"].encoder
    encoder.final_norm.weight = encoder.blocks[0].mlp_norm.weight  # type: ignore[union-attr,index]
    save_model(tmp_path / "model", towers)
    assert "text.encoder.final_norm.weight" not in load_file(tmp_path / "model" / "model.safetensors")
    _assert_same(load_model(tmp_path / "model", device="cpu"), Model(towers, device="cpu"))


def test_saving_replaces_what_is_there(saved: Path) -> None:
    towers = nn.ModuleDict({"image": make_towers()["image"]})
    save_model(saved, towers, embedding="features")
    assert sorted(file.name for file in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert load_model(saved, device="cpu").embedding == "features"


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds something other than a model"):
        save_model(tmp_path, make_towers())
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    save_model(tmp_path / "empty", make_towers())


def test_a_failed_save_leaves_the_old_model(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("mmcl.interop.save.save_file", full_disk)
    with pytest.raises(UserError, match=r"cannot be written .no space left"):
        save_model(saved, make_towers(), logit_scale=1.0)
    assert load_model(saved, device="cpu").logit_scale == 14.3


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("moment", ["_settle", "_put", "_exchanged", "sync"])
def test_a_kill_while_saving_leaves_the_old_model_or_the_new(moment: str, before: bool, saved: Path) -> None:
    old, new = load_model(saved), load_model(saved)
    with torch.no_grad():
        next(new.towers.parameters()).add_(1)

    def struck() -> None:
        kill_at(files, moment, 1, before=before)()
        new.save(saved)

    assert in_child(struck) == 9
    assert load_model(saved).fingerprint in (Model(old.towers).fingerprint, Model(new.towers).fingerprint)


def test_a_tower_made_by_hand_is_not_saved(tmp_path: Path) -> None:
    towers = nn.ModuleDict({"image": Tower(SmallCNN(), NoHead(128))})
    with pytest.raises(UserError, match="made by hand"):
        save_model(tmp_path / "model", towers)
    assert not (tmp_path / "model").exists()


def _edit(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    config.update(changes)
    (path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: _edit(path, format_version=99), "format version 99; update mmcl"),
        (lambda path: _edit(path, format_version="gone"), "try hf:"),
        (lambda path: _edit(path, towers="gone"), "damaged"),
        (lambda path: _edit(path, towers={"image": {"encoder": "small_cnn"}}), "damaged"),
        (lambda path: _edit(path, towers={"image": {**_IMAGE, "encoder": "small_cn"}}), "did you mean 'small_cnn'"),
        (lambda path: _cut(path / "config.json"), "not valid JSON"),
        (lambda path: _cut(path / "model.safetensors"), r"model\.safetensors: damaged"),
        (lambda path: _cut(path / "tokenizer.json"), "not valid JSON"),
        (lambda path: (path / "model.safetensors").unlink(), r"model\.safetensors: no such file"),
        (lambda path: (path / "tokenizer.json").unlink(), r"tokenizer\.json: no such file"),
        (lambda path: (path / "config.json").unlink(), "neither a run nor a model folder"),
        (lambda path: _drop_tensor(path), r"text\.head\.weight is missing"),
    ],
)
def test_damage_is_one_clear_line(damage, message: str, saved: Path) -> None:  # type: ignore[no-untyped-def]
    damage(saved)
    with pytest.raises(UserError, match=message) as caught:
        load_model(saved, device="cpu")
    assert "\n" not in str(caught.value)


def _drop_tensor(path: Path) -> None:
    from safetensors.torch import save_file

    tensors = load_file(path / "model.safetensors")
    del tensors["text.head.weight"]
    save_file(tensors, path / "model.safetensors")


def test_other_preprocessing_than_in_training_is_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["towers"]["image"]["preprocess"]["mean"] = [0.1, 0.2, 0.3]
    _edit(saved, towers=config["towers"])
    with pytest.raises(UserError, match=r"small_cnn was trained with mean \(0.1, 0.2, 0.3\), but has \(0.5, 0.5, 0.5\)"):
        load_model(saved, device="cpu")


def test_a_model_shows_images_as_it_did_in_training(saved: Path) -> None:
    """Whatever its library or this one would make of them today; of an older file the fields that it does not have are as they
    were then."""
    config = json.loads((saved / "config.json").read_text())
    values = config["towers"]["image"]["preprocess"]
    old = {key: values[key] for key in ("size", "channels", "mean", "std", "interpolation", "resize")}
    config["towers"]["image"]["preprocess"] = {**old, "resize": "pad"}
    _edit(saved, towers=config["towers"])
    encoder: Any = load_model(saved, device="cpu").towers["image"].encoder
    assert encoder.preprocess == Preprocess(size=28, mean=(0.5,) * 3, std=(0.5,) * 3, resize="pad")


@pytest.mark.parametrize("change", [{"resize": "stretch"}, {"size": 0}, {"siz": 3}, {"mean": 3}, {"fill": [1, 2]}], ids=str)
def test_preprocessing_that_is_damaged_is_one_clear_line(change: dict[str, Any], saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["towers"]["image"]["preprocess"].update(change)
    _edit(saved, towers=config["towers"])
    with pytest.raises(UserError, match="preprocess"):
        load_model(saved, device="cpu")


def test_every_field_of_preprocessing_is_saved(tmp_path: Path) -> None:
    preprocess = Preprocess(
        size=(32, 48),
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        interpolation="bilinear",
        resize="squash",
        resize_size=(40, 64),
        crop_rounding="floor",
        fill=(1, 2, 3),
        backend="torchvision_float",
        channel_order="bgr",
    )
    settings = {"config": tiny.config("resnet"), "preprocess": json.loads(json.dumps(asdict(preprocess)))}
    spec = TowerSpec(modality="image", encoder="transformers", encoder_args=settings)
    model = Model(nn.ModuleDict({"image": build_tower(spec)}), device="cpu")
    model.save(tmp_path / "ours")
    again = load_model(tmp_path / "ours", device="cpu")
    encoder: Any = again.towers["image"].encoder
    assert encoder.preprocess == preprocess
    _assert_same(again, model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/at/all", "neither a run nor a model folder"),
        ("open_clip:ViT-B-33", "did you mean"),
        ("open_clip:ViT-B-32/laion3b", "laion2b_s34b_b79k"),
        ("timm:", "the name after the prefix is missing"),
        ("timm:resnet5", "did you mean"),
        ("torchvision:resnet19", "did you mean"),
    ],
)
def test_unknown_names_are_one_clear_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(name, device="cpu")


@pytest.mark.parametrize(
    "name", ["open_clip:ViT-B-32/laion2b_s34b_b79k", "hf:nobody/nothing", "timm:test_vit", "torchvision:squeezenet1_1"]
)
def test_without_a_network_a_download_is_one_clear_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise socket.gaierror("name resolution failed")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"(check the network|unset it), or ") as caught:
        load_model(name, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_text_only_model_is_not_dual(tmp_path: Path) -> None:
    tiny.transformers_model("bert", tmp_path)
    with pytest.raises(UserError, match="not a CLIP-like model"):
        load_model(f"hf:{tmp_path}", device="cpu")


def test_build_tower_checks_names_before_it_builds() -> None:
    with pytest.raises(UserError, match="did you mean 'linear'"):
        build_tower(TowerSpec(modality="image", encoder="small_cnn", head="liner"))
    with pytest.raises(UserError, match="did you mean 'image_size'"):
        build_tower(TowerSpec(modality="image", encoder="small_cnn", encoder_args={"imagesize": 3}))
