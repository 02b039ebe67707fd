"""Runs that start from a model: what they gained and lost, and the mean of their weights with those of the start."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mmcl
from mmcl.config import Config
from mmcl.errors import UserError
from mmcl.evaluate import Report
from mmcl.runs.run import train
from mmcl.runs.suite import load_suite
from tests.engine.tiny import tiny_config

FROM_INIT = ("--image.encoder", "null", "--image.head", "null", "--text.encoder", "null", "--text.head", "null")


@pytest.fixture(scope="module")
def start(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny_config(folder, tmp_path_factory.mktemp("base") / "start", "--train.steps", "3")).run_dir


def tuned_config(folder: Path, start: Path, run_dir: Path, *flags: str) -> Config:
    return tiny_config(folder, run_dir, "--init", str(start), *FROM_INIT, *flags)


def evaluators(folder: Path) -> str:
    old = f"{{name: retrieval, label: squares, keep: true, data: {{path: {folder}}}}}"
    return f"[{{name: retrieval, label: held_out}}, {old}]"


def test_a_report_begins_with_what_was_gained_and_lost(folder: Path, start: Path, tmp_path: Path) -> None:
    config = tuned_config(folder, start, tmp_path / "run", "--data.holdout", "0.3", "--evaluate", evaluators(folder))
    report = train(config).report
    (opening,) = report.opening
    assert re.match(r"Fine-tuning .* the new data.* the old\b", opening)
    assert "New, held_out: text → image R@1 " in opening
    assert "Old, squares: text → image R@1 " in opening
    assert Report.load(tmp_path / "run/report").opening == report.opening


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--evaluate", "[{name: retrieval, label: a, keep: true}]"),
            "evaluate.0.keep is true, for old data: name them",
        ),
        (
            ("--init", "null", "--evaluate", "[{name: retrieval, label: a, keep: true, data: {name: emoji}}]"),
            "evaluate.0.keep is true, for old data: set init",
        ),
    ],
)
def test_old_data_are_named_and_known_by_a_start(folder: Path, tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        tiny_config(folder, tmp_path / "run", "--init", "a", "--init_missing", "random", "--data.holdout", "0.3", *flags)


def test_a_suite_has_no_old_data(tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text("evaluate: [{name: retrieval, label: a, keep: true, data: {name: emoji}}]\n")
    with pytest.raises(UserError, match=r"evaluate\.0\.keep is for a run with init"):
        load_suite([suite], models=["runs/a"])


@pytest.mark.parametrize("alpha", [0.25, pytest.param(0.5, marks=pytest.mark.long)])
def test_the_exported_weights_are_the_mean_with_those_of_the_start(
    folder: Path, start: Path, tmp_path: Path, alpha: float
) -> None:
    """Tensor by tensor, and of the logarithm of the temperature; checkpoints hold the trained weights."""
    for name, flags in (("whole", ()), ("mean", ("--train.alpha", str(alpha)))):
        train(tuned_config(folder, start, tmp_path / name, *flags))
    before, after, mean = (load_file(run / "model/model.safetensors") for run in (start, tmp_path / "whole", tmp_path / "mean"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name, value in mean.items():
        expected = (1 - alpha) * before[name].double() + alpha * after[name].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-8)
    scales = [mmcl.load_model(run).logit_scale for run in (start, tmp_path / "whole", tmp_path / "mean")]
    first, last, found = (math.log(scale or 0) for scale in scales)
    assert found == pytest.approx((1 - alpha) * first + alpha * last, rel=1e-6)
    states = [load_file(tmp_path / run / "checkpoints/step-0000008/model.safetensors") for run in ("whole", "mean")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert json.loads((tmp_path / "mean/model/config.json").read_text())["provenance"]["alpha"] == alpha


@pytest.mark.long
@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_the_mean_of_an_adapted_model_has_the_keys_of_the_start(
    folder: Path, start: Path, tmp_path: Path, adapter: str
) -> None:
    train(tuned_config(folder, start, tmp_path / "run", "--train.alpha", "0.5", "--text.adapt.name", adapter))
    before, mean = (load_file(run / "model/model.safetensors") for run in (start, tmp_path / "run"))
    assert before.keys() == mean.keys()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--image.head", "{name: mlp, args: {embed_dim: 16}}"), "the image head has none there: set it to 1"),
        (("--train.alpha", "0"), "train.alpha is 0.0: give a number above 0"),
        (("--train.alpha", "1.5"), "train.alpha is 1.5: give a number above 0"),
    ],
)
def test_a_mean_needs_two_of_everything(folder: Path, start: Path, tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        train(tuned_config(folder, start, tmp_path / "run", "--train.alpha", "0.5", *flags))
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_mean_with_random_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the image tower has none there"):
        train(tiny_config(folder, tmp_path / "run", "--train.alpha", "0.5"))
