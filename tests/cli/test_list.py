"""`mmcl list`: every entry with a description, and the models that can be loaded."""

from __future__ import annotations

import inspect
import json
import runpy
from pathlib import Path

import open_clip
import pytest
import torchvision

from mmcl.cli.list import _registries
from mmcl.cli.main import main
from mmcl.interop.catalog import FILE, TRANSFORMERS_FAMILIES
from tests.encoders import tiny

SCRIPT = Path(__file__).parents[2] / "scripts" / "data" / "list_models.py"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("clip", "simclr", "strided_cnn", "small_text", "emoji", "affine", "retrieval"))
    assert "  simclr            Match two augmented views of every image" in text
    assert main(["list", "methods", "--args", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["methods"]["clip"]["temperature"] == 0.07
    assert main(["list", "all", "grayscale", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "augmentations": {"grayscale": "Converts to gray, with three equal channels"}
    }


def test_every_entry_of_the_list_is_described_by_one_sentence() -> None:
    for title, registry in _registries().items():
        for name in registry:
            [line] = registry.summary(name).splitlines()
            assert 10 < len(line) <= 128, f"{title}, {name}: {line!r}"
            loaded = inspect.getdoc(registry[name]) or ""
            assert " ".join(loaded.split()).startswith(line.rstrip("."))
            assert registry.summary(name) == line, "the source says the same as the imported object"


def test_the_list_of_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "models", "vit-b-32/", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["open_clip: images and texts"]
    assert found["open_clip:ViT-B-32/laion2b_s34b_b79k"] == {
        "embed_dim": 512,
        "image_size": 224,
        "hub": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    }
    assert {f"open_clip:{arch}/{tag}" for arch, tag in open_clip.list_pretrained() if arch == "ViT-B-32"} <= found.keys()
    assert main(["list", "models", "resnet18"]) == 0
    lines = capsys.readouterr().out.splitlines()
    weights = torchvision.models.get_model_weights("resnet18").DEFAULT
    assert ["torchvision:resnet18", f"parameters={weights.meta['num_params']}"] in [line.split() for line in lines]
    assert any(line.startswith("  timm:resnet18.a1_in1k ") for line in lines)


def test_the_families_of_transformers_are_those_of_the_tests() -> None:
    assert {*TRANSFORMERS_FAMILIES} == {*tiny._CONFIGS}


def test_the_frozen_list_is_what_the_libraries_say() -> None:
    """All of it for the version that it was made from; other versions have other models, but not many."""
    script, frozen = runpy.run_path(str(SCRIPT)), json.loads(FILE.read_text())
    for library, installed in script["released"]().items():
        listed = frozen["models"][library]
        if script["versions"]()[library] == frozen["versions"][library]:
            assert listed == installed, f"python {SCRIPT}"
        else:
            assert len(listed.keys() & installed.keys()) > 0.8 * len(installed), library
    assert script["to_text"](frozen["versions"], frozen["models"]) == FILE.read_text()
