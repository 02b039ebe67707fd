"""Fine-tuning warns of rates that a released model does not bear, and of settings in whose place `init` has its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

import mmcl
from mmcl.runs import build
from mmcl.runs.doctor import diagnose
from mmcl.runs.run import train
from mmcl.runs.warnings import _replaced
from tests.engine.tiny import tiny_config

RELEASED = "open_clip:ViT/released"
NULL = ("--image.encoder", "null", "--image.head", "null", "--text.encoder", "null", "--text.head", "null")


@pytest.fixture(scope="module")
def start(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    run_dir = train(tiny_config(folder, tmp_path_factory.mktemp("runs") / "start", "--train.steps", "1")).run_dir
    return str(run_dir)


def warnings(folder: Path, *flags: str) -> list[str]:
    found = diagnose(tiny_config(folder, folder.parent / "run", "--optim.warmup", "0.5", *flags)).warnings
    return [line for line in found if "learning rate of" in line or "not used" in line]


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        (("--optim.lr", "5e-4"), "a learning rate of 0.0005 is far above"),
        (("--optim.lr", "1e-5"), ""),
        (("--optim.lr", "1e-5", "--optim.groups", "[{match: head, lr: 1e-2}]"), ""),
        (("--optim.lr", "1e-5", "--optim.groups", "[{match: image, lr: 1e-2}]"), "a learning rate of 0.01 is"),
        (("--optim.lr", "1e-2", "--image.freeze", "true", "--text.freeze", "true"), ""),
        (("--optim", "{name: sgd, lr: 0.1, weight_decay: 0}"), ""),
    ],
)
def test_rates_that_a_released_model_does_not_bear(
    folder: Path, start: str, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], warned: str
) -> None:
    model = mmcl.load_model(start)
    monkeypatch.setattr(build, "load_model", lambda name: model)
    found = warnings(folder, *NULL, "--init", RELEASED, *flags)
    assert [warned in line for line in found] == [True] * bool(warned)
    assert warnings(folder, *NULL, "--init", start, *flags) == [], "a model of one's own may bear more"


def test_trained_encoders_of_libraries_bear_as_little(folder: Path, tmp_path: Path) -> None:
    """The same weights start at random, or from a file; a new head may have any rate."""
    weights = tmp_path / "weights.pt"
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), weights)
    encoder = "{name: torchvision, args: {name: mobilenet_v3_small, image_size: 32, pretrained: %s}}"
    for start, flags, expected in (
        ("false", (), 0),
        (str(weights), (), 1),
        (str(weights), ("--optim.groups", "[{match: '^image[.]encoder', lr: 1e-5}]"), 0),
    ):
        found = warnings(folder, "--image.encoder", encoder % start, "--optim.lr", "5e-4", *flags)
        assert ["the trained image encoder of torchvision bears" in line for line in found] == [True] * expected


def test_towers_in_whose_place_init_has_its_own(folder: Path, start: str) -> None:
    flags = ("--init", start, "--init_missing", "random")
    assert warnings(folder, *flags) == [], "those of the file are the same"
    other = ("--image.encoder.args.image_size", "24", "--text.head.args.embed_dim", "8")
    [line] = warnings(folder, *flags, *other)
    assert line == f"not used: image.encoder and text.head of the configuration, because {start} has its own"


def test_the_shipped_configuration_fits_the_default_run() -> None:
    """It names an architecture for those who have no such run yet; where there is one, nothing is replaced."""
    own, start = (mmcl.load_config(name) for name in ("clip_finetune", "clip_emoji"))
    assert [_replaced(name, getattr(own, name), getattr(start, name)) for name in ("image", "text")] == [[], []]
