"""`train.precision: auto`: what the machine computes fast, settled once for a run."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate.state import PartialState
from torch import Tensor, nn
from torch.nn import functional

from mmcl import train
from mmcl.config import Config, TrainConfig, load_config
from mmcl.engine.launch import start
from mmcl.engine.precision import attention_precision, matmul_precision, precision_in_words
from mmcl.engine.trainer import Trainer
from mmcl.errors import UserError
from mmcl.runs.doctor import diagnose
from mmcl.runs.footprint import measure
from mmcl.runs.plan import make_plan
from mmcl.runs.resume import FILE
from tests.attention import recorded_attention
from tests.distributed.harness import run_processes
from tests.engine.tiny import make_folder, tiny_config

AUTO = ("--train.precision", "auto")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos")


def _pretend(monkeypatch: pytest.MonkeyPatch, has_bf16: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)


def _precision(run_dir: Path) -> str:
    settings: dict[str, str] = json.loads((run_dir / FILE).read_text())["settings"]
    return settings["train.precision"]


def _losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_what_the_machine_computes_fast(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    has_bf16: bool,
    precision: str,
) -> None:
    _pretend(monkeypatch, has_bf16)
    with caplog.at_level(logging.INFO, "mmcl"):
        train(tiny_config(folder, tmp_path / "auto", *AUTO))
    assert f"train.precision auto is {precision}: the processor" in caplog.text
    train(tiny_config(folder, tmp_path / "named", "--train.precision", precision))
    assert _losses(tmp_path / "auto") == _losses(tmp_path / "named")
    assert _precision(tmp_path / "auto") == load_config(tmp_path / "auto" / "config.yaml").train.precision == precision


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_resumed_run_keeps_the_precision_of_its_start(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bf16: bool
) -> None:
    _pretend(monkeypatch, has_bf16)
    train(tiny_config(folder, tmp_path / "whole", *AUTO))
    train(tiny_config(folder, tmp_path / "halves", *AUTO, "--train.steps", "4", "--optim.warmup", "0"))
    _pretend(monkeypatch, not has_bf16)
    longer = (*AUTO, "--resume", "true", "--allow_change", "[train.steps, optim.warmup]")
    train(tiny_config(folder, tmp_path / "halves", *longer))
    assert _precision(tmp_path / "halves") == _precision(tmp_path / "whole")
    other = {"bf16": "fp32", "fp32": "bf16"}[_precision(tmp_path / "whole")]
    with pytest.raises(UserError, match=r"train\.precision: (bf16|fp32) -> (fp32|bf16)"):
        train(tiny_config(folder, tmp_path / "whole", "--train.precision", other, "--resume", "true"))


def test_doctor_settles_it_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _pretend(monkeypatch, True)
    with caplog.at_level(logging.INFO, "mmcl"):
        diagnose(tiny_config(folder, tmp_path / "run", *AUTO))
    assert "train.precision auto is bf16" in caplog.text


def _configs(folder: Path, precisions: Sequence[str]) -> list[Config]:
    run_dir = folder.parent / "run"
    return [tiny_config(folder, run_dir, "--train.precision", one, "--train.batch_size", "6") for one in precisions]


def _started(rank: int, world: int, configs: list[Config]) -> str:
    os.environ |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
    os.environ |= {name: str(world) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    PartialState._reset_state()  # a run of the process from which this one was forked
    try:
        accelerator = start(configs[rank], str(configs[rank].run_dir))
        accelerator.wait_for_everyone()
        return str(accelerator.mixed_precision)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("precisions", [("bf16", "fp32"), ("bf16", "bf16", "fp32")])
def test_machines_that_differ_must_be_told(folder: Path, precisions: tuple[str, ...]) -> None:
    lines = run_processes(len(precisions), _started, _configs(folder, precisions))
    assert set(lines) == {"train.precision auto means fp32 on some of the machines and bf16 on others: choose one of them"}


def _started_with_muon(rank: int, world: int, configs: list[Config]) -> str:
    """Starts one process on a machine with instructions for bfloat16, and the others on machines without."""
    with pytest.MonkeyPatch.context() as patch:
        _pretend(patch, has_bf16=rank == 0)
        return _started(rank, world, configs)


@pytest.mark.parametrize("world", [2, 3])
def test_muon_is_refused_on_machines_that_would_drift_apart(folder: Path, world: int) -> None:
    config = tiny_config(folder, folder.parent / "run", "--train.batch_size", "6")
    assert set(run_processes(world, _started_with_muon, [config] * world)) == {"no"}
    with_muon = replace(config, optim=replace(config.optim, muon_lr=0.02))
    for line in run_processes(world, _started_with_muon, [with_muon] * world):
        assert line.startswith("optim.muon_lr: Muon computes in bf16 on some of the machines and in fp32 on others")


def test_machines_that_agree_start(folder: Path) -> None:
    assert run_processes(2, _started, _configs(folder, ("bf16", "bf16"))) == ["bf16", "bf16"]


@pytest.mark.parametrize(("setting", "is_tf32"), [("high", True), ("highest", False)])
def test_products_of_float32_are_switched_during_training_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, is_tf32: bool
) -> None:
    """On a CPU the switch changes nothing, so the losses are those of any setting."""
    seen: list[str] = []
    original = Trainer._step

    def step(trainer: Trainer, *args: Any) -> None:
        seen.append(torch.backends.cuda.matmul.fp32_precision)
        original(trainer, *args)

    monkeypatch.setattr(Trainer, "_step", step)
    before = torch.backends.cuda.matmul.fp32_precision  # "none" or "ieee", by what ran before in this process
    train(tiny_config(folder, tmp_path / setting, "--train.matmul", setting))
    assert {precision == "tf32" for precision in seen} == {is_tf32}
    assert torch.backends.cuda.matmul.fp32_precision == before
    train(tiny_config(folder, tmp_path / "default"))
    assert _losses(tmp_path / setting) == _losses(tmp_path / "default")


def test_highest_is_float32_whatever_the_program_has_set() -> None:
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    with matmul_precision("high"):
        with matmul_precision("highest"):
            assert switch.fp32_precision == "ieee"
        assert switch.fp32_precision == "tf32"
    assert switch.fp32_precision == before


@pytest.mark.parametrize(
    ("has_tf32", "setting", "said"),
    [
        (False, "highest", "fp32"),
        (False, "high", "fp32; train.matmul high has no effect on this machine"),
        (True, "highest", "fp32, matrix products in float32 (TF32: train.matmul high)"),
        (True, "high", "fp32, matrix products in TF32"),
    ],
)
def test_the_doctor_says_how_products_are_computed(
    monkeypatch: pytest.MonkeyPatch, has_tf32: bool, setting: Literal["highest", "high"], said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_tf32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert precision_in_words(TrainConfig(matmul=setting)) == said


CPU = torch.device("cpu")


def _attended(kind: str) -> tuple[Tensor, Tensor]:
    """Outputs of attention under autocast, and the gradient of their sum of squares with respect to the inputs."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 5, 8, generator=draw).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        if kind == "module":
            torch.manual_seed(0)
            outputs, _ = nn.MultiheadAttention(8, 2, batch_first=True)(inputs, inputs, inputs, need_weights=False)
        else:
            masks = {"boolean": torch.ones(5, 5).tril() > 0, "added": torch.randn(5, 5, generator=draw).bfloat16()}
            rest = {"attn_mask": masks[kind]} if kind in masks else {"is_causal": kind == "causal"}
            heads = inputs.unflatten(2, (2, 4)).transpose(1, 2)
            outputs = functional.scaled_dot_product_attention(heads, heads, heads, **rest)
    (gradient,) = torch.autograd.grad(outputs.float().square().sum(), inputs)
    return outputs.detach(), gradient


@pytest.mark.parametrize("kind", ["plain", "causal", "boolean", "added", "module"])
def test_attention_in_float32_is_that_of_bfloat16_up_to_its_rounding(kind: str) -> None:
    expected = _attended(kind)
    with recorded_attention() as types, attention_precision("bf16", CPU):
        found = _attended(kind)
    assert types == {torch.float32}
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype == torch.bfloat16
        # A few roundings of bfloat16 (2^-8 each) beside the largest number.
        assert (one - other).abs().max() <= 2**-5 * other.abs().max()


@pytest.mark.parametrize(
    ("precision", "device", "has_amx"), [("fp32", "cpu", False), ("bf16", "cuda", False), ("bf16", "cpu", True)]
)
def test_elsewhere_attention_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: str, has_amx: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    before = functional.scaled_dot_product_attention
    with attention_precision(precision, torch.device(device)):
        assert functional.scaled_dot_product_attention is before


def test_attention_is_as_before_after_an_error() -> None:
    before = functional.scaled_dot_product_attention
    with pytest.raises(KeyError), attention_precision("bf16", CPU):
        raise KeyError
    assert functional.scaled_dot_product_attention is before


def test_attention_in_float64_stays_in_float64() -> None:
    heads = torch.ones(1, 1, 4, 8, dtype=torch.float64)
    with recorded_attention() as types, attention_precision("bf16", CPU):
        assert functional.scaled_dot_product_attention(heads, heads, heads).dtype == torch.float64
    assert types == {torch.float64}


FROZEN = ("--text.freeze", "true", "--data.augment", "[]")


@pytest.mark.parametrize("flags", [(), ("--train.micro_batch", "4"), FROZEN], ids=["whole", "pieces", "stored"])
def test_a_run_in_bf16_computes_attention_in_float32(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: Sequence[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with recorded_attention() as types:
        train(tiny_config(folder, tmp_path / "run", "--train.precision", "bf16", "--evaluate", "[]", *flags))
    assert types == {torch.float32}


def test_a_forecast_measures_what_a_run_computes(folder: Path, tmp_path: Path) -> None:
    plan = make_plan(tiny_config(folder, tmp_path / "run", "--train.precision", "bf16"), 1)
    with recorded_attention() as types:
        measure(plan, CPU)
    assert types == {torch.float32}
