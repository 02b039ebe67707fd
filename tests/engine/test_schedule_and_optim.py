"""The learning rate is a function of the step; weight decay is for matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mmcl.config import OptimConfig
from mmcl.encoders.small_text import SmallText
from mmcl.engine.optim import build_optimiser
from mmcl.engine.schedule import learning_rate

CURVE = {"total": 100, "peak": 2.0, "warmup": 0.1, "final": 0.0}


def test_rises_linearly_then_falls_as_half_a_cosine() -> None:
    rates = [learning_rate(step, **CURVE) for step in range(100)]
    assert rates[:10] == pytest.approx([2.0 * (step + 1) / 11 for step in range(10)])
    assert rates[10:] == pytest.approx([1 + math.cos(math.pi * step / 90) for step in range(90)])
    assert max(rates) == rates[10] == 2.0


@pytest.mark.parametrize("total", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.9])
def test_short_runs_learn_from_the_first_step(total: int, warmup: float) -> None:
    rates = [learning_rate(step, total=total, peak=1.0, warmup=warmup, final=0.1) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)


def test_ends_at_the_final_share() -> None:
    assert learning_rate(10**6 - 1, total=10**6, peak=1.0, warmup=0.0, final=0.25) == pytest.approx(0.25, abs=1e-6)


def test_decay_spares_vectors_and_position_embeddings() -> None:
    text = SmallText(width=16, layers=1, heads=2)
    decayed, spared = build_optimiser(text, OptimConfig(weight_decay=0.3)).param_groups
    names = {parameter: name for name, parameter in text.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    assert "position_embedding" in {names[parameter] for parameter in spared["params"]}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_frozen_parameters_stay_out() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    groups = build_optimiser(module, OptimConfig()).param_groups
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in module[1].parameters()}


def test_equals_torch_adamw() -> None:
    ours, reference = nn.Linear(3, 3), nn.Linear(3, 3)
    reference.load_state_dict(ours.state_dict())
    config = OptimConfig(lr=0.1, weight_decay=0.0)
    optimisers = (
        build_optimiser(ours, config),
        torch.optim.AdamW(reference.parameters(), lr=0.1, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=False),
    )
    for _ in range(5):
        for module, optimiser in zip((ours, reference), optimisers, strict=True):
            optimiser.zero_grad()
            module(torch.ones(2, 3)).square().sum().backward()
            optimiser.step()
    torch.testing.assert_close(ours.weight, reference.weight, rtol=1e-5, atol=1e-6)
