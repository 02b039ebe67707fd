"""Hard negatives: keys that are nobody's positive."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.types import Embeddings


def unused_ids(id_N: Tensor, count: int) -> Tensor:
    """Ids for rows without a positive: int64 [count], all different and none of them in `id_N`."""
    return id_N.min() - 1 - torch.arange(count, device=id_N.device)


def is_own_text(embeddings: Embeddings) -> Tensor:
    """Which hard negatives of all processes are a text of their own row, bool [B]."""
    text_ids = embeddings.all_text_ids
    if text_ids is None:
        return torch.zeros_like(embeddings.all_ids, dtype=torch.bool)
    return (text_ids[:, -1:] == text_ids[:, :-1]).any(1)


def truly_negative(embeddings: Embeddings) -> Tensor:
    """Which hard negatives of all processes are no text of the batch, bool [B].

    One that is, is among the keys already, under an id that says whose positive it is; once more, it would be a negative of
    its own image.
    """
    text_ids = embeddings.all_text_ids
    if text_ids is None:
        return torch.ones_like(embeddings.all_ids, dtype=torch.bool)
    return ~torch.isin(text_ids[:, -1].contiguous(), text_ids[:, :-1].flatten())
