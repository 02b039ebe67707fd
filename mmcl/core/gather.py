"""Gathering of rows from all processes, with exact gradients; all exchange of embeddings is in this module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mmcl.types import Embeddings


class _AllGatherRows(torch.autograd.Function):
    """Forward: concatenate all ranks' rows. Backward: sum all ranks' gradients of these rows, return the local slice.

    Each rank computes its own share of the loss from all rows, so every rank contributes to the gradient of a rank's rows.
    Omitting the sum is a well-known bug that gives a wrong gradient.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, local: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.counts = counts  # type: ignore[attr-defined]
        return _all_gather(local, counts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return _SumOfLocalRows.apply(grad, ctx.counts), None  # type: ignore[attr-defined]


class _SumOfLocalRows(torch.autograd.Function):
    """Transpose of `_AllGatherRows`. Each is the backward pass of the other, so higher derivatives are exact too."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.counts = counts  # type: ignore[attr-defined]
        if _scatters(rows, counts):
            share = rows.new_empty(counts[dist.get_rank()], *rows.shape[1:])
            dist.reduce_scatter_tensor(share, rows.contiguous())
            return share
        # Autograd may hand the same tensor to other nodes: it must not be reduced in place.
        total = rows.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        own: Tensor = total.split(counts)[dist.get_rank()]
        return own

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return _AllGatherRows.apply(grad, ctx.counts), None  # type: ignore[attr-defined]


def _scatters(rows: Tensor, counts: Sequence[int]) -> bool:
    """Whether every process receives only the sum of its own rows, half of what is sent otherwise. Gloo sends all of it."""
    backend: str = dist.group.WORLD._get_backend(rows.device).name()  # type: ignore[union-attr]
    return backend == "nccl" and min(counts) == max(counts)


def _all_gather(local: Tensor, counts: Sequence[int]) -> Tensor:
    """Gathers shares of any length: collectives need equal shapes, so shorter shares are padded and then cut."""
    longest = max(counts)
    if len(local) < longest:
        local = torch.cat([local, local.new_zeros(longest - len(local), *local.shape[1:])])
    gathered = local.new_empty(len(counts) * longest, *local.shape[1:])
    dist.all_gather(list(gathered.split(longest)), local.contiguous())
    if min(counts) == longest:
        return gathered
    return torch.cat([share[:count] for share, count in zip(gathered.split(longest), counts, strict=True)])


def world_size() -> int:
    """Number of processes; 1 if torch.distributed is not initialized."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def row_counts(local: Tensor) -> list[int]:
    """Number of rows on every process, in rank order; needed by `gather_rows` if the numbers may differ."""
    count = torch.tensor([len(local)], device=local.device)
    return [len(local)] if world_size() == 1 else _all_gather(count, [1] * world_size()).tolist()


def gather_rows(local: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """Concatenates the rows of all processes in rank order, with an exact gradient; the identity for one process.

    Args:
        local: [b, ...], with the same trailing shape on every process.
        counts: result of `row_counts`, the same list on every process; None if all processes have the same number of rows,
            which saves a collective.

    Returns:
        [B, ...], where B is the sum of the counts; the rows of this process follow those of lower ranks.

    Raises:
        ValueError: `counts` does not match the processes or the local rows.
    """
    counts = [len(local)] * world_size() if counts is None else counts
    if len(counts) != world_size() or counts[rank()] != len(local):
        raise ValueError(f"counts {list(counts)} do not fit process {rank()} of {world_size()} with {len(local)} rows")
    if world_size() == 1:
        return local
    return _AllGatherRows.apply(local, counts) if local.requires_grad else _all_gather(local, counts)


def gather_embeddings(
    local: Mapping[str, Tensor],
    ids: Tensor,
    counts: Sequence[int] | None = None,
    *,
    text_ids: Tensor | None = None,
    index: Tensor | None = None,
    stored: Mapping[str, Tensor] | None = None,
) -> Embeddings:
    """Collects the inputs of a loss: the local rows of every view and, with one collective for all views, the global rows.

    Args:
        local: view name -> rows [b, D]; the widths may differ.
        ids: int64 [b].
        counts: as in `gather_rows`.
        text_ids: int64 [b, V], see `Batch`.
        index: int64 [b], see `Batch`.
        stored: name -> rows [b, E], see `Batch`; gathered in a second collective, without gradient.
    """
    stored = stored or {}
    offset = rank() * len(ids) if counts is None else sum(counts[: rank()])
    if world_size() == 1:
        return Embeddings(local, local, ids, ids, offset, text_ids, index, stored)
    rows, all_stored = _gathered(local, counts), _gathered(stored, counts) if stored else {}
    all_text_ids = None if text_ids is None else gather_rows(text_ids, counts)
    if index is None:
        return Embeddings(local, rows, ids, gather_rows(ids, counts), offset, all_text_ids, all_stored=all_stored)
    all_ids, all_index = gather_rows(torch.stack([ids, index], dim=1), counts).T.contiguous()
    return Embeddings(local, rows, ids, all_ids, offset, all_text_ids, all_index, all_stored)


def _gathered(local: Mapping[str, Tensor], counts: Sequence[int] | None) -> dict[str, Tensor]:
    """Rows of all processes by name, with one collective."""
    joined = gather_rows(torch.cat(list(local.values()), dim=1), counts)
    split = joined.split([rows.shape[1] for rows in local.values()], dim=1)
    return dict(zip(local, split, strict=True))
