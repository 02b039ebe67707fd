"""A toy transformer, and images of which it sees some of the patches, or some of those of smaller images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmcl.data.batches.fewer_tokens import FewerTokens, PatchCount
from mmcl.encoders.heads import LinearHead
from mmcl.encoders.patches import PatchTokens
from mmcl.encoders.positions import resampled_positions
from mmcl.encoders.tower import ImageEncoder, Tower
from mmcl.methods.method import Method
from mmcl.testing.toys import WIDTH
from mmcl.types import ImagePatches


class ToyTransformer(ImageEncoder):
    """Vectors of 5 as images of 5 patches: a token each, with its position, a layer of attention, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_dim = 8
        self.pixel, self.position = nn.Linear(1, 8), nn.Parameter(torch.randn(WIDTH, 8))
        self.tokens, self.layers = nn.Identity(), nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2)])

    def forward(self, vector_BW: Tensor) -> Tensor:
        position_LF = resampled_positions(self.position, (1, WIDTH), (1, vector_BW.shape[1]))
        token_BLF: Tensor = self.tokens(self.pixel(vector_BW[..., None]) + position_LF)
        for layer in self.layers:
            mixed = nn.functional.scaled_dot_product_attention(token_BLF, token_BLF, token_BLF)
            token_BLF = token_BLF + layer(mixed)
        return token_BLF.mean(1)

    def patch_tokens(self) -> PatchTokens:
        return PatchTokens(self.tokens, 0, (1, 1))


class OfSmallerImages(ToyTransformer):
    """In most steps it sees vectors of 4, and three of their patches."""


def transformer_tower(kind: type[ToyTransformer] = ToyTransformer) -> Tower:
    encoder = kind()
    return Tower(encoder, LinearHead(encoder.feature_dim, embed_dim=6))


def smaller_tower() -> Tower:
    return transformer_tower(OfSmallerImages)


def some_patches(method: Method, views: Mapping[str, Any], *, until: int, step: int) -> Mapping[str, Any]:
    """Three of the patches of each image, for a method of `ToyTransformer`s, before the step `until`."""
    names = [name for name, tower in method.views.items() if tower == "image"]
    encoder = method.tower(names[0]).encoder if names else None
    width = WIDTH - 1 if isinstance(encoder, OfSmallerImages) else WIDTH
    drop = FewerTokens(until=until, steps=until + 1, counts=dict.fromkeys(names, PatchCount(3, width)))
    if not isinstance(encoder, ToyTransformer) or not drop.is_on(step):
        return views
    rows = len(views[names[0]])
    row = {"epoch": np.full(rows, step), "index": np.arange(rows)}
    kept = {name: torch.from_numpy(drop.draw(name, seed=0, number=number, **row)) for number, name in enumerate(names)}
    return {**views, **{name: ImagePatches(views[name][:, :width], kept[name], width) for name in names}}
