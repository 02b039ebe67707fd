"""Probe, then tune: what follows the last block learns first, and the encoders join with a schedule of their own."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmcl.config import Config, OptimConfig
from mmcl.engine.parameter_groups import group_parameters
from mmcl.engine.schedule import learning_rate
from mmcl.errors import UserError
from mmcl.runs.build import build_method
from mmcl.runs.doctor import diagnose
from mmcl.runs.run import train
from tests.engine.tiny import tiny_config

IMAGE = ("--image.encoder", "{name: strided_cnn, args: {image_size: 16, widths: [4, 8], blocks: [0, 0], feature_dim: 8}}")
PROBED = ("--train.steps", "6", "--train.save_every", "1", "--train.keep_checkpoints", "9", "--optim.probe", "0.5")


def config_of(folder: Path, run_dir: Path, *flags: str) -> Config:
    return tiny_config(folder, run_dir, *IMAGE, "--text.encoder.args.layers", "2", *PROBED, *flags)


@pytest.mark.parametrize("start", [0.0, 0.25, 0.5, 0.99])
def test_the_schedule_runs_in_what_is_left(start: float) -> None:
    """The rate is 0, and then that of a run of the remaining steps."""
    rates = [learning_rate(step, total=60, peak=2.0, warmup=0.1, final=0.1, start=start) for step in range(60)]
    waiting = round(60 * start)
    rest = [learning_rate(step, total=60 - waiting, peak=2.0, warmup=0.1, final=0.1) for step in range(60 - waiting)]
    assert rates == [0.0] * waiting + rest
    assert rates[waiting] > 0


def states(run_dir: Path) -> list[dict[str, Tensor]]:
    """Weights after every step."""
    return [load_file(place / "model.safetensors") for place in sorted((run_dir / "checkpoints").glob("step-*"))]


def learned(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    "optimizer", [(), ("--optim.muon_lr", "0.01"), ("--optim", "{name: sgd, lr: 0.1, weight_decay: 1e-4, probe: 0.5}")]
)
def test_the_encoders_wait_bit_for_bit(folder: Path, tmp_path: Path, optimizer: tuple[str, ...]) -> None:
    """In no step of the probe does a weight below the top change, whatever the optimizer; from then on all learn."""
    found = states(train(config_of(folder, tmp_path / "run", *optimizer)).run_dir)
    waiting = re.compile(r"(embedding|position|blocks|stages|stem)")
    for before, after in itertools.pairwise(found[:3]):
        changed = {name for name in learned(before, after) if waiting.search(name)}
        assert not {name for name in changed if "running" not in name and "tracked" not in name}
        assert {"towers.text.head.weight", "towers.image.head.weight", "log_scale"} <= learned(before, after)
    joined = learned(found[2], found[3])
    assert {"towers.text.encoder.blocks.0.mlp_in.weight", "towers.text.head.weight"} <= joined


def test_groups_and_layers_wait_too(folder: Path, tmp_path: Path) -> None:
    """Own rates replace the rate, not the waiting."""
    rules = '[{match: "blocks[.]0", lr: 7}, {match: "head", scale: 0.5}]'
    method = build_method(config := config_of(folder, tmp_path / "run", "--optim.groups", rules, "--optim.layer_decay", "0.5"))
    names = {parameter: name for name, parameter in method.named_parameters()}
    found = {names[p]: (one.lr, one.start) for one in group_parameters(method, config.optim) for p in one.parameters}
    lr = config.optim.lr
    assert found["towers.text.encoder.blocks.0.mlp_in.weight"] == (7, 0.5)
    assert found["towers.text.encoder.blocks.1.mlp_in.weight"] == (lr / 2, 0.5)
    assert found["towers.text.encoder.final_norm.weight"] == (lr, 0.0)
    assert found["towers.text.head.weight"] == (lr / 2, 0.0)


@pytest.mark.parametrize("stopped_at", [2, 3, 4])
def test_a_resume_before_at_and_after_the_change_is_exact(folder: Path, tmp_path: Path, stopped_at: int) -> None:
    config = config_of(folder, tmp_path / "run")
    expected = load_file(train(config).run_dir / "model/model.safetensors")
    for step in range(stopped_at + 1, 7):
        shutil.rmtree(tmp_path / f"run/checkpoints/step-000000{step}")
    train(config_of(folder, tmp_path / "run", "--resume"))
    found = load_file(tmp_path / "run/model/model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_doctor_says_who_waits(folder: Path, tmp_path: Path) -> None:
    text = diagnose(config_of(folder, tmp_path / "run")).to_text()
    assert "probe         the blocks and embeddings of the encoders join after 3 steps" in text
    assert "image encoder: matrices, tables, later" in text
    assert "probe" not in diagnose(config_of(folder, tmp_path / "run", "--optim.probe", "0")).to_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--image.freeze", "true", "--text.freeze", "true"), "the encoders are frozen, so there is nothing that joins later"),
        (
            ("--optim.groups", '[{match: "head|final|encoder[.]norm|project|out", freeze: true}]'),
            "nothing that follows the blocks of the encoders could learn first",
        ),
        (("--optim.probe", "1"), "optim.probe is 1.0: give a number from 0 to below 1"),
    ],
)
def test_a_probe_of_nothing_is_refused(folder: Path, tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        train(config_of(folder, tmp_path / "run", *flags))
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_network_without_blocks_waits_as_a_whole(folder: Path, tmp_path: Path) -> None:
    config = tiny_config(folder, tmp_path / "run", *PROBED)  # small_cnn
    method = build_method(config)
    early = {p for one in group_parameters(method, config.optim) if one.start == 0 for p in one.parameters}
    assert not early & {*method.towers["image"].encoder.parameters()}  # type: ignore[union-attr]
    assert OptimConfig().probe == 0
