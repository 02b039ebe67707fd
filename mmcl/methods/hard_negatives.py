"""Keys that are nobody's positive."""

from __future__ import annotations

import torch
from torch import Tensor


def unused_ids(id_N: Tensor, count: int) -> Tensor:
    """Ids for rows without a positive: int64 [count], all different and none of them in `id_N`."""
    return id_N.min() - 1 - torch.arange(count, device=id_N.device)
