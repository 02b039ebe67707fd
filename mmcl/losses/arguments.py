"""Checks of the arguments of losses, before anything is computed; errors name the argument and the fix."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Real

import torch
from torch import Tensor, nn

from mmcl.core.higher_derivatives import is_transformed
from mmcl.core.precision import in_float32, statistics_dtype
from mmcl.errors import UserError


def signature_of(loss: Callable[..., Tensor] | nn.Module) -> inspect.Signature:
    """Returns the signature with which a loss is called; that of the wrapped loss for the wrappers of this package."""
    wrapped: inspect.Signature | None = getattr(loss, "signature", None)
    return wrapped or inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)


def check_rows(given: Mapping[str, Tensor], *, paired: bool = True) -> None:
    """Checks matrices of rows against each other.

    Args:
        given: maps argument names to rows [N, D].
        paired: whether all must have the same number of rows.

    Raises:
        UserError: an argument is not a floating-point matrix, shapes or devices differ, or a value is not finite.
    """
    for name, rows in given.items():
        if not isinstance(rows, Tensor):
            raise UserError(f"{name} must be a tensor of rows [N, D], not {type(rows).__name__}; convert it by torch.as_tensor")
        if rows.ndim != 2:
            raise UserError(f"{name} has the shape {list(rows.shape)}, and must be [N, D]: one row for each sample")
        if not rows.is_floating_point():
            raise UserError(f"{name} is of type {rows.dtype}, and must be floating point: use {name}.float()")
    (first, reference), *others = given.items()
    for name, rows in others:
        if rows.device != reference.device:
            raise UserError(f"{name} is on {rows.device} and {first} on {reference.device}: use {name}.to({first}.device)")
        if rows.shape[1] != reference.shape[1] or (paired and len(rows) != len(reference)):
            wanted = "the same shape" if paired else "rows of the same width"
            raise UserError(f"{first} {list(reference.shape)} and {name} {list(rows.shape)} must have {wanted}")
    check_finite(given)


def check_finite(given: Mapping[str, Tensor]) -> None:
    """Raises UserError for a tensor with a NaN or an infinity; skipped inside a compiled graph or `torch.func`."""
    if is_transformed() or not given:
        return
    device = next(iter(given.values())).device
    finite = torch.stack([rows.detach().isfinite().all().to(device) for rows in given.values()])  # one device synchronization
    for (name, rows), is_finite in zip(given.items(), finite.tolist(), strict=True):
        if not is_finite:
            row = "" if rows.ndim < 2 else f" (row {int((~rows.detach().isfinite()).any(1).nonzero()[0])})"
            raise UserError(f"{name} has a NaN or an infinity{row}: look for it in what computed {name}")


def checked_ids(name: str, ids: Tensor | None, of: str, rows: Tensor) -> Tensor:
    """Returns the int64 ids of rows; None gives each row a distinct id.

    Raises:
        UserError: the ids are not a vector of integers, one per row, on the device of the rows.
    """
    if ids is None:
        return torch.arange(len(rows), device=rows.device)
    if not isinstance(ids, Tensor):
        raise UserError(f"{name} must be a tensor of integers [N], not {type(ids).__name__}; convert it by torch.as_tensor")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise UserError(f"{name} is of type {ids.dtype}, and must be of integers: use {name}.long()")
    if ids.shape != rows.shape[:1]:
        raise UserError(f"{name} has the shape {list(ids.shape)}, and must be [{len(rows)}]: one id for each row of {of}")
    if ids.device != rows.device:
        raise UserError(f"{name} is on {ids.device} and {of} on {rows.device}: use {name}.to({of}.device)")
    return ids.long()


def number(name: str, value: Tensor | float, rows: Tensor, *, positive: bool = False) -> Tensor | float:
    """A number, or a tensor of one, in the type in which the loss of these rows is computed.

    Raises:
        UserError: it is neither, is not finite or, if required, is not above 0. Inside a compiled graph or `torch.func`, the
            value of a tensor is not checked.
    """
    if isinstance(value, Tensor) and value.numel() != 1:
        raise UserError(f"{name} has the shape {list(value.shape)}, and must be a number or a tensor of one element")
    if not isinstance(value, Tensor | Real):
        raise UserError(f"{name} must be a number or a tensor of one element, not {type(value).__name__}")
    if not isinstance(value, Tensor) or not is_transformed():
        plain = float(value.detach() if isinstance(value, Tensor) else value)
        if not math.isfinite(plain) or (positive and plain <= 0):
            raise UserError(f"{name} is {plain}, and must be a finite number{' above 0' if positive else ''}")
    return value.reshape(()).to(rows.device, statistics_dtype(rows)) if isinstance(value, Tensor) else float(value)


def check_numbers(**given: float) -> None:
    """Raises UserError for an option that is not a finite number."""
    for name, value in given.items():
        if not isinstance(value, Real) or not math.isfinite(value):
            raise UserError(f"{name} is {value!r}, and must be a finite number")


def check_positive(**given: float) -> None:
    """Raises UserError for an option that is not a finite number above 0."""
    check_numbers(**given)
    for name, value in given.items():
        if value <= 0:
            raise UserError(f"{name} is {value}, and must be a finite number above 0")


def check_sigreg(*, weight: float, slices: int, knots: int, upper: float) -> None:
    """Raises UserError for an option of SIGReg that is out of its range."""
    check_numbers(weight=weight)
    check_positive(upper=upper)
    if not 0 <= weight <= 1:
        raise UserError(f"weight is {weight}, and must be from 0 to 1: the share of SIGReg in the loss")
    for name, value, least in (("slices", slices, 1), ("knots", knots, 2)):
        if not isinstance(value, int) or value < least:
            raise UserError(f"{name} is {value!r}, and must be a whole number of at least {least}")


def check_mixing(*, mixed: int, mixed_with_query: int, hardest: int | None) -> None:
    """Raises UserError for an option of the mixing of negatives that is out of its range, or without effect."""
    counts = {"mixed": mixed, "mixed_with_query": mixed_with_query, "hardest": hardest}
    least = {"hardest": 2 if mixed else 1}
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or value < least.get(name, 0)):
            raise UserError(f"{name} is {value!r}, and must be a whole number of at least {least.get(name, 0)}")
    if hardest is not None and not mixed and not mixed_with_query:
        raise UserError("hardest has no effect without mixed or mixed_with_query: give one of them, or leave it out")


def inverse(temperature: Tensor | float, rows: Tensor) -> Tensor | float:
    """Returns the scale, 1 / temperature; raises UserError like `number`."""
    return 1 / number("temperature", temperature, rows, positive=True)


@in_float32
def stacked(first: Tensor, second: Tensor) -> Tensor:
    """Concatenates the rows of both in the dtype of the loss, because `cat` under autocast does not support float64."""
    return torch.cat([first, second])
