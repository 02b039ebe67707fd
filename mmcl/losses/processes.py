"""Losses over the batches of several processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmcl.core.gather import gather_rows, world_size
from mmcl.errors import UserError
from mmcl.losses.arguments import signature_of


def gathered(loss: Callable[..., Tensor] | nn.Module, *, gradient_reduction: Literal["mean", "sum"] = "mean") -> GatheredLoss:
    r"""Wraps a loss to use the rows of all processes, with the same gradient as a single process with all rows.

    Every process passes its own rows and ids. The rows are gathered with their gradient, and each process computes the loss of
    the whole batch. The value is the same on all processes and equals that of a single process. Processes may have different
    numbers of rows.

    The gradients of the weights must be reduced over the processes. The gradient of a row sums the contributions of all W
    processes, so it is W times the gradient of a single process:

    - "mean", as in `DistributedDataParallel` and FSDP: the mean over the processes is the gradient of a single process.
    - "sum", if you sum the gradients yourself (`dist.all_reduce(p.grad)`): each gradient is divided by W, so that the sum is
      the gradient of a single process.

    Parameters of the loss, such as the scale of `ClipLoss`, follow the same rule. With "mean" their gradients are equal on all
    processes, and correct even without a reduction.

    Args:
        loss: a function or module of `mmcl.losses`, or your own loss with the same convention: arguments before the `*` have a
            row or an id per sample of this process and are gathered; the other arguments are the same on all processes.
        gradient_reduction: how the gradients are reduced, see above.

    Returns:
        A module with the call signature and the parameters of the loss.

    Requirements:
        Ids are compared across processes, so number the samples over the whole dataset and not within each process. Every
        process must call the loss and its backward pass. Without `torch.distributed`, the loss itself is computed. Each process
        does the work of the whole batch; `mmcl.train` divides this work as well.

    Raises:
        UserError: the reduction is unknown, or an argument before the `*` is not a tensor (or a sequence of tensors).

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
    """Module returned by `gathered`.

    Args:
        loss: as in `gathered`.
        divisor: divisor of the gradient; None for the number of processes.
    """

    def __init__(self, loss: Callable[..., Tensor] | nn.Module, divisor: int | None):
        super().__init__()
        self.loss, self.divisor = loss, divisor
        self.signature = signature_of(loss)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if world_size() == 1:
            return self.loss(*args, **kwargs)
        bound = self.signature.bind(*args, **kwargs)
        per_sample = [name for name in bound.arguments if self._is_per_sample(name)]
        local: dict[int, Tensor] = {}  # a tensor that is passed twice stays one tensor
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
    """Tensors of one argument: a tensor, a sequence of tensors, or None."""
    if value is None:
        return []
    found = [value] if isinstance(value, Tensor) else value
    if not isinstance(found, list | tuple) or not all(isinstance(x, Tensor) and x.ndim for x in found):
        raise UserError(f"{name} must be a tensor with a row for each sample of this process, not {type(value).__name__}")
    return list(found)


def _gathered(local: list[Tensor]) -> list[Tensor]:
    """Rows of all processes, in rank order."""
    lengths = torch.tensor([[len(rows) for rows in local]], device=local[0].device)
    counts = gather_rows(lengths).T.tolist()
    return [gather_rows(rows, count) for rows, count in zip(local, counts, strict=True)]


def _replaced(value: Any, everywhere: dict[int, Tensor]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(everywhere[id(tensor)] for tensor in value)
    return None if value is None else everywhere[id(value)]
