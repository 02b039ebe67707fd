"""Hard negatives: additional keys that are not positives of any query."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcl.types import Embeddings


def unused_ids(id_N: Tensor, count: int) -> Tensor:
    """Return ids for rows without a positive: int64 [count], all distinct and not in `id_N`."""
    return id_N.min() - 1 - torch.arange(count, device=id_N.device)


def is_own_text(embeddings: Embeddings) -> Tensor:
    """Return a mask, bool [B], of the hard negatives of all processes that equal a text of their own row."""
    text_ids = embeddings.all_text_ids
    if text_ids is None:
        return torch.zeros_like(embeddings.all_ids, dtype=torch.bool)
    return (text_ids[:, -1:] == text_ids[:, :-1]).any(1)


def truly_negative(embeddings: Embeddings) -> Tensor:
    """Return a mask, bool [B], of the hard negatives of all processes that do not equal any text of the batch.

    A hard negative that equals a text of the batch is already a key, with the id of its image. Adding it again under an
    unused id would make it a negative of that image.
    """
    text_ids = embeddings.all_text_ids
    if text_ids is None:
        return torch.ones_like(embeddings.all_ids, dtype=torch.bool)
    return ~torch.isin(text_ids[:, -1].contiguous(), text_ids[:, :-1].flatten())
