"""A checkpoint is complete or absent; damage is detected, reported and skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mmcl.config import OptimConfig
from mmcl.engine.checkpoint import latest_checkpoint, load_checkpoint, take_snapshot, verify
from mmcl.engine.checkpoint_writer import write_checkpoint
from mmcl.engine.optim import build_optimizer
from mmcl.errors import UserError


def trained(steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    return module, optimizer


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return write_checkpoint(folder, take_snapshot(step, *trained()), keep=keep)


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    module, optimizer = trained()
    write_checkpoint(tmp_path, take_snapshot(3, module, optimizer), keep=1)
    restored, restored_optimizer = trained(steps=0)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    load_checkpoint(checkpoint, restored, restored_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), restored.state_dict().values(), strict=True))
    for mine, theirs in zip(module.parameters(), restored.parameters(), strict=True):
        assert optimizer.state[mine].keys() == restored_optimizer.state[theirs].keys()
        for key, value in optimizer.state[mine].items():
            assert torch.equal(value, restored_optimizer.state[theirs][key])


OPTIMIZERS = {
    "adamw": OptimConfig(),
    "muon": OptimConfig(muon_lr=0.02),
    "sgd": OptimConfig(name="sgd", lr=0.01, weight_decay=1e-4),
    "lars": OptimConfig(name="lars", lr=0.1, bias_lr=0.01, weight_decay=1e-6),
}


@pytest.mark.parametrize("config", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_going_on_after_a_resume_is_bit_exact(tmp_path: Path, config: OptimConfig) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 4))
        return module, build_optimizer(module, config)

    def go(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            optimizer.zero_grad()
            module(torch.randn(8, 1, 4, 4)).square().sum().backward()
            optimizer.step()

    once, halves = start(), start()
    go(*once, range(4))
    go(*halves, range(2))
    write_checkpoint(tmp_path, take_snapshot(2, *halves), keep=1)
    resumed, checkpoint = start(), latest_checkpoint(tmp_path)
    assert checkpoint is not None
    load_checkpoint(checkpoint, *resumed)
    go(*resumed, range(2, 4))
    for name, tensor in once[0].state_dict().items():
        assert torch.equal(tensor, resumed[0].state_dict()[name]), name


def test_holds_no_pickle(tmp_path: Path) -> None:
    assert {file.suffix for file in save(tmp_path, 1).iterdir()} == {".safetensors", ".json"}


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000010", "step-0000015"]


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "flipped bit": lambda path: flip_a_byte(path / "model.safetensors"),
    "truncated": lambda path: (path / "optimizer.safetensors").write_bytes(b""),
    "missing file": lambda path: (path / "model.safetensors").unlink(),
    "missing manifest": lambda path: (path / "MANIFEST.json").unlink(),
    "cut manifest": lambda path: (path / "MANIFEST.json").write_text('{"step": 2, "fi'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named_and_the_checkpoint_before_is_used(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    damaged = save(tmp_path, 2)
    damage(damaged)  # type: ignore[operator]
    with pytest.raises(UserError, match="step-0000002"):
        verify(damaged)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert "step-0000002" in caplog.text


def test_a_half_written_checkpoint_does_not_count(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".tmp-step-0000002").mkdir()
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, 1)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    other = nn.Sequential(nn.Linear(4, 5))
    with pytest.raises(UserError, match="another model"):
        load_checkpoint(checkpoint, other, torch.optim.AdamW(other.parameters()))
