"""Preprocessing for weights from a file, which does not state it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision

from mmcl.errors import UserError
from mmcl.interop.load import load_model
from mmcl.interop.save import save_model
from tests.arithmetic import network_tolerance
from tests.encoders import tiny
from tests.interop.test_checkpoints import clip_state
from tests.narrow import present


def _weights(library: str, folder: Path, arch: dict[str, Any]) -> str:
    """What `load_model` is given for weights of a library that lie in a file."""
    path = folder / "weights.pth"
    if library == "open_clip":
        torch.save(clip_state(arch), path)
        return f"open_clip:Tiny/{path}"
    name = {"timm": "test_vit", "torchvision": "squeezenet1_1"}[library]
    model = timm.create_model(name) if library == "timm" else torchvision.models.get_model(name, weights=None)
    torch.save(tiny.shaken(model).state_dict(), path)
    return f"{library}:{name}/{path}"


@pytest.mark.parametrize("library", ["open_clip", "timm", "torchvision"])
def test_a_file_gets_the_preprocessing_that_it_states_or_is_given(
    library: str, arch: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = _weights(library, tmp_path, arch)
    usual = present(load_model(name, device="cpu").preprocess)
    said = caplog.text
    assert "weights.pth does not say its preprocessing; taken is mean " in said
    assert " ".join(f"{value:.4g}" for value in usual.mean) in said
    assert f"resize {usual.resize!r}" in said

    fields: dict[str, Any] = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize": "squash", "interpolation": "bilinear"}
    expected = replace(usual, mean=(0.5,) * 3, std=(0.5,) * 3, resize="squash", interpolation="bilinear")
    caplog.clear()
    for given in (fields, expected):
        model = load_model(name, device="cpu", preprocess=given)
        assert model.preprocess == expected
        assert model.towers["image"].get_buffer("encoder.norm.mean").flatten().tolist() == [0.5] * 3
    assert "does not say" not in caplog.text
    save_model(tmp_path / "ours", model.towers)
    again = load_model(tmp_path / "ours", device="cpu")
    assert again.preprocess == expected
    image = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    assert again.fingerprint == model.fingerprint
    np.testing.assert_allclose(again.encode_image(image), model.encode_image(image), atol=network_tolerance(model.towers))


def test_the_line_names_the_activation_and_that_released_weights_differ(
    arch: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "mmcl.encoders.open_clip.get_pretrained_cfg", lambda arch, tag: {"mean": (0.5,) * 3} if tag == "a" else {}
    )
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda arch: ["a"])
    load_model(_weights("open_clip", tmp_path, arch), device="cpu")
    assert "(released weights of Tiny have others), and GELU" in caplog.text
    caplog.clear()
    arch["quick_gelu"] = True
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda arch: ["b"])
    load_model(_weights("open_clip", tmp_path, arch), device="cpu")
    said = caplog.text
    assert "others" not in said
    assert "and QuickGELU" in said


def test_preprocessing_of_another_size_resamples_positions(
    arch: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = _weights("open_clip", tmp_path, arch)
    model = load_model(name, device="cpu", preprocess={"size": 48})
    assert model.encode_image(np.zeros((50, 60, 3), np.uint8)).shape == (1, 16)
    assert "visual.positional_embedding is resampled from [5, 32] to [10, 32]" in caplog.text


def test_a_size_that_patches_do_not_divide_is_refused_at_once(arch: dict[str, Any], tmp_path: Path) -> None:
    name = _weights("timm", tmp_path, arch)
    with pytest.raises(UserError, match="image size 97 x 97 must be a multiple of its patches of 16 x 16"):
        load_model(name, device="cpu", preprocess={"size": 97})
    assert load_model(name, device="cpu", preprocess={"size": 96}).encode_image(np.zeros((5, 6, 3), np.uint8)).shape == (1, 64)


def test_a_folder_of_transformers_takes_a_given_preprocessing(tmp_path: Path) -> None:
    tiny.transformers_model("clip", tmp_path)
    model = load_model(f"hf:{tmp_path}", device="cpu", preprocess={"mean": [0.1, 0.2, 0.3]})
    assert present(model.preprocess).mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"means": [0.5]}, "did you mean 'mean'"),
        ({"mean": [0.5]}, "mean"),
        ({"mean": "abc"}, "mean"),
        ({"mean": [None, None, None]}, "mean"),
        ({"std": [0.5, 0.5, np.nan]}, "std"),
        ({"size": "big"}, "size"),
    ],
)
def test_a_preprocessing_that_is_not_possible_is_named(
    fields: dict[str, Any], message: str, arch: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load_model(_weights("open_clip", tmp_path, arch), device="cpu", preprocess=fields)


def test_a_model_of_ours_keeps_its_preprocessing(arch: dict[str, Any], tmp_path: Path) -> None:
    save_model(tmp_path / "ours", load_model(_weights("open_clip", tmp_path, arch), device="cpu").towers)
    with pytest.raises(UserError, match="was saved with its preprocessing"):
        load_model(tmp_path / "ours", preprocess={"size": 8})
