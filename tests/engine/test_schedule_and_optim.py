"""The learning rate is a function of the step; weight decay is for matrices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from mmcl.config import OptimConfig
from mmcl.encoders.small_text import SmallText
from mmcl.encoders.strided_cnn import StridedCNN
from mmcl.engine.optim import build_optimizer
from mmcl.engine.schedule import learning_rate

CURVE: dict[str, Any] = {"total": 100, "peak": 2.0, "warmup": 0.1, "final": 0.0}


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


def test_falls_tenfold_at_milestones() -> None:
    rates = [learning_rate(step, total=200, peak=0.03, warmup=0.0, milestones=(0.6, 0.8)) for step in range(200)]
    assert rates == pytest.approx([0.03] * 120 + [0.003] * 40 + [0.0003] * 40)
    assert learning_rate(0, total=200, peak=0.03, warmup=0.1, milestones=(0.6,)) == pytest.approx(0.03 / 21)


def test_decay_spares_vectors_and_position_embeddings() -> None:
    text = SmallText(width=16, layers=1, heads=2)
    decayed, spared = build_optimizer(text, OptimConfig(weight_decay=0.3)).param_groups
    names = {parameter: name for name, parameter in text.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    assert "position_embedding" in {names[parameter] for parameter in spared["params"]}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_biases_may_have_a_rate_of_their_own(name: str) -> None:
    groups = build_optimizer(nn.Linear(2, 2), OptimConfig(name=name, lr=0.2, bias_lr=0.0048)).param_groups  # type: ignore[arg-type]
    assert [(group["lr"], group["initial_lr"]) for group in groups] == [(0.2, 0.2), (0.0048, 0.0048)]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd_and_lars_are_their_formulas(decay: float) -> None:
    """LARS adapts the matrix also without decay, and the bias never."""
    for name in ("sgd", "lars"):
        module = nn.Linear(3, 2).double()
        optimizer = build_optimizer(module, OptimConfig(name=name, lr=0.5, momentum=0.9, weight_decay=decay))
        weight, bias = (parameter.detach().clone() for parameter in module.parameters())
        weight_speed, bias_speed = torch.zeros_like(weight), torch.zeros_like(bias)
        for step in range(3):
            module.weight.grad, module.bias.grad = torch.full_like(weight, step + 1.0), torch.full_like(bias, 2.0)
            gradient = module.weight.grad + decay * weight
            trust = 0.001 * weight.norm() / (module.weight.grad.norm() + decay * weight.norm()) if name == "lars" else 1.0
            optimizer.step()
            weight_speed = 0.9 * weight_speed + trust * gradient
            bias_speed = 0.9 * bias_speed + 2.0
            weight, bias = weight - 0.5 * weight_speed, bias - 0.5 * bias_speed
            torch.testing.assert_close(module.weight.detach(), weight, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(module.bias.detach(), bias)


def test_frozen_parameters_stay_out() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    groups = build_optimizer(module, OptimConfig()).param_groups
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in module[1].parameters()}


def test_equals_torch_adamw() -> None:
    ours, reference = nn.Linear(3, 3), nn.Linear(3, 3)
    reference.load_state_dict(ours.state_dict())
    config = OptimConfig(lr=0.1, weight_decay=0.0)
    optimizers = (
        build_optimizer(ours, config),
        torch.optim.AdamW(reference.parameters(), lr=0.1, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=False),
    )
    for _ in range(5):
        for module, optimizer in zip((ours, reference), optimizers, strict=True):
            optimizer.zero_grad()
            module(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, reference.weight, rtol=1e-5, atol=1e-6)


def test_muon_takes_the_hidden_matrices_and_nothing_else() -> None:
    module = nn.ModuleDict(
        {"text": SmallText(width=16, layers=1, heads=2), "image": StridedCNN(image_size=8, widths=(4,), blocks=(0,))}
    )
    tables, vectors, matrices = build_optimizer(module, OptimConfig(lr=1e-3, muon_lr=0.02, weight_decay=0.3)).param_groups
    names = {parameter: name for name, parameter in module.named_parameters()}
    assert [names[p] for p in tables["params"]] == ["text.token_embedding.weight"]
    assert all(p.ndim < 2 or "position" in names[p] for p in vectors["params"])
    assert {"text.blocks.0.mlp_in.weight", "image.project.weight"} < {names[p] for p in matrices["params"]}
    assert sum(p.ndim == 4 for p in matrices["params"]) == 1
    assert sum(len(group["params"]) for group in (tables, vectors, matrices)) == len(names)
    assert [group["initial_lr"] for group in (tables, vectors, matrices)] == [1e-3, 1e-3, 0.02]


def test_muon_steps_along_the_orthogonal_factor_of_the_gradient() -> None:
    """From rest, momentum and Nesterov only scale the gradient: singular values become about 1, singular vectors stay."""
    module = nn.Linear(6, 4, bias=False)
    before = module.weight.detach().clone()
    optimizer = build_optimizer(module, OptimConfig(muon_lr=0.1, weight_decay=0.0))
    gradient = torch.randn(4, 6)
    module.weight.grad = gradient.clone()
    optimizer.step()
    step = (before - module.weight.detach()) / (0.1 * 0.2 * 6**0.5)
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    singular = left.T @ step @ right.T
    assert ((singular.diag() > 0.6) & (singular.diag() < 1.3)).all()
    torch.testing.assert_close(singular, singular.diag().diag(), rtol=0, atol=0.05)


def test_vectors_beside_muon_move_as_under_adamw() -> None:
    ours, reference = nn.LayerNorm(5), nn.LayerNorm(5)
    optimizers = build_optimizer(ours, OptimConfig(lr=0.1, muon_lr=0.02)), build_optimizer(reference, OptimConfig(lr=0.1))
    for _ in range(3):
        for module, optimizer in zip((ours, reference), optimizers, strict=True):
            optimizer.zero_grad()
            module(torch.arange(10.0).view(2, 5)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, reference.weight, rtol=1e-5, atol=1e-6)


def test_muon_may_take_everything() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False))
    optimizer = build_optimizer(net, OptimConfig(lr=1e-3, muon_lr=1e-2))
    before = [p.detach().clone() for p in net.parameters()]
    net(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
