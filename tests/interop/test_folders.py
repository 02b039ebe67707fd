"""Folders and repositories as other libraries write them: the embeddings are those of the library itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from mmcl.errors import UserError
from mmcl.interop.load import load_model
from mmcl.interop.save import save_model
from tests.encoders import tiny

TEXTS = ["a cat", "the red dog on a hill", ""]
SHOWN = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}


def _open_clip_folder(kind: str, folder: Path, weights: str = "open_clip_model.safetensors") -> Path:
    """Written as open_clip's own export to the hub does, with the parts of a Hugging Face text tower beside it."""
    folder.mkdir(exist_ok=True)
    config = tiny.open_clip_config(kind, folder)
    tiny.open_clip_model(config, kind, folder / weights)
    if kind in ("siglip", "bert"):
        config["custom_text"] = True
    if kind == "bert":
        (folder / "model.safetensors").unlink()  # of the text model alone
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": SHOWN}))
    return folder


def _image(side: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("clip", "open_clip_pytorch_model.bin"),
        ("eos", "open_clip_model.safetensors"),
        ("siglip", "model.safetensors"),
        ("bert", "weights_of_mine.pth"),
    ],
)
@torch.no_grad()
def test_an_open_clip_folder_gives_open_clips_embeddings(kind: str, weights: str, tmp_path: Path) -> None:
    folder = _open_clip_folder(kind, tmp_path / "theirs", weights)
    theirs, _, show = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model = load_model(f"open_clip:local-dir:{folder}", device="cpu")
    preprocess = model.towers["image"].encoder.preprocess
    assert [preprocess.mean, preprocess.std] == [tuple(SHOWN["mean"]), tuple(SHOWN["std"])]
    assert (preprocess.resize, preprocess.interpolation) == ("squash", "bilinear")
    image = _image(preprocess.height)
    pixels: Any = show(image)
    expected = theirs.eval().encode_image(pixels[None], normalize=True)
    np.testing.assert_allclose(model.encode_image(image), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode_text(TEXTS), theirs.encode_text(tokenize(TEXTS), normalize=True), atol=1e-5)
    assert model.logit_scale == pytest.approx(theirs.logit_scale.exp().item())

    save_model(tmp_path / "ours", model.towers)
    shutil.rmtree(folder)
    np.testing.assert_allclose(load_model(tmp_path / "ours", device="cpu").encode_text(TEXTS), model.encode_text(TEXTS))


def test_an_open_clip_repository_is_read_like_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _open_clip_folder("clip", tmp_path)

    def download(name: str, filename: str = "open_clip_model.safetensors") -> str:
        assert name == "someone/model"
        return str(folder / filename)

    monkeypatch.setattr("mmcl.encoders.open_clip.download_pretrained_from_hf", download)
    here = load_model(f"open_clip:local-dir:{folder}", device="cpu")
    assert load_model("open_clip:hf-hub:someone/model", device="cpu").fingerprint == here.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "open_clip_config.json").unlink(), r"open_clip_config\.json: no such file"),
        (lambda folder: (folder / "open_clip_model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "open_clip_config.json").write_text("{}"), "has no model_cfg"),
        (lambda folder: (folder / "open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": 3}}'), "has no model_cfg"),
    ],
)
def test_an_incomplete_open_clip_folder_is_one_clear_line(change: Any, message: str, tmp_path: Path) -> None:
    folder = _open_clip_folder("clip", tmp_path)
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_model(f"open_clip:local-dir:{folder}", device="cpu")
    assert "\n" not in str(caught.value)


def test_a_text_tower_that_is_not_in_the_folder_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _open_clip_folder("bert", tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"whose config\.json is not there; copy it in"):
        load_model(f"open_clip:local-dir:{folder}", device="cpu")


def test_a_folder_that_brings_its_weights_takes_no_others(tmp_path: Path) -> None:
    from mmcl.encoders import IMAGE_ENCODERS

    args = {"arch": f"local-dir:{_open_clip_folder('clip', tmp_path)}", "pretrained": "openai"}
    with pytest.raises(UserError, match="brings its own weights"):
        IMAGE_ENCODERS.build("open_clip", args)
