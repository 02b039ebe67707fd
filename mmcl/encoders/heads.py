"""Projection heads: from features to the embedding space in which the loss compares rows."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mmcl.errors import UserError
from mmcl.terminal import counted

FinalLayer = Literal["norm", "fixed_norm", "bias", "plain"]
"""Addition after the last linear layer: batch norm, batch norm without learned scale and shift, a bias, or nothing."""


class NoHead(nn.Module):
    """Identity: the features are the embedding, for encoders with their own projection."""

    def __init__(self, feature_dim: int):
        super().__init__()
        self.embed_dim = feature_dim

    def forward(self, feature_BF: Tensor) -> Tensor:
        return feature_BF


class LinearHead(nn.Module):
    """Linear projection without bias, initialized as in CLIP (Radford et al., 2021): normal with standard deviation F^-.5."""

    def __init__(self, feature_dim: int, *, embed_dim: int = 256):
        super().__init__()
        self.embed_dim = embed_dim
        self.weight = nn.Parameter(torch.randn(embed_dim, feature_dim) * feature_dim**-0.5)

    def forward(self, feature_BF: Tensor) -> Tensor:
        return nn.functional.linear(feature_BF, self.weight)


class MLPHead(nn.Module):
    """Linear layers with batch norm and ReLU between them, as in the projection heads and predictors of published methods.

    | paper | arguments besides the widths |
    |---|---|
    | SimCLR, SimCLRv2 | none; `layers=3` |
    | MoCo v2, SupCon | `hidden_norm=False, final="bias"` |
    | SwAV | `final="bias"` |
    | BYOL, and its predictor | `final="plain"` |
    | SimSiam | `layers=3, final="fixed_norm"`; its predictor `final="bias"` |
    | MoCo v3 | `final="fixed_norm"` (`layers=3` for transformers); its predictor the same (ResNets: `final="plain"`) |
    | Barlow Twins, VICReg | `layers=3, final="plain"` |

    A linear layer that is followed by a norm has no bias.

    Args:
        feature_dim: width F of the input.
        embed_dim: width D of the output.
        hidden_dim: width of the hidden layers; None uses F.
        layers: number of linear layers.
        hidden_norm: whether hidden layers have batch norm; without it they have a bias.
        final: type of the last layer, see `FinalLayer`.

    Raises:
        UserError: `layers` is below 1, or `final` is unknown.
    """

    def __init__(
        self,
        feature_dim: int,
        *,
        embed_dim: int = 128,
        hidden_dim: int | None = None,
        layers: int = 2,
        hidden_norm: bool = True,
        final: FinalLayer = "norm",
    ):
        super().__init__()
        if layers < 1 or final not in get_args(FinalLayer):
            raise UserError(
                f"mlp: layers {layers} must be 1 or more, and final {final!r} one of {', '.join(get_args(FinalLayer))}"
            )
        self.embed_dim = embed_dim
        widths = [feature_dim, *[hidden_dim or feature_dim] * (layers - 1), embed_dim]
        hidden = [_hidden_layer(*pair, norm=hidden_norm) for pair in pairwise(widths[:-1])]
        self.layers = nn.Sequential(*hidden, _final_layer(widths[-2], embed_dim, final))

    def forward(self, feature_BF: Tensor) -> Tensor:
        projected_BD: Tensor = self.layers(feature_BF)
        return projected_BD

    def prefix(self, layers: int) -> nn.Sequential:
        """Return the first layers, sharing their weights: from [B, F] to the width of the last of them.

        Fine-tuning in SimCLRv2 (Chen et al., "Big Self-Supervised Models are Strong Semi-Supervised Learners", 2020, section
        2.2) starts from the head's first layer: `prefix(1)`.

        Raises:
            ValueError: the head has fewer layers.
        """
        if not 0 <= layers <= len(self.layers):
            raise ValueError(f"a head of {counted(len(self.layers), 'layer')} has fewer than {layers}")
        return self.layers[:layers]


def _hidden_layer(width_in: int, width_out: int, *, norm: bool) -> nn.Sequential:
    linear = nn.Linear(width_in, width_out, bias=not norm)
    return nn.Sequential(linear, nn.BatchNorm1d(width_out), nn.ReLU()) if norm else nn.Sequential(linear, nn.ReLU())


def _final_layer(width_in: int, width_out: int, final: str) -> nn.Sequential:
    linear = nn.Linear(width_in, width_out, bias=final == "bias")
    if final in ("bias", "plain"):
        return nn.Sequential(linear)
    return nn.Sequential(linear, nn.BatchNorm1d(width_out, affine=final == "norm"))


class TanhHead(nn.Module):
    """Linear layer of the features' width and tanh, as applied to the first token in BERT and SimCSE (Gao et al., 2021)."""

    def __init__(self, feature_dim: int):
        super().__init__()
        self.embed_dim = feature_dim
        self.linear = nn.Linear(feature_dim, feature_dim)

    def forward(self, feature_BF: Tensor) -> Tensor:
        pooled_BF: Tensor = self.linear(feature_BF).tanh()
        return pooled_BF
