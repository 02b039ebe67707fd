"""Encoders passed as Python modules are trained, resumed, saved and loaded like all others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import mmcl
from mmcl.cli.main import main
from mmcl.config import Config
from mmcl.encoders.small_cnn import SmallCNN
from mmcl.errors import UserError
from mmcl.types import Tokens
from tests.engine.tiny import tiny_config
from tests.narrow import of_type


class Texts(nn.Module):
    """The mean of embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(49408, 8)

    def forward(self, tokens: Tokens) -> Tensor:
        mask, rows = tokens.mask[..., None], of_type(Tensor, self.table(tokens.ids))
        return (rows * mask).sum(1) / mask.sum(1)


def images() -> nn.Module:
    """Any module will do: one of batch norm and dropout, whose modes must be those of training."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.Dropout(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers)


def config_of(folder: Path, run_dir: Path, *flags: str) -> Config:
    evaluation = ("--data.holdout", "0.3", "--evaluate", "[{name: retrieval, label: held_out}]", "--train.steps", "4")
    return tiny_config(folder, run_dir, *evaluation, *flags)


@pytest.fixture(scope="module")
def run_dir(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "given"
    mmcl.train(config_of(folder, run_dir, "--train.save_every", "2"), towers={"image": images(), "text": Texts()})
    return run_dir


def test_what_was_trained_is_loaded_into_a_module_of_any_weights(run_dir: Path, folder: Path) -> None:
    fresh = {"image": images(), "text": Texts()}
    before = fresh["image"].state_dict()["0.weight"].clone()
    model = mmcl.load_model(run_dir, towers=fresh)
    picture = folder / "red_tiny.png"
    assert model.encode_image(picture).shape == model.encode_text("red").shape == (1, 16)
    trained = model.towers["image"].encoder.module  # type: ignore[union-attr]
    assert not torch.equal(trained.state_dict()["0.weight"], before), "it has learned"  # type: ignore[union-attr]
    assert torch.equal(fresh["image"].state_dict()["0.weight"], before), "and it is a copy"
    again = mmcl.load_model(run_dir / "model", towers={"image": images(), "text": Texts()})
    assert np.array_equal(again.encode_image(picture), model.encode_image(picture))
    assert again.fingerprint == model.fingerprint


def test_the_report_has_the_untrained_model_beside_it(run_dir: Path) -> None:
    rows = json.loads((run_dir / "report" / "metrics.json").read_text())
    assert {"trained", "untrained"} <= {row["model"] for row in rows}


def test_a_stopped_run_continues_bit_for_bit(run_dir: Path, folder: Path, tmp_path: Path) -> None:
    """From its checkpoint of step 2 alone, with a module of other weights."""
    shutil.copytree(run_dir, tmp_path / "run")
    for path in ("model", "report", "checkpoints/step-0000004"):
        shutil.rmtree(tmp_path / "run" / path)
    other = images()
    nn.init.zeros_(other[0].weight)  # type: ignore[index]
    config = config_of(folder, tmp_path / "run", "--train.save_every", "2", "--resume")
    mmcl.train(config, towers={"image": other, "text": Texts()})
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (run_dir, tmp_path / "run"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_run_says_that_no_name_builds_it_again(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mmcl")
    mmcl.train(config_of(folder, tmp_path / "run", "--evaluate", "[]", "--train.steps", "1"), towers={"image": images()})
    said = caplog.text
    assert f"this model cannot be rebuilt by name: mmcl.load_model('{tmp_path}/run', towers={{'image': MODULE}})" in said
    assert mmcl.load_model(tmp_path / "run", towers={"image": images()}).has_text


@pytest.mark.parametrize(
    ("towers", "named"),
    [
        (None, r"its image encoder was given as a module from Python.*towers=\{'image': MODULE\}"),
        ({"image": images()}, r"its text encoder was given as a module from Python.*towers=\{'text': MODULE\}"),
        ({"image": images(), "text": Texts(), "sound": Texts()}, "towers: 'sound' is neither 'image' nor 'text'"),
        ({"image": "a.pt", "text": Texts()}, "the image encoder is a str; give a torch.nn.Module"),
        ({"image": nn.Flatten(), "text": Texts()}, r"these weights are not of this architecture"),
        ({"image": nn.Identity(), "text": Texts()}, r"makes \[2, 3, 16, 16\] of a batch of 2; it must make features \[2, F\]"),
        ({"image": nn.Linear(7, 7), "text": Texts()}, r"image"),
    ],
)
def test_other_modules_are_refused(towers: dict[str, nn.Module] | None, named: str, run_dir: Path) -> None:
    with pytest.raises(UserError, match=named) as error:
        mmcl.load_model(run_dir, towers=towers)
    assert "\n" not in str(error.value)


def test_a_module_for_an_encoder_that_has_a_name_is_refused(folder: Path, tmp_path: Path) -> None:
    mmcl.train(config_of(folder, tmp_path / "run", "--evaluate", "[]", "--train.steps", "1"))
    with pytest.raises(UserError, match="its image encoder is 'small_cnn', built by name; remove it from towers"):
        mmcl.load_model(tmp_path / "run", towers={"image": images()})
    with pytest.raises(UserError, match="built by name; remove towers"):
        mmcl.load_model("open_clip:ViT-B-32", towers={"image": images()})


def test_the_command_line_says_what_is_missing(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(run_dir), "red"]) == 2
    assert main(["train", str(run_dir / "config.yaml"), "--resume"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "was given as a module from Python" in first
    assert "encoder 'custom' is a module from Python: give it to mmcl.train or mmcl.load_model as towers=" in second


def test_an_image_encoder_brings_its_preprocessing(folder: Path, tmp_path: Path) -> None:
    own = SmallCNN(image_size=8, channels=1, feature_dim=4)
    mmcl.train(config_of(folder, tmp_path / "run", "--evaluate", "[]", "--train.steps", "1"), towers={"image": own})
    model = mmcl.load_model(tmp_path / "run", towers={"image": own})
    assert model.preprocess == own.preprocess


def test_without_an_image_size_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, tmp_path / "run", "--image.encoder", "{name: timm, args: {name: resnet18}}")
    with pytest.raises(UserError, match=r"set image\.encoder\.args\.image_size"):
        mmcl.train(config, towers={"image": images()})
