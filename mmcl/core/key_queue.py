"""A queue of keys from past batches, for more negatives than one batch has (He et al., "MoCo", 2020, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmcl.core.host_count import HostCount


class KeyQueue(nn.Module):
    """FIFO queue of the last K keys with their ids. They are buffers, so a resumed run restores them.

    Args:
        size: K; with 0, the queue stays empty.
        dim: width D of a key.

    Attributes:
        pushed: int64 scalar, total number of keys pushed so far.
    """

    key_KD: Tensor
    id_K: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.size = size
        self.register_buffer("key_KD", torch.zeros(size, dim))
        self.register_buffer("id_K", torch.zeros(size, dtype=torch.int64))
        self._count = HostCount(self, "pushed")

    def __len__(self) -> int:
        """Number of keys, at most K."""
        return min(int(self._count), self.size)

    @property
    def full(self) -> bool:
        """True if the queue holds K keys."""
        return len(self) == self.size

    @property
    def keys(self) -> Tensor:
        """Keys, [len, D], in no particular order; a view of the buffer, which the next push changes."""
        return self.key_KD[: len(self)]

    @property
    def ids(self) -> Tensor:
        """Ids of the keys, int64 [len]."""
        return self.id_K[: len(self)]

    @torch.no_grad()
    def push(self, key_BD: Tensor, id_B: Tensor) -> None:
        """Replaces the oldest keys; of more than K new keys, the last K are kept. Push the same keys on all processes."""
        kept = slice(max(len(key_BD) - self.size, 0), None)
        number_B = self.pushed + torch.arange(len(key_BD), device=self.pushed.device)
        place = number_B[kept] % max(self.size, 1)
        self.key_KD[place] = key_BD[kept].to(self.key_KD.dtype)
        self.id_K[place] = id_B[kept]
        self._count.add(len(key_BD))
