"""Unknown model names are answered at once, in one line with a suggestion."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from mmcl.errors import UserError
from mmcl.files import hub
from mmcl.interop.available import check_available
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
    hub._answers.cache_clear()
    said = f"{_NOBODY} does not answer, and it is not in the cache; check the network, or .* copy {tmp_path} from there"
    with pytest.raises(UserError, match=said) as caught:
        load_model(name, device="cpu")
    assert "\n" not in str(caught.value)
    assert "Retrying" not in capsys.readouterr().err
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("part", ["address", "connection"])
def test_a_network_that_swallows_everything_is_given_up(part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A search for the address that does not end, and a server that takes the request and says nothing."""
    end = threading.Event()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        if part == "address":
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: end.wait(60))
        hub._answers.cache_clear()
        with pytest.raises(UserError, match="does not answer"):
            load_model("hf:a/b", device="cpu")
        end.set()


def test_a_model_in_the_cache_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name, repository in {
        "hf:a/b": "a--b",
        "open_clip:ViT-B-32/laion2b_s34b_b79k": "laion--CLIP-ViT-B-32-laion2B-s34B-b79K",
        "timm:resnet18": "timm--resnet18.a1_in1k",
    }.items():
        with pytest.raises(UserError):
            check_available(name)
        (tmp_path / f"models--{repository}").mkdir()
        check_available(name)
    for local in ("runs/a", "open_clip:ViT-B-32", "open_clip:ViT-B-32/weights.pt", "torchvision:resnet18", f"hf:{tmp_path}"):
        check_available(local)


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
    with pytest.raises(UserError, match="no such run; `mmcl train` makes one"):
        load_model(tmp_path / "runs" / "note")
    with pytest.raises(UserError, match=r"holds runs; give one of them, such as .*/runs/clip_emoji$"):
        load_model(tmp_path / "runs")
