"""Settings that `mmcl finetune` chooses: of any number of pairs, as a configuration to keep, and what cannot be fine-tuned."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmcl.cli.finetune import Preset
from mmcl.config import Config, SourceConfig, load_config
from mmcl.config.shipped import shipped_configs
from mmcl.errors import UserError
from mmcl.runs import forecast as forecasts
from mmcl.runs.finetuning import batch_size, choose, epochs, holdout_share, rate_factor
from mmcl.runs.footprint import Footprint, free_bytes, measure
from mmcl.runs.forecast import forecast, format_seconds
from mmcl.runs.memory import Memory
from mmcl.runs.plan import make_plan
from mmcl.runs.run import train
from tests.engine.tiny import tiny_config

PRESETS = get_args(Preset)
IMAGE = ("--image.encoder", "{name: strided_cnn, args: {image_size: 16, widths: [4, 8, 8], blocks: [0, 0, 0], feature_dim: 8}}")


@pytest.fixture(scope="module")
def start(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with evaluators on data of its own and on none."""
    old = f"{{name: retrieval, label: squares, data: {{path: {folder}}}}}"
    more = f"{{name: embedding_map, label: squares, data: {{path: {folder}}}}}"
    deep = ("--text.encoder.args.layers", "3", "--text.encoder.args.context_length", "24")
    flags = (*IMAGE, *deep, "--train.steps", "2", "--data.holdout", "0.2")
    config = tiny_config(folder, tmp_path_factory.mktemp("runs") / "start", *flags)
    run_dir = train(config).run_dir
    text = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(text.replace("evaluate: []", f"evaluate: [{old}, {more}]"))
    return run_dir


def some_of(folder: Path, count: int, place: Path) -> SourceConfig:
    """The first pairs of the folder, with captions of their own where there are more than it has."""
    rows = list(csv.DictReader((folder / "captions.csv").read_text().splitlines()))
    table = place / f"{count}.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for number in range(count):
            one = rows[number % len(rows)]
            writer.writerow([folder / one["image"], f"{one['caption']} {number // len(rows) or ''}".strip()])
    return SourceConfig(path=str(table))


def test_the_presets_are_the_shipped_ones() -> None:
    assert {f"finetune/{name}" for name in PRESETS} == {name for name in shipped_configs() if name.startswith("finetune/")}


@given(count=st.integers(4, 10**7))
def test_something_is_held_out_and_most_is_not(count: int) -> None:
    held = int(holdout_share(count) * count + 0.5)
    assert 2 <= held <= max(2, count // 4, 50)
    assert held <= 5_025, "the share has three digits"
    batch = batch_size(count - held)
    assert 1 <= batch <= count - held
    assert batch % 8 == 0 or batch & (batch - 1) == 0
    assert 2 <= epochs(count - held) <= 60


def test_smaller_models_bear_higher_rates() -> None:
    factors = [rate_factor(10**power) for power in range(4, 10)]
    assert factors == sorted(factors, reverse=True)
    assert (factors[0], factors[-1]) == (30.0, 1.0)
    assert rate_factor(10**6) == pytest.approx(30)


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        pytest.param(preset, count, marks=[] if (preset, count) in (("full", 6), ("lora", 37)) else [pytest.mark.long])
        for preset in PRESETS
        for count in (6, 37)
    ],
)
def test_every_preset_trains_few_pairs(folder: Path, start: Path, tmp_path: Path, preset: str, count: int) -> None:
    """From the facts before it starts to the report with both models; what is printed is the same configuration."""
    flags = ("--train.epochs", "2", "--run_dir", str(tmp_path / "run"))
    choice, facts = forecast(choose(some_of(folder, count, tmp_path), str(start), preset, flags))
    mine = tmp_path / "mine.yaml"
    mine.write_text(choice.to_yaml())
    assert load_config(mine) == choice.config
    assert 0 < facts.tensors <= facts.all_tensors
    assert 0 < facts.parameters <= facts.all_parameters
    assert facts.old == ("squares",)
    report = train(choice.config).report
    assert {metric.model for metric in report.metrics if metric.data == "held_out"} >= {"trained", "before"}
    assert "New, held_out: " in report.opening[0]
    assert "Old, squares: " in report.opening[0]


def test_what_is_trained_is_what_is_said(folder: Path, start: Path, tmp_path: Path) -> None:
    for preset, part in (("full", 1.0), ("last_blocks", 0.9), ("lora", 0.5)):
        _, facts = forecast(choose(some_of(folder, 25, tmp_path), str(start), preset, ()))
        assert facts.parameters / facts.all_parameters <= part
        text = facts.to_text(80)
        assert all(len(line) <= 80 for line in text.splitlines() if "/" not in line)
        text = " ".join(text.split())
        assert f"{facts.tensors} of {facts.all_tensors} tensors" in text
        assert re.search(r"memory about .* for a step", text)
        assert "data 25 pairs: 20 to train on, 5 pairs held out for the report" in text


def test_flags_take_precedence(folder: Path, start: Path, tmp_path: Path) -> None:
    flags = ["--train.batch_size", "5", "--optim.lr", "0.5", "--data.holdout", "0.4", "--evaluate", "[]", "--train.steps", "3"]
    config = choose(some_of(folder, 25, tmp_path), str(start), "full", flags).config
    assert (config.train.batch_size, config.optim.lr, config.data.holdout, config.evaluate) == (5, 0.5, 0.4, ())
    assert config.train.steps == 3


def classes(folder: Path, place: Path, names: tuple[str, ...]) -> SourceConfig:
    for name in names:
        (place / name).mkdir(parents=True)
        for picture in folder.glob(f"{name}_*.png"):
            (place / name / picture.name).write_bytes(picture.read_bytes())
    return SourceConfig(path=str(place))


def test_a_folder_for_each_class(folder: Path, start: Path, tmp_path: Path) -> None:
    """Captions are made of the names, and the held-out images are classified."""
    data = classes(folder, tmp_path / "classes", ("red", "green", "blue"))
    choice, _ = forecast(choose(data, str(start), "full", ("--run_dir", str(tmp_path / "run"), "--train.epochs", "1")))
    assert [one.name for one in choice.config.evaluate if not one.keep] == ["zero_shot"]
    report = train(choice.config).report
    assert any(metric.metric == "zero_shot_top1" and metric.model == "before" for metric in report.metrics)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_too_few_pairs(folder: Path, start: Path, tmp_path: Path, count: int) -> None:
    with pytest.raises(UserError):
        choose(some_of(folder, count, tmp_path), str(start), "full", ())


def test_pairs_with_the_same_caption_are_too_few(folder: Path, start: Path, tmp_path: Path) -> None:
    table = tmp_path / "same.csv"
    rows = "".join(f"{picture},A cat\n{picture},a  cat\n" for picture in folder.glob("*.png"))
    table.write_text(f"image,caption\n{rows}")
    with pytest.raises(UserError, match="there are 1 different captions: fine-tuning needs 4 or more"):
        choose(SourceConfig(path=str(table)), str(start), "full", ())


def test_data_that_say_nothing(folder: Path, start: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    for picture in folder.glob("red_*.png"):
        (tmp_path / "plain" / picture.name).write_bytes(picture.read_bytes())
    with pytest.raises(UserError, match=r"no captions .*, and no classes: put captions\.csv"):
        choose(SourceConfig(path=str(tmp_path / "plain")), str(start), "full", ())
    table = tmp_path / "one.csv"
    table.write_text("image,label\n" + "".join(f"{picture},cat\n" for picture in folder.glob("*.png")))
    with pytest.raises(UserError, match="the images are of a single class"):
        choose(SourceConfig(path=str(table)), str(start), "full", ())


def test_a_model_without_texts(folder: Path, tmp_path: Path) -> None:
    config = load_config(
        "simclr_digits",
        [
            *("--train.steps", "1", "--train.batch_size", "16", "--evaluate", "[]", "--run_dir", str(tmp_path / "images")),
        ],
    )
    images = train(config).run_dir
    for name, said in ((images, "the model has no text tower"), ("onnx:graph", "a graph has no weights to train")):
        with pytest.raises(UserError, match=said):
            choose(some_of(folder, 9, tmp_path), str(name), "full", ())


def test_old_data_that_are_gone_are_no_error(
    folder: Path, start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (start / "config.yaml").read_text()
    moved = tmp_path / "start"
    (moved / "model").mkdir(parents=True)
    for file in (start / "model").iterdir():
        (moved / "model" / file.name).write_bytes(file.read_bytes())
    (moved / "config.yaml").write_text(text.replace(f"{{path: {folder}}}", "{path: gone}"))
    assert not [one for one in choose(some_of(folder, 9, tmp_path), str(moved), "full", ()).config.evaluate if one.keep]
    assert "old data of" in caplog.text


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> Config:
    return tiny_config(folder, tmp_path / "run")


def test_the_footprint_grows_with_the_pairs(config: Config) -> None:
    """Activations are at least the features, and gradients and moments are three times the weights."""
    plan = make_plan(config, 1)
    found = measure(plan, torch.device("cpu"))
    weights = sum(p.numel() * p.element_size() for p in plan.method.parameters() if p.requires_grad)
    assert found.memory.training == 3 * weights
    assert found.per_pair > 4 * (32 + 16)
    assert found.seconds > 0
    assert not [p for p in plan.method.parameters() if p.grad is not None]


def test_a_batch_that_does_not_fit_is_cut() -> None:
    """Of the free memory, six tenths are for a step: the rest of 100 bytes that it needs in any case, by 10 for each pair."""
    memory = Memory(weights=1000, training=60, adapters=0, average=20, anchors=10)
    footprint = Footprint(memory=memory, weights_are_there=True, per_pass=10, per_pair=10, seconds=1.0)
    assert [footprint.pairs_at_a_time(64, free) for free in (10**6, 1234, 1233, 400, 100)] == [None, None, 32, 8, 1]
    assert footprint.step_seconds(6, None) == footprint.step_seconds(6, 6) == 6
    assert footprint.step_seconds(6, 2) == 8
    assert footprint.bytes(3) == 130
    assert dataclasses.replace(footprint, weights_are_there=False).bytes(3) == 1130
    assert (footprint.shortage(3, 130, "rest"), footprint.shortage(3, None, "rest")) == ([], [])
    assert footprint.shortage(3, 129, "rest") == ["a step needs 130 B, and 129 B are free: rest"]


def test_less_memory_means_micro_batches(folder: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = some_of(folder, 25, tmp_path)
    _, facts = forecast(choose(pairs, str(start), "full", ()))
    assert facts.micro_batch is None
    monkeypatch.setattr(forecasts, "free_bytes", lambda device: int(facts.needed * 1.4))
    choice, small = forecast(choose(pairs, str(start), "full", ()))
    assert small.micro_batch is not None
    assert choice.config.train.micro_batch == small.micro_batch < facts.batch
    assert f"{small.micro_batch} pairs at a time" in " ".join(small.to_text(80).split())
    monkeypatch.setattr(forecasts, "free_bytes", lambda device: 1000)
    _, none = forecast(choose(pairs, str(start), "full", ()))
    assert "take --preset lora or last_blocks" in none.shortage[0]
    assert none.shortage[0] in " ".join(none.to_text(80, with_warnings=False).split())


def test_free_memory_is_some() -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is None or free > 2**20


@pytest.mark.parametrize(("seconds", "text"), [(0.234, "0.23 s"), (45, "45 s"), (720, "12 min"), (9000, "2.5 h")])
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
