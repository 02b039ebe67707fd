"""Weight decay and Muon depend on a parameter's role in its module, consistently for every library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mmcl.config import OptimConfig, load_config
from mmcl.encoders.parameter_roles import parameter_roles
from mmcl.engine.optim import build_optimizer
from mmcl.runs.build import build_method
from tests.encoders.parameter_roles import families, frozen_roles

FROZEN = json.loads((Path(__file__).parent / "parameter_roles.json").read_text())
QUICK = ["timm/levit", "torchvision/convnext", "transformers/gpt2", "transformers/mpnet"]


class EveryRole(nn.Module):
    """One of each form that a library gives a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.attention = nn.MultiheadAttention(4, 2, kdim=6, vdim=6, add_bias_kv=True)
        self.normed = torch.nn.utils.weight_norm(nn.Linear(4, 3)) if hasattr(torch.nn.utils, "weight_norm") else nn.Identity()
        self.token_embedding = nn.Embedding(10, 4)
        self.position_embedding = nn.Embedding(5, 4)
        self.relative_attention_bias = nn.Embedding(5, 2)
        self.norm = nn.LayerNorm((4, 4, 4))
        self.layer_scale = nn.Parameter(torch.full((4, 1, 1), 1e-6))
        self.temperature = nn.Parameter(torch.ones(2, 1, 1))
        self.registers = nn.Parameter(torch.zeros(1, 3, 4))
        self.latent = nn.Parameter(torch.zeros(1, 2, 4))
        self.text_projection = nn.Parameter(torch.eye(4))
        self.weight = nn.Parameter(torch.ones(2, 4))
        self.experts_proj = nn.Parameter(torch.ones(3, 2, 4))


@pytest.fixture
def module() -> nn.Module:
    with pytest.warns(FutureWarning):
        return EveryRole()


MATRICES = {
    "linear.weight", "depthwise.weight", "attention.q_proj_weight", "attention.k_proj_weight", "attention.v_proj_weight",
    "attention.out_proj.weight", "normed.weight_v", "text_projection", "weight",
}  # fmt: skip
TABLES = {"token_embedding.weight", "experts_proj"}


def test_every_form_of_a_parameter_has_its_role(module: nn.Module) -> None:
    roles = {name: role for name, _, role in parameter_roles(module)}
    assert {name for name, role in roles.items() if role == "matrix"} == MATRICES
    assert {name for name, role in roles.items() if role == "table"} == TABLES
    assert list(roles) == [name for name, _ in module.named_parameters()]


def test_scales_positions_and_registers_do_not_decay_and_matrices_do(module: nn.Module) -> None:
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer = build_optimizer(module, OptimConfig(lr=0.1, muon_lr=0.1, weight_decay=0.5))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in MATRICES | TABLES if before[name].any()}


def test_muon_leaves_a_layer_scale_to_adamw(module: nn.Module) -> None:
    """Orthogonalized, a vector of 1e-6 would jump to the size of the learning rate times the root of its length."""
    by_muon = build_optimizer(module, OptimConfig(lr=1e-3, muon_lr=0.02)).param_groups[-1]["params"]
    names = {parameter: name for name, parameter in module.named_parameters()}
    assert {names[parameter] for parameter in by_muon} == MATRICES


def test_heads_and_prototypes_of_this_package_are_matrices() -> None:
    method = build_method(load_config("configs/swav_mnist.yaml"))
    towers = build_method(load_config("configs/clip_emoji.yaml")).towers
    roles = {name: role for name, _, role in (*parameter_roles(method), *parameter_roles(towers))}
    assert {roles["prototypes.weight"], roles["image.head.weight"], roles["text.head.weight"]} == {"matrix"}


@pytest.mark.parametrize("family", QUICK)
def test_the_roles_of_a_family_are_as_reviewed(family: str) -> None:
    assert frozen_roles(families()[family]) == FROZEN[family]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")  # of the libraries' constructors
@pytest.mark.parametrize("family", sorted(families().keys() - set(QUICK)))
def test_the_roles_of_every_family_are_as_reviewed(family: str) -> None:
    assert frozen_roles(families()[family]) == FROZEN[family]


def test_every_library_is_frozen() -> None:
    assert {name.partition("/")[0] for name in FROZEN} == {"timm", "torchvision", "transformers", "open_clip"}
