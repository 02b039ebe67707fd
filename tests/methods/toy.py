"""Tiny towers and batches, for every registered method."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmcl.encoders.heads import LinearHead
from mmcl.encoders.tower import ImageEncoder, Tower
from mmcl.methods import METHODS
from mmcl.methods.method import Method
from mmcl.types import Batch

WIDTH = 5


class ToyEncoder(ImageEncoder):
    """Vectors in, features out: what a method needs of an encoder, without pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_dim = 8
        self.layers = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 8))

    def forward(self, vector_BW: Tensor) -> Tensor:
        return self.layers(vector_BW)  # type: ignore[no-any-return]


def toy_method(name: str, dtype: torch.dtype = torch.float64) -> Method:
    """The method on two-layer towers, always the same weights."""
    torch.manual_seed(1)
    towers = nn.ModuleDict()
    for tower in sorted(set(METHODS[name].views.values())):  # type: ignore[attr-defined]
        encoder = ToyEncoder()
        towers[tower] = Tower(encoder, LinearHead(encoder.feature_dim, embed_dim=6))
    return METHODS[name](towers).to(dtype)  # type: ignore[no-any-return]


def toy_batch(name: str, rows: int, dtype: torch.dtype = torch.float64) -> Batch:
    """A batch in which some rows are positives of each other."""
    rng = torch.Generator().manual_seed(2)
    views = {view: torch.randn(rows, WIDTH, generator=rng, dtype=dtype) for view in METHODS[name].views}  # type: ignore[attr-defined]
    ids = torch.arange(rows)
    ids[rows // 2] = ids[0]
    return Batch(views, ids, torch.arange(rows))


def random_rows(views: tuple[str, ...], rows: int, width: int = 6) -> dict[str, Tensor]:
    """Unit-length rows of every view, float64."""
    rng = torch.Generator().manual_seed(5)
    drawn = {view: torch.randn(rows, width, generator=rng, dtype=torch.float64) for view in views}
    return {view: nn.functional.normalize(row, dim=1) for view, row in drawn.items()}
