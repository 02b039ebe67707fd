"""Losses over several processes: the one place in `mmcl.losses` that knows of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmcl.core.gather import gather_rows, world_size
from mmcl.errors import UserError


def gathered(loss: Callable[..., Tensor] | nn.Module, *, gradient_reduction: Literal["mean", "sum"] = "mean") -> GatheredLoss:
    r"""A loss of the rows of all processes, with the gradient of one process that has them all.

    Every process gives its own rows and ids. The rows are gathered with their gradient, and each process computes the loss of
    the whole batch: the value is the same everywhere, and the same as that of one process. Shares may be uneven.

    How the gradients of the weights must be reduced. The gradient of a row collects what all W processes make of it, so it is W
    times the gradient of one process:

    - "mean", what `DistributedDataParallel` and FSDP do: the mean over the processes is the gradient of one process.
    - "sum", where you add the gradients up yourself (`dist.all_reduce(p.grad)`): each is divided by W, so that their sum is.

    Parameters of the loss, such as the scale of `ClipLoss`, follow the same rule; with "mean" their gradients are equal on all
    processes, and right without a reduction, too.

    Args:
        loss: a function or a module of `mmcl.losses`, or one of your own by the same rule: its parameters before the `*` have a
            row or an id for each sample of this process, and are gathered; what follows is the same on all processes.
        gradient_reduction: how the gradients will be reduced, see above.

    Returns:
        A module that is called like the loss; its parameters are those of the loss.

    Requirements:
        Ids that are given are compared across processes: number samples over the whole dataset, not anew in each process.
        Every process must call the loss and its backward pass. Without `torch.distributed` it is the loss itself. Each process
        does the work of the whole batch; `mmcl.train` divides that, too.

    Raises:
        UserError: there is no such reduction, or something before the `*` is not a tensor (or a sequence of them).

    Example:
        >>> from mmcl.losses import ClipLoss, gathered
        >>> criterion = gathered(ClipLoss(temperature=0.5))
        >>> round(criterion(torch.eye(3), torch.eye(3)).item(), 4)
        0.2395
    """
    if gradient_reduction not in ("mean", "sum"):
        raise UserError(f"gradient_reduction must be 'mean' or 'sum', not {gradient_reduction!r}")
    return GatheredLoss(loss, 1 if gradient_reduction == "mean" else None)


class GatheredLoss(nn.Module):
    """What `gathered` returns.

    Args:
        loss: see there.
        divisor: of the gradient; None is the number of processes.
    """

    def __init__(self, loss: Callable[..., Tensor] | nn.Module, divisor: int | None):
        super().__init__()
        self.loss, self.divisor = loss, divisor
        self.signature = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if world_size() == 1:
            return self.loss(*args, **kwargs)
        bound = self.signature.bind(*args, **kwargs)
        per_sample = [name for name in bound.arguments if self._is_per_sample(name)]
        local: dict[int, Tensor] = {}  # what is one tensor in two places stays one
        for name in per_sample:
            for tensor in _tensors(name, bound.arguments[name]):
                local[id(tensor)] = tensor
        everywhere = dict(zip(local, _gathered(list(local.values())), strict=True))
        for name in per_sample:
            bound.arguments[name] = _replaced(bound.arguments[name], everywhere)
        loss: Tensor = self.loss(*bound.args, **bound.kwargs)
        divisor = self.divisor or world_size()
        return loss if divisor == 1 else loss.detach() + (loss - loss.detach()) / divisor

    def _is_per_sample(self, name: str) -> bool:
        kind = self.signature.parameters[name].kind
        return kind not in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)


def _tensors(name: str, value: Any) -> list[Tensor]:
    """Those of one argument: a tensor, a sequence of them, or None."""
    if value is None:
        return []
    found = [value] if isinstance(value, Tensor) else value
    if not isinstance(found, list | tuple) or not all(isinstance(x, Tensor) and x.ndim for x in found):
        raise UserError(f"{name} must be a tensor with a row for each sample of this process, not {type(value).__name__}")
    return list(found)


def _gathered(local: list[Tensor]) -> list[Tensor]:
    """The rows of all processes, in rank order."""
    lengths = torch.tensor([[len(rows) for rows in local]], device=local[0].device)
    counts = gather_rows(lengths).T.tolist()
    return [gather_rows(rows, count) for rows, count in zip(local, counts, strict=True)]


def _replaced(value: Any, everywhere: dict[int, Tensor]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(everywhere[id(tensor)] for tensor in value)
    return None if value is None else everywhere[id(value)]
