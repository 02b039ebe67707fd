"""Higher derivatives, by recomputation, of losses with a hand-written backward pass.

A hand-written backward pass is fast because it records no graph, so its result has no gradient. If one is requested
(`create_graph=True`: gradient penalties, meta-learning, Hessian-vector products), the same function is computed with PyTorch's
operations one tile at a time, and each tile is recomputed whenever its derivative is needed. Derivatives of any order are
exact; apart from rows and sums, only the current tile is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
"""Tensors to a tuple of tensors, in operations that PyTorch differentiates."""


def recomputed(function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Computes `function(*inputs)` and keeps only the inputs: every derivative recomputes the function first.

    All tensors that the function needs must be inputs, including integers, because transforms of `torch.func` see only inputs.
    """
    outputs: tuple[Tensor, ...] = _Recomputed.apply(function, *inputs)
    return outputs


def gradients(
    function: Function, inputs: Sequence[Tensor], grads: Sequence[Tensor | None], needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of `function(*inputs)` from those of its outputs; they have gradients themselves.

    Args:
        function: see `Function`.
        inputs: a tensor passed twice has two gradients.
        grads: one for each output; None for an output that is None.
        needed: which inputs get a gradient; the others get None.
    """
    with torch.autocast(inputs[0].device.type, enabled=False):
        pull_back = torch.func.vjp(_of_chosen(function, inputs, needed), *compress(inputs, needed))[1]
        found = iter(pull_back(tuple(grad for grad in grads if grad is not None)))
    return tuple(next(found) if is_needed else None for is_needed in needed)


def _of_chosen(function: Function, inputs: Sequence[Tensor], chosen: Sequence[bool]) -> Function:
    """The function of some of the inputs, with the others fixed."""

    def of_chosen(*given: Tensor) -> tuple[Tensor, ...]:
        rest = iter(given)
        return function(*(next(rest) if is_chosen else x for x, is_chosen in zip(inputs, chosen, strict=True)))

    return of_chosen


def is_transformed() -> bool:
    """True inside `torch.func` or `torch.compile`, which do not support a hand-written backward pass."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(inputs[0].device.type, enabled=False):
            return function(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.function, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        inputs, moving = ctx.saved_tensors, [tangent is not None for tangent in tangents]
        function = _of_chosen(ctx.function, inputs, moving)
        primals, directions = tuple(compress(inputs, moving)), tuple(compress(tangents, moving))
        derivatives: tuple[Tensor, ...] = torch.func.jvp(function, primals, directions)[1]
        return derivatives

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], function: Function, *inputs: Tensor) -> tuple[Any, Any]:
        """Runs the batch elements one after the other, because together they would need too much memory."""
        dims = in_dims[1:]
        outputs = [
            recomputed(function, *(x if dim is None else x.select(dim, i) for x, dim in zip(inputs, dims, strict=True)))
            for i in range(info.batch_size)
        ]
        stacked = tuple(torch.stack(parts) for parts in zip(*outputs, strict=True))
        return stacked, (0,) * len(stacked)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        found = iter(recomputed(partial(_needed_gradients, ctx.function, needed), *ctx.saved_tensors, *grads))
        return None, *(next(found) if is_needed else None for is_needed in needed)


def _needed_gradients(function: Function, needed: Sequence[bool], *inputs_and_grads: Tensor) -> tuple[Tensor, ...]:
    inputs, grads = inputs_and_grads[: len(needed)], inputs_and_grads[len(needed) :]
    return tuple(grad for grad in gradients(function, inputs, grads, needed) if grad is not None)
