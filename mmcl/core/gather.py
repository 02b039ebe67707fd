"""Rows of all processes, with their exact gradient: the one place where embeddings cross process borders."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class _AllGatherRows(torch.autograd.Function):
    """Forward: concatenate all ranks' rows. Backward: sum all ranks' gradients of these rows, return the local slice.

    Each rank computes its own share of the loss from all rows, so the gradient of a rank's rows is spread over all ranks: to
    leave out the sum is the well-known way to train on a wrong gradient.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, local: Tensor) -> Tensor:
        gathered = local.new_empty(dist.get_world_size() * len(local), *local.shape[1:])
        dist.all_gather_into_tensor(gathered, local.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def world_size() -> int:
    """The number of processes; 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_rows(local: Tensor) -> Tensor:
    """Concatenates the rows of all processes in rank order, with exact gradient; the identity for one process.

    Args:
        local: [b, ...], the same shape on every process.

    Returns:
        [W * b, ...]; this process's rows begin at `rank() * b`.
    """
    if world_size() == 1:
        return local
    if local.requires_grad:
        return _AllGatherRows.apply(local)
    gathered = local.new_empty(world_size() * len(local), *local.shape[1:])
    dist.all_gather_into_tensor(gathered, local.contiguous())
    return gathered
