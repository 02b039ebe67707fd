"""Projection heads: features to the space in which the loss compares rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NoHead(nn.Module):
    """The features are the embedding, for encoders that carry their own projection."""

    def __init__(self, feature_dim: int):
        super().__init__()
        self.embed_dim = feature_dim

    def forward(self, feature_BF: Tensor) -> Tensor:
        return feature_BF


class LinearHead(nn.Module):
    """A linear projection without bias, initialised as in CLIP (Radford et al., 2021): normal with deviation F^-.5."""

    def __init__(self, feature_dim: int, *, embed_dim: int = 256):
        super().__init__()
        self.embed_dim = embed_dim
        self.weight = nn.Parameter(torch.randn(embed_dim, feature_dim) * feature_dim**-0.5)

    def forward(self, feature_BF: Tensor) -> Tensor:
        return nn.functional.linear(feature_BF, self.weight)


class MLPHead(nn.Module):
    """The SimCLR head (Chen et al., 2020): linear, batch norm, ReLU for every hidden layer, then linear and batch norm.

    Linear layers have no bias, the norm that follows has. `layers=2` is SimCLR v1, `layers=3` v2. The hidden width is that of
    the features unless `hidden_dim` is given.
    """

    def __init__(
        self, feature_dim: int, *, embed_dim: int = 128, hidden_dim: int | None = None, layers: int = 2, final_norm: bool = True
    ):
        super().__init__()
        self.embed_dim = embed_dim
        hidden = hidden_dim or feature_dim
        modules: list[nn.Module] = []
        for layer in range(layers):
            last = layer == layers - 1
            width_in, width_out = (feature_dim if layer == 0 else hidden), (embed_dim if last else hidden)
            modules.append(nn.Linear(width_in, width_out, bias=last and not final_norm))
            if not last or final_norm:
                modules.append(nn.BatchNorm1d(width_out))
            if not last:
                modules.append(nn.ReLU())
        self.layers = nn.Sequential(*modules)

    def forward(self, feature_BF: Tensor) -> Tensor:
        return self.layers(feature_BF)


class TanhHead(nn.Module):
    """A linear layer of the features' width and a tanh, as behind the first token in BERT and in SimCSE (Gao et al., 2021)."""

    def __init__(self, feature_dim: int):
        super().__init__()
        self.embed_dim = feature_dim
        self.linear = nn.Linear(feature_dim, feature_dim)

    def forward(self, feature_BF: Tensor) -> Tensor:
        return self.linear(feature_BF).tanh()
