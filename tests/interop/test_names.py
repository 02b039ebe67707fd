"""Unknown model names are answered at once, in one line with a suggestion."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from mmcl.errors import UserError
from mmcl.files import untrusted
from mmcl.interop.load import load_model

_NOBODY = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    "name",
    [
        "hf:a/b",
        "open_clip:ViT-B-32/laion2b_s34b_b79k",
        "open_clip:hf-hub:a/b",
        "timm:test_vit",
        "timm:hf-hub:a/b",
    ],
)
def test_without_a_network_nothing_is_tried_again(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", _NOBODY)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("a retry"))
    untrusted._answers.cache_clear()
    with pytest.raises(UserError, match=f"{_NOBODY} does not answer, and it is not in the cache.*the network") as caught:
        load_model(name, device="cpu")
    assert "\n" not in str(caught.value)
    assert "Retrying" not in capsys.readouterr().err
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("name", ["hf:a/b", "open_clip:ViT-B-32/laion2b_s34b_b79k", "timm:test_vit"])
def test_a_hub_that_is_switched_off_is_named(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
        load_model(name, device="cpu")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ViT-B-32", "did you mean open_clip:ViT-B-32/openai?"),
        ("ViT-B-32/openai", "did you mean open_clip:ViT-B-32/openai?"),
        ("openai/clip-vit-base-patch32", "did you mean hf:openai/clip-vit-base-patch32?"),
        ("resnet18.a1_in1k", "did you mean timm:resnet18.a1_in1k?"),
        ("resnet18", "did you mean timm:resnet18 or torchvision:resnet18?"),
        ("https://huggingface.co/openai/clip-vit-base-patch32/tree/main", "did you mean hf:openai/clip-vit-base-patch32?"),
        ("hf-hub:timm/ViT-B-16-SigLIP2", "open_clip:hf-hub:timm/ViT-B-16-SigLIP2 or timm:hf-hub:timm/ViT-B-16-SigLIP2?"),
        ("open-clip:ViT-B-32", "unknown prefix 'open-clip'; did you mean 'open_clip'?"),
        ("torchvison:resnet18", "unknown prefix 'torchvison'; did you mean 'torchvision'?"),
        ("hf:", "hf:: the name after the prefix is missing"),
        ("nothing like it", "give one that holds config.json, or open_clip:NAME"),
        ("nothing_like_it", "give one that holds config.json, or open_clip:NAME"),
    ],
)
def test_what_was_meant_is_named(name: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_model(name)
    assert meant in str(caught.value)


def test_the_nearest_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs" / "clip_emoji" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "notes").mkdir()
    with pytest.raises(UserError, match=r"did you mean .*clip_emoji\?"):
        load_model(tmp_path / "runs" / "clip_emojis")
    with pytest.raises(UserError, match="neither a run nor a model folder; give one that holds"):
        load_model(tmp_path / "runs" / "note")
