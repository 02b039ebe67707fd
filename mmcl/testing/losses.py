"""Contract suite for losses: the properties of every entry of `mmcl.losses.LOSSES`, and of your own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mmcl.core.cached_backward import cached_backward, split_views
from mmcl.errors import UserError
from mmcl.losses import LOSSES, LossEntry

WIDTH = 6

Arguments = dict[str, Any]
Reference = Callable[..., "Tensor | float"]


def check_loss(loss: str | LossEntry, reference: Reference | None = None, *, compiled: bool = False) -> None:
    """Runs every check on a loss.

    Args:
        loss: a name in `LOSSES`, or an entry for the table.
        reference: a slow, independent implementation of the loss, called with the same arguments in float64.
        compiled: also check that `torch.compile` compiles the loss to one graph, which takes seconds.

    Raises:
        AssertionError: a check failed; the message names it and says what is broken.
        UserError: the loss is unknown.

    Example:
        >>> check_loss("clip")
    """
    entry = LOSSES.entry(loss) if isinstance(loss, str) else loss
    for check in LOSS_CHECKS.values():
        check(entry)
    if reference is not None:
        check_reference(entry, reference)
    if compiled:
        check_compiled(entry)


def toy_loss_arguments(
    entry: LossEntry, rows: int = 8, *, dtype: torch.dtype = torch.float64, ids: bool = True, seed: int = 0
) -> Arguments:
    """Returns random arguments for a loss, in which some rows have equal ids; the same for equal seeds.

    Args:
        entry: table entry of the loss.
        rows: N.
        dtype: dtype of the rows.
        ids: whether to pass ids if they are optional.
        seed: seed of the random draws.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = dict.fromkeys(entry.rows, rows) | dict(entry.shared)
    arguments: Arguments = {
        name: torch.randn(count, WIDTH, generator=generator, dtype=torch.float64).to(dtype) for name, count in drawn.items()
    }
    parameters = inspect.signature(entry.load()).parameters
    if "ids" in parameters and (ids or parameters["ids"].default is inspect.Parameter.empty):
        arguments["ids"] = torch.arange(rows) % max(rows // 2, 1)
        if "queue_ids" in parameters:
            arguments["queue_ids"] = torch.arange(entry.shared["queue"]) + 1  # some are of the samples of the batch
    return arguments | dict(entry.args)


def check_purity(entry: LossEntry) -> None:
    """The loss is a scalar, the same twice, and changes neither its arguments nor the generator."""
    arguments = toy_loss_arguments(entry)
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, Tensor)}
    state = torch.get_rng_state()
    first, second = (entry.load()(**arguments) for _ in range(2))
    _require(entry, first.shape == (), f"the loss has the shape {list(first.shape)}, and must be a scalar")
    _require(entry, torch.equal(first, second), "two calls with the same arguments differ")
    _require(entry, all(torch.equal(arguments[name], value) for name, value in before.items()), "an argument was changed")
    _require(entry, torch.equal(torch.get_rng_state(), state), "the global generator was drawn from")


def check_gradients(entry: LossEntry) -> None:
    """First and second derivatives, of rows and learned numbers, agree with finite differences in float64."""
    arguments = toy_loss_arguments(entry, 4)
    for name in entry.learned:
        arguments[name] = torch.tensor(float(arguments[name]), dtype=torch.float64)
    names = _differentiable(entry) + (entry.learned if _differentiable(entry) else ())
    if not names:
        return
    leaves = [arguments[name].requires_grad_() for name in names]

    def loss(*values: Tensor) -> Tensor:
        value: Tensor = entry.load()(**arguments | dict(zip(names, values, strict=True)))
        return value

    torch.autograd.gradcheck(loss, leaves)
    try:
        torch.autograd.gradgradcheck(loss, leaves, fast_mode=True)
    except RuntimeError as error:  # torch.cdist of older releases has no second derivatives, and says so
        if "is not implemented" not in str(error):
            raise


def check_order(entry: LossEntry) -> None:
    """Another order of the samples gives the same loss, and the same gradients in that order."""
    arguments = toy_loss_arguments(entry, 9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    per_sample = [name for name in _per_sample(entry) if name in arguments]
    permuted = arguments | {name: arguments[name][order] for name in per_sample}
    value, grads = _value_and_gradients(entry, arguments)
    other, other_grads = _value_and_gradients(entry, permuted)
    _close(entry, "the loss of the samples in another order", other, value, 1e-12)
    for name in entry.rows:
        _close(entry, f"the gradient of {name} in another order", other_grads[name], grads[name][order], 1e-9)


def check_length(entry: LossEntry) -> None:
    """Rows of any length give what rows of unit length do, where the loss is one of directions."""
    arguments = toy_loss_arguments(entry)
    factor = torch.linspace(0.5, 20, 8, dtype=torch.float64)[:, None]
    longer = arguments | {name: arguments[name] * factor for name in entry.rows}
    value, other = (float(entry.load()(**x)) for x in (arguments, longer))
    equal = math.isclose(value, other, rel_tol=1e-9)
    _require(entry, equal == entry.unit, f"rows of other lengths give {other} instead of {value}: is `unit` right?")


def check_tiles(entry: LossEntry) -> None:
    """Checks that the tiled loss equals the loss in one piece, including gradients."""
    if "tile" not in inspect.signature(entry.load()).parameters:
        return
    arguments = toy_loss_arguments(entry, 11)
    expected = _value_and_gradients(entry, arguments)
    for tile in ((1, 1), (3, 4), (16, 5)):
        value, grads = _value_and_gradients(entry, arguments | {"tile": tile})
        _close(entry, f"the loss in tiles of {tile}", value, expected[0], 1e-12)
        for name, grad in grads.items():
            _close(entry, f"the gradient of {name} in tiles of {tile}", grad, expected[1][name], 1e-9)


def check_micro_batches(entry: LossEntry) -> None:
    """The gradient of an encoder is the same when it encodes a few samples at a time (`mmcl.core.cached_backward`)."""
    rows = 9
    arguments = toy_loss_arguments(entry, rows, dtype=torch.float64)
    weight = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()

    def encode(views: Any) -> dict[str, Tensor]:
        return {name: torch.tanh(view @ weight) for name, view in views.items()}

    def gradient(size: int | None) -> Tensor:
        weight.grad = None
        cached_backward(
            encode,
            split_views({name: arguments[name] for name in entry.rows}, size),
            loss=lambda encoded: entry.load()(**arguments | dict(encoded)),
            backward=lambda loss: loss.backward(),
            seed=lambda number: None,
        )
        assert weight.grad is not None
        return weight.grad

    _close(entry, "the gradient in micro-batches of four", gradient(4), gradient(None), 1e-9)


def check_precision(entry: LossEntry) -> None:
    """Half-precision rows, under autocast too, give what their float32 copies give; and that is near to float64."""
    for dtype in (torch.bfloat16, torch.float16):
        low = toy_loss_arguments(entry, dtype=dtype)
        expected = entry.load()(**_converted(low, torch.float32))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = entry.load()(**low)
        _require(entry, found.dtype == torch.float32, f"the loss of {dtype} rows is {found.dtype}, and must be float32")
        _close(entry, f"the loss of {dtype} rows", found, expected, 1e-6)
    wide = toy_loss_arguments(entry, 64)
    expected = entry.load()(**wide)
    _require(entry, expected.dtype == torch.float64, f"the loss of float64 rows is {expected.dtype}, and must be float64")
    _close(entry, "the loss of float32 rows", entry.load()(**_converted(wide, torch.float32)), expected, entry.tolerance)


def check_few_rows(entry: LossEntry) -> None:
    """No row, one, two, and equal rows: loss and gradients are finite, and the gradient can be used."""
    for rows in (0, 1, 2, 3):
        _require_finite(entry, f"of {rows} rows", toy_loss_arguments(entry, rows, dtype=torch.float32))
        _require_finite(entry, f"of {rows} rows without ids", toy_loss_arguments(entry, rows, dtype=torch.float32, ids=False))
    equal = toy_loss_arguments(entry, dtype=torch.float32)
    _require_finite(entry, "of equal rows", equal | {name: torch.ones_like(equal[name]) for name in entry.rows})


def check_extremes(entry: LossEntry) -> None:
    """At the sharpest temperature the loss and its gradients are finite in float32, in tiles too."""
    for seed in range(3):
        arguments = toy_loss_arguments(entry, dtype=torch.float32, seed=seed) | dict(entry.extreme)
        _require_finite(entry, f"with {dict(entry.extreme)}", arguments)
        if "tile" in inspect.signature(entry.load()).parameters:
            _require_finite(entry, f"with {dict(entry.extreme)} in tiles", arguments | {"tile": (3, 4)})


def check_wrong_input(entry: LossEntry) -> None:
    """Checks that an invalid argument raises an error of one line that names it."""
    arguments = toy_loss_arguments(entry)
    for name in (*entry.rows, *entry.shared):
        rows = arguments[name]
        wrong = {
            "no tensor": rows.tolist(),
            "without a dimension": rows[:, 0],
            "with a third dimension": rows[None],
            "of integers": rows.long(),
            "with a NaN": rows.masked_fill(rows == rows.max(), math.nan),
            "with an infinity": rows.masked_fill(rows == rows.max(), math.inf),
        }
        if len(entry.rows) + len(entry.shared) > 1:
            wrong |= {"of another width": rows[:, :-1], "on another device": rows.to("meta")}
        if len(entry.rows) > 1 and name in entry.rows and "key_ids" not in inspect.signature(entry.load()).parameters:
            wrong["with a row less"] = rows[:-1]
        for kind, value in wrong.items():
            _require_refusal(entry, name, kind, arguments | {name: value})
    if "ids" in arguments:
        ids = arguments["ids"]
        wrong_ids = {
            "no tensor": ids.tolist(),
            "of floats": ids.double(),
            "of truth values": ids > 0,
            "with an id less": ids[1:],
        }
        for kind, value in (wrong_ids | {"on another device": ids.to("meta"), "as a column": ids[:, None]}).items():
            _require_refusal(entry, "ids", kind, arguments | {"ids": value})
    for name in entry.learned:
        for value in (math.nan, math.inf, torch.tensor(math.nan), torch.ones(2), "1", None):
            _require_refusal(entry, name, repr(value), arguments | {name: value})


def check_reference(entry: LossEntry, reference: Reference) -> None:
    """The loss is that of the reference; where that gives a tensor with gradient, the gradients are too."""
    for rows, ids in ((1, True), (2, False), (5, True), (8, True), (8, False)):
        arguments = toy_loss_arguments(entry, rows, ids=ids)
        value, grads = _value_and_gradients(entry, arguments)
        leaves, called = _with_leaves(entry, arguments)
        expected = reference(**called)
        _close(entry, f"the loss of {rows} rows beside its reference", value, torch.as_tensor(expected), 1e-10)
        if isinstance(expected, Tensor) and expected.requires_grad:
            of_leaves = torch.autograd.grad(expected, list(leaves.values()), allow_unused=True, materialize_grads=True)
            for name, grad in zip(leaves, of_leaves, strict=True):
                _close(entry, f"the gradient of {name} beside the reference", grads[name], grad, 1e-8)


def check_compiled(entry: LossEntry) -> None:
    """`torch.compile` takes the loss in one graph, and gives the same value and gradients."""
    arguments = toy_loss_arguments(entry)
    compiled = torch.compile(entry.load(), fullgraph=True, backend="aot_eager")
    expected, expected_grads = _value_and_gradients(entry, arguments)
    leaves, called = _with_leaves(entry, arguments)
    found = compiled(**called)
    grads = torch.autograd.grad(found, list(leaves.values()), allow_unused=True, materialize_grads=True)
    _close(entry, "the compiled loss", found, expected, 1e-12)
    for name, grad in zip(leaves, grads, strict=True):
        _close(entry, f"the gradient of {name} of the compiled loss", grad, expected_grads[name], 1e-9)


LOSS_CHECKS: Mapping[str, Callable[[LossEntry], None]] = {
    "purity": check_purity,
    "gradients": check_gradients,
    "order": check_order,
    "length": check_length,
    "tiles": check_tiles,
    "micro_batches": check_micro_batches,
    "precision": check_precision,
    "few_rows": check_few_rows,
    "extremes": check_extremes,
    "wrong_input": check_wrong_input,
}
"""The checks of `check_loss`, by name."""


def _differentiable(entry: LossEntry) -> tuple[str, ...]:
    return entry.rows if entry.differentiable is None else entry.differentiable


def _per_sample(entry: LossEntry) -> list[str]:
    """The parameters before the `*`."""
    parameters = inspect.signature(entry.load()).parameters
    return [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]


def _with_leaves(entry: LossEntry, arguments: Arguments) -> tuple[dict[str, Tensor], Arguments]:
    """Rows, shared rows and learned numbers as leaves; and all arguments, with these among them."""
    leaves = {name: arguments[name].clone() for name in (*entry.rows, *entry.shared)}
    dtype = next(iter(leaves.values())).dtype
    leaves |= {name: torch.tensor(float(arguments[name]), dtype=dtype) for name in entry.learned}
    for leaf in leaves.values():
        leaf.requires_grad_()
    return leaves, arguments | leaves


def _value_and_gradients(entry: LossEntry, arguments: Arguments) -> tuple[Tensor, dict[str, Tensor]]:
    leaves, called = _with_leaves(entry, arguments)
    loss = entry.load()(**called)
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), dict(zip(leaves, grads, strict=True))


def _converted(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def _require(entry: LossEntry, condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(f"{entry.load().__name__}: {message}")


def _require_finite(entry: LossEntry, what: str, arguments: Arguments) -> None:
    value, grads = _value_and_gradients(entry, arguments)
    _require(entry, bool(value.isfinite()), f"the loss {what} is {value.item()}")
    for name, grad in grads.items():
        _require(entry, bool(grad.isfinite().all()), f"the gradient of {name} {what} is not finite")


def _require_refusal(entry: LossEntry, name: str, kind: str, arguments: Arguments) -> None:
    try:
        entry.load()(**arguments)
    except UserError as error:
        message = str(error)
        _require(entry, name in message, f"{name} {kind}: the message does not name it: {message}")
    except Exception as error:
        raise AssertionError(f"{entry.load().__name__}: {name} {kind} gives {type(error).__name__}: {error}") from error
    else:
        _require(entry, False, f"{name} {kind} is accepted")


def _close(entry: LossEntry, what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within a share of the size of what is expected; of what is nearly zero, within that of one."""
    size = max(float(expected.detach().double().norm()), 1e-2)
    error = float((found.detach().double() - expected.detach().double()).norm()) / size
    _require(entry, error <= tolerance, f"{what}: relative error {error:.1e} above {tolerance:.0e}")
