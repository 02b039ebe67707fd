"""Random rows, for losses that are compared with those of other toolkits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def random_rows(views: tuple[str, ...], rows: int, width: int = 6) -> dict[str, Tensor]:
    """Unit-length rows of every view, float64."""
    rng = torch.Generator().manual_seed(5)
    drawn = {view: torch.randn(rows, width, generator=rng, dtype=torch.float64) for view in views}
    return {view: nn.functional.normalize(row, dim=1) for view, row in drawn.items()}
