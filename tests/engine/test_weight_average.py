"""The moving average of the weights: its formula, and that a run evaluates, exports and resumes it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import mmcl
from mmcl.engine.batch_gradient import BatchGradient
from mmcl.engine.checkpoint import AVERAGE, MODEL
from mmcl.engine.weight_average import WeightAverage
from mmcl.errors import UserError
from mmcl.runs.run import RunResult, train
from tests.engine.tiny import tiny_config

NORMED = ("--image.encoder", "{name: strided_cnn, args: {image_size: 16, widths: [4, 8], blocks: [0, 0], feature_dim: 8}}")
LIVE = ("--data.holdout", "0.3", "--evaluate", "[{name: retrieval, label: held_out, every: 4}]")
EMA = ("--train.ema", "0.9")


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)).to(dtype)
    net.requires_grad_(True)[2].requires_grad_(False)
    net.register_buffer("queue", torch.zeros(2, dtype=dtype))
    return net


@torch.no_grad()
def change(net: nn.Sequential, step: int) -> None:
    """As a step of training does: all that is trained, and the statistics of a batch."""
    generator = torch.Generator().manual_seed(step)
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype))
    net.train()(torch.randn(4, 3, generator=generator, dtype=torch.float64).to(next(net.parameters()).dtype))
    net.get_buffer("queue").add_(1)


@pytest.mark.parametrize(("momentum", "steps"), [(0.999, 12), (0.3, 30)])
def test_averages_are_those_of_a_loop_over_numbers(momentum: float, steps: int) -> None:
    """With a larger share of the weights in the first steps: 0.9, 0.82, ..."""
    net = network()
    average = WeightAverage(net, momentum)
    expected = {name: value.flatten().tolist() for name, value in net.state_dict().items()}
    for t in range(steps):
        change(net, t)
        average.update()
        m = min(momentum, (1 + t) / (10 + t))
        for name, value in net.state_dict().items():
            numbers = zip(expected[name], value.flatten().tolist(), strict=True)
            expected[name] = [m * mean + (1 - m) * new for mean, new in numbers]
    assert average.tensors.keys() == {
        *(f"0.{name}" for name in ("weight", "bias")),
        *(f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var")),
    }, "neither what is frozen, nor counters, nor queues"
    for name, value in average.tensors.items():
        assert value.flatten().tolist() == pytest.approx(expected[name], rel=1e-12)
    assert average.updates == steps


def test_a_long_average_of_a_short_run_forgets_the_start() -> None:
    """The share of the initial weights after ten steps is that of a mean, not 0.999 ** 10."""
    share = math.prod(min(0.999, (1 + t) / (10 + t)) for t in range(10))
    assert share < 1e-4
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1000)
    average = WeightAverage(net, 0.999)
    nn.init.constant_(net.weight, 0)
    for _ in range(10):
        average.update()
    torch.testing.assert_close(average.tensors["weight"], torch.full((1, 1), 1000 * share))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_has_the_average_for_a_while_and_then_its_own_bits(dtype: torch.dtype) -> None:
    net = network(dtype)
    average = WeightAverage(net, 0.9)
    for step in range(3):
        change(net, step)
        average.update()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with average.in_place():
        for name, value in net.state_dict().items():
            expected = average.tensors.get(name, before[name])
            assert expected.dtype == (torch.float32 if name in average.tensors else before[name].dtype)
            assert torch.equal(value, expected.to(value.dtype))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def run(folder: Path, run_dir: Path, *flags: str) -> RunResult:
    return train(tiny_config(folder, run_dir, *NORMED, *flags))


def saved(run_dir: Path, file: str) -> dict[str, Tensor]:
    [*_, last] = sorted((run_dir / "checkpoints").iterdir())
    return load_file(last / file)


def test_a_run_exports_and_evaluates_the_average(folder: Path, tmp_path: Path) -> None:
    """Batch norms included: their statistics are averaged, too."""
    result = run(folder, tmp_path / "run", *EMA, *LIVE)
    run(folder, tmp_path / "plain", *LIVE)
    exported = load_file(tmp_path / "run/model/model.safetensors")
    average, last = (saved(tmp_path / "run", file) for file in (AVERAGE, MODEL))
    for name, value in exported.items():
        assert torch.equal(value, average.get(f"towers.{name}", last[f"towers.{name}"]))
    changed = {name for name, value in exported.items() if not torch.equal(value, last[f"towers.{name}"])}
    assert {"image.encoder.norm.running_var", "image.encoder.norm.weight", "text.head.weight"} <= changed
    facts = json.loads((tmp_path / "run/model/config.json").read_text())
    assert facts["logit_scale"] == pytest.approx(math.exp(average["log_scale"]))
    assert facts["provenance"]["ema"] == 0.9
    without = saved(tmp_path / "plain", MODEL)
    assert all(torch.equal(without[name], value) for name, value in last.items()), "it does not change the training"

    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    live = next(row for row in rows if row["step"] == 8 and any("held_out/" in key for key in row))
    trained = {f"{m.data}/{m.metric}": m.value for m in result.report.metrics if m.model == "trained"}
    both = {key: value for key, value in live.items() if trained.get(key) is not None}
    assert both
    assert all(trained[key] == pytest.approx(value) for key, value in both.items()), "of the average, as at the end"
    for name, is_averaged in (("run", True), ("plain", False)):
        text = (tmp_path / name / "report/report.md").read_text()
        assert ("The trained weights are the moving average over the steps (train.ema 0.9)." in text) == is_averaged
    assert mmcl.load_model(tmp_path / "run").logit_scale == facts["logit_scale"]


def test_the_best_average_is_exported(folder: Path, tmp_path: Path) -> None:
    best = ("--train.keep_best", "held_out/text_to_image_mean_rank", "--train.export", "best")
    every = ("--data.holdout", "0.3", "--evaluate", "[{name: retrieval, label: held_out, every: 1}]")
    run(folder, tmp_path / "run", *EMA, *best, *every)
    steps = json.loads((tmp_path / "run/model/config.json").read_text())["provenance"]["steps"]
    average = load_file(tmp_path / f"run/checkpoints/step-{steps:07d}" / AVERAGE)
    exported = load_file(tmp_path / "run/model/model.safetensors")
    assert torch.equal(exported["text.head.weight"], average["towers.text.head.weight"])


def test_steps_that_are_skipped_are_not_averaged(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is not finite at step 3 of 8."""
    original: Any = BatchGradient._loss
    calls: list[int] = []

    def spoiled(*args: Any) -> Any:
        calls.append(1)
        embeddings, output = original(*args)
        return embeddings, type(output)(output.loss * float("nan")) if len(calls) == 3 else output

    monkeypatch.setattr(BatchGradient, "_loss", spoiled)
    run(folder, tmp_path / "run", *EMA, "--train.on_nonfinite", "skip")
    [*_, last] = sorted((tmp_path / "run/checkpoints").iterdir())
    state = json.loads((last / "MANIFEST.json").read_text())["state"]
    assert (state["skipped"], state["averaged"]) == (1, 7)
    assert all(value.isfinite().all() for value in load_file(last / AVERAGE).values())


def test_it_may_begin_in_the_middle_of_a_run(folder: Path, tmp_path: Path) -> None:
    """On request: the average is a part of what the run learns."""
    run_dir = tmp_path / "run"
    run(folder, run_dir, "--train.save_every", "4")
    shutil.rmtree(run_dir / "checkpoints/step-0000008")
    with pytest.raises(UserError, match=r"other settings \(train\.ema: None -> 0\.9\)"):
        run(folder, run_dir, "--resume", *EMA)
    run(folder, run_dir, "--resume", *EMA, "--allow_change", "train.ema")
    [*_, last] = sorted((run_dir / "checkpoints").iterdir())
    assert json.loads((last / "MANIFEST.json").read_text())["state"]["averaged"] == 4
    files = (run_dir / "checkpoints/step-0000004" / MODEL, last / MODEL, last / AVERAGE)
    start, end, average = (load_file(file)["towers.text.head.weight"] for file in files)
    assert (average - end).norm() < (average - start).norm()


@pytest.mark.parametrize("value", ["0", "1", "1.5", "-0.1"])
def test_momentum_is_between_zero_and_one(folder: Path, tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match=r"train\.ema is .*: give null or a number above 0 and below 1"):
        tiny_config(folder, tmp_path / "run", "--train.ema", value)


def test_a_damaged_average_is_a_damaged_checkpoint(folder: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run(folder, run_dir, *EMA, "--train.save_every", "4")
    expected = (run_dir / "model/model.safetensors").read_bytes()
    file = run_dir / "checkpoints/step-0000008" / AVERAGE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    run(folder, run_dir, *EMA, "--train.save_every", "4", "--resume")
    assert (run_dir / "model/model.safetensors").read_bytes() == expected
