"""Rows of all processes, with their exact gradient: the one place where embeddings cross process borders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mmcl.types import Embeddings


class _AllGatherRows(torch.autograd.Function):
    """Forward: concatenate all ranks' rows. Backward: sum all ranks' gradients of these rows, return the local slice.

    Each rank computes its own share of the loss from all rows, so the gradient of a rank's rows is spread over all ranks: to
    leave out the sum is the well-known way to train on a wrong gradient.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, local: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.counts = counts  # type: ignore[attr-defined]
        return _all_gather(local, counts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return _SumOfLocalRows.apply(grad, ctx.counts), None  # type: ignore[attr-defined]


class _SumOfLocalRows(torch.autograd.Function):
    """The transpose of `_AllGatherRows`, and the other way round: so gradients of gradients cross process borders too."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.counts = counts  # type: ignore[attr-defined]
        # Autograd may hand the same tensor to other nodes: it must not be reduced in place.
        total = rows.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        own: Tensor = total.split(counts)[dist.get_rank()]
        return own

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return _AllGatherRows.apply(grad, ctx.counts), None  # type: ignore[attr-defined]


def _all_gather(local: Tensor, counts: Sequence[int]) -> Tensor:
    """Collectives want equal shares: shorter ones are padded to the longest, and cut again."""
    longest = max(counts)
    if len(local) < longest:
        local = torch.cat([local, local.new_zeros(longest - len(local), *local.shape[1:])])
    gathered = local.new_empty(len(counts) * longest, *local.shape[1:])
    dist.all_gather(list(gathered.split(longest)), local.contiguous())
    if min(counts) == longest:
        return gathered
    return torch.cat([share[:count] for share, count in zip(gathered.split(longest), counts, strict=True)])


def world_size() -> int:
    """The number of processes; 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def row_counts(local: Tensor) -> list[int]:
    """The number of rows on every process, in rank order: for `gather_rows`, where shares may be uneven."""
    count = torch.tensor([len(local)], device=local.device)
    return [len(local)] if world_size() == 1 else _all_gather(count, [1] * world_size()).tolist()


def gather_rows(local: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """Concatenates the rows of all processes in rank order, with exact gradient; the identity for one process.

    Args:
        local: [b, ...], the same trailing shape on every process.
        counts: `row_counts`, the same list on every process; None where all processes have the same number of rows, which
            saves that collective.

    Returns:
        [B, ...], B the sum of the counts; this process's rows begin where those of the ranks before it end.

    Raises:
        ValueError: `counts` does not fit the processes or the local rows.
    """
    counts = [len(local)] * world_size() if counts is None else counts
    if len(counts) != world_size() or counts[rank()] != len(local):
        raise ValueError(f"counts {list(counts)} do not fit process {rank()} of {world_size()} with {len(local)} rows")
    if world_size() == 1:
        return local
    return _AllGatherRows.apply(local, counts) if local.requires_grad else _all_gather(local, counts)


def gather_embeddings(
    local: Mapping[str, Tensor], ids: Tensor, counts: Sequence[int] | None = None, *, text_ids: Tensor | None = None
) -> Embeddings:
    """What a loss sees: the local rows of every view and, in one collective for all views, those of all processes.

    Args:
        local: view name -> rows [b, D]; the widths may differ.
        ids: int64 [b].
        counts: as in `gather_rows`.
        text_ids: int64 [b, V], see `Batch`.
    """
    offset = rank() * len(ids) if counts is None else sum(counts[: rank()])
    if world_size() == 1:
        return Embeddings(local, local, ids, ids, offset, text_ids)
    joined = gather_rows(torch.cat(list(local.values()), dim=1), counts)
    split = joined.split([rows.shape[1] for rows in local.values()], dim=1)
    all_text_ids = None if text_ids is None else gather_rows(text_ids, counts)
    return Embeddings(local, dict(zip(local, split, strict=True)), ids, gather_rows(ids, counts), offset, all_text_ids)
