"""Tiny towers and batches, for every method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmcl.core.key_queue import KeyQueue
from mmcl.encoders.heads import LinearHead
from mmcl.encoders.tower import ImageEncoder, Tower
from mmcl.methods import METHODS
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings

WIDTH = 5


class ToyEncoder(ImageEncoder):
    """Vectors in, features out: what a method needs of an encoder, without pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_dim = 8
        self.layers = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 8))

    def forward(self, vector_BW: Tensor) -> Tensor:
        feature_BF: Tensor = self.layers(vector_BW)
        return feature_BF


def toy_method(method: str | type[Method], dtype: torch.dtype = torch.float64, **args: Any) -> Method:
    """The method on two-layer towers, always the same weights, with queues that are full and without batch norm."""
    torch.manual_seed(1)
    factory: Any = METHODS[method] if isinstance(method, str) else method
    towers = nn.ModuleDict({tower: toy_tower() for tower in sorted(set(factory.views.values()))})
    teachers = [toy_tower()] if factory.takes_teacher else []
    built: Method = without_batch_norm(factory(towers, *teachers, **{**factory.test_args, **args})).to(dtype)
    for module in built.modules():
        if isinstance(module, KeyQueue):
            rng = torch.Generator().manual_seed(3)
            keys = nn.functional.normalize(torch.randn(*module.key_KD.shape, generator=rng, dtype=dtype), dim=1)
            module.push(keys, torch.arange(-module.size, 0))
    return built


def toy_tower() -> Tower:
    """A tower of `ToyEncoder` and a linear head, 6 wide."""
    encoder = ToyEncoder()
    return Tower(encoder, LinearHead(encoder.feature_dim, embed_dim=6))


def without_batch_norm(module: nn.Module) -> Any:
    """Layer norms in place of batch norms, which are the one exception to exact splitting."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d):
                setattr(parent, name, nn.LayerNorm(child.num_features, elementwise_affine=child.affine))
    return module


def toy_batch(method: Method, rows: int, dtype: torch.dtype = torch.float64) -> Batch:
    """A batch in which some rows are positives of each other, and one has no label."""
    rng = torch.Generator().manual_seed(2)
    views = {view: torch.randn(rows, WIDTH, generator=rng, dtype=dtype) for view in method.views}
    ids, labels = torch.arange(rows), torch.arange(rows) % 3
    ids[rows // 2] = ids[0]
    labels[rows // 3] = -1
    return Batch(views, ids, torch.arange(rows), labels=labels)


def positives_of(method: Method, batch: Batch) -> Tensor:
    """Ids as the engine passes them to the loss."""
    if method.positives == "ids":
        return batch.ids
    assert batch.labels is not None
    return batch.labels


def embed(method: Method, batch: Batch) -> Embeddings:
    """Inputs of the loss on one process."""
    torch.manual_seed(4)
    rows, ids = method.encode(batch.views), positives_of(method, batch)
    return Embeddings(rows, rows, ids, ids, all_index=batch.index, all_stored=batch.stored)


def train_step(method: Method, optimizer: torch.optim.Optimizer, batch: Batch) -> Tensor:
    """One step of one process; the loss before it."""
    embeddings = embed(method, batch)
    loss = method.loss(embeddings, batch).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    method.commit(embeddings, batch)
    return loss.detach()
