"""Projection heads as published, the cut of SimCLRv2, and the small stem of ResNets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mmcl.encoders import HEADS, IMAGE_ENCODERS
from mmcl.encoders.heads import MLPHead
from mmcl.errors import UserError

LAYERS = {  # "B": a bias, "N": batch norm, "n": one without scale and shift, "R": ReLU
    "SimCLR": ({}, "N R, N"),
    "SimCLRv2": ({"layers": 3}, "N R, N R, N"),
    "MoCo v2 and SupCon": ({"hidden_norm": False, "final": "bias"}, "B R, B"),
    "SwAV": ({"final": "bias"}, "N R, B"),
    "BYOL": ({"final": "plain"}, "N R, "),
    "SimSiam": ({"layers": 3, "final": "fixed_norm"}, "N R, N R, n"),
    "Barlow Twins": ({"layers": 3, "final": "plain"}, "N R, N R, "),
    "one layer": ({"layers": 1, "final": "plain"}, ""),
}


def written(layer: nn.Sequential) -> str:
    signs = []
    for module in layer:
        if isinstance(module, nn.Linear):
            signs += ["B"] if module.bias is not None else []
        elif isinstance(module, nn.BatchNorm1d):
            signs.append("N" if module.affine else "n")
        else:
            assert isinstance(module, nn.ReLU)
            signs.append("R")
    return " ".join(signs)


@pytest.mark.parametrize(("arguments", "expected"), LAYERS.values(), ids=LAYERS.keys())
def test_layers_are_those_of_the_papers(arguments: dict[str, Any], expected: str) -> None:
    head = HEADS.build("mlp", {"hidden_dim": 7, "embed_dim": 3, **arguments}, 5)
    assert ", ".join(written(layer) for layer in head.layers) == expected
    assert head(torch.randn(4, 5)).shape == (4, 3)


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_a_prefix_is_the_head_cut_there(layers: int) -> None:
    head = MLPHead(5, embed_dim=3, hidden_dim=7, layers=3).eval()
    features, outputs = torch.randn(4, 5), []
    for layer in head.layers:
        layer.register_forward_hook(lambda _, __, output: outputs.append(output))
    head(features)
    cut = head.prefix(layers)
    assert torch.equal(cut(features), [features, *outputs][layers])
    assert all(any(p is q for q in head.parameters()) for p in cut.parameters())


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="fewer than 3"):
        MLPHead(5).prefix(3)
    with pytest.raises(UserError, match="'batch_norm' one of norm, fixed_norm, bias, plain"):
        HEADS.build("mlp", {"final": "batch_norm"}, 5)
    with pytest.raises(UserError, match="layers 0"):
        HEADS.build("mlp", {"layers": 0}, 5)


def test_a_small_stem_keeps_the_resolution() -> None:
    seen = []
    encoder = IMAGE_ENCODERS.build("torchvision", {"name": "resnet18", "image_size": 32, "small_stem": True})
    encoder.model.layer1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    encoder.eval()(torch.rand(2, 3, 32, 32))
    assert seen == [(2, 64, 32, 32)]
    again = IMAGE_ENCODERS.build("torchvision", encoder.rebuild_args)
    again.load_state_dict(encoder.state_dict())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "squeezenet1_1"}, "is not a ResNet"),
        ({"name": "resnet18", "pretrained": True}, "weights are those of the large stem"),
    ],
)
def test_a_stem_that_does_not_fit_is_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        IMAGE_ENCODERS.build("torchvision", {**arguments, "small_stem": True})
