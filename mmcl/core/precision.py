"""Computation in float32 or better, whatever the dtype of the inputs and of autocast."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

P = ParamSpec("P")
R = TypeVar("R")


def statistics_dtype(*rows: Tensor) -> torch.dtype:
    """Dtype for sums and statistics: float64 if an input is float64, else float32."""
    dtype = torch.float32
    for tensor in rows:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function of rows: casts its floating-point tensors to the `statistics_dtype` of the rows, with autocast off.

    Rows are the tensors of two or more dimensions; scalars and weights get the same dtype. A tensor passed twice stays one
    tensor.
    """

    @wraps(function)
    def in_float32_(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point()]
        dtype = statistics_dtype(*(x for x in tensors if x.ndim > 1))
        wide = [x.to(dtype) for x in tensors]

        def widened(value: object) -> object:
            for tensor, wider in zip(tensors, wide, strict=True):
                if tensor is value:
                    return wider
            return value

        device = tensors[0].device.type if tensors else "cpu"
        with torch.autocast(device, enabled=False):
            return function(*map(widened, args), **{name: widened(value) for name, value in kwargs.items()})  # type: ignore[arg-type]

    return in_float32_


def as_scalar(name: str, value: Tensor | float, like: Tensor, *, positive: bool = False) -> Tensor | float:
    """A number, or a tensor of one element without dimensions, of the type and on the device of the rows.

    Raises:
        ValueError: names what is not one; a number must be finite and, if asked for, positive. The values of tensors are not
            looked at, which would wait for the device.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} has the shape {tuple(value.shape)}, and must be a number or a tensor of one element")
        return value.reshape(()).to(like)
    if not math.isfinite(value) or (positive and value <= 0):
        raise ValueError(f"{name} is {value}, and must be a finite number{' above 0' if positive else ''}")
    return float(value)


@in_float32
def unit_rows(row_ND: Tensor) -> Tensor:
    """Scales rows to unit length, in float32 (float64 for float64 rows); zero rows stay zero."""
    return F.normalize(row_ND, dim=-1)
