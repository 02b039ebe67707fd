"""Contract suite for methods: the properties of every entry of `mmcl.methods.METHODS`, and of your own.

The towers have two layers and no batch norm, so that everything else can be tested exactly. The arguments are those of
`Method.test_args`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.core.key_queue import KeyQueue
from mmcl.core.prefixes import unit_prefix
from mmcl.errors import first_line
from mmcl.methods.method import Method
from mmcl.testing.require import require
from mmcl.testing.toys import embed, toy_batch, toy_method, train_step
from mmcl.types import Batch, Embeddings, RunFacts

_FACTS = RunFacts(global_batch=8, total_steps=6, steps_per_epoch=2, samples=8)

Entry = str | type[Method]


def check_method(method: Entry) -> None:
    """Runs every check on a method.

    Args:
        method: a name in `METHODS`, or the class.

    Raises:
        AssertionError: a check failed; the message says what is broken.
        UserError: the method is unknown.

    Example:
        >>> check_method("simclr")
    """
    for check in METHOD_CHECKS.values():
        check(method)


def check_declarations(entry: Entry) -> None:
    """A method says which views and towers it has, what it exports, and which rows are positives."""
    method = toy_method(entry)
    require(set(method.views.values()) == set(method.towers), f"its views {method.views} are not those of its towers")
    require(method.embedding in ("projection", "features"), f"embedding is {method.embedding!r}")
    require(method.positives in ("ids", "labels"), f"positives is {method.positives!r}")


def check_unit_rows(entry: Entry) -> None:
    """Rows are of unit length where, and only where, `unit_rows` says so."""
    method = toy_method(entry)
    lengths = torch.cat([rows.norm(dim=1) for rows in method.encode(toy_batch(method, 6).views).values()])
    unit = torch.allclose(lengths, torch.ones_like(lengths))
    require(unit == method.unit_rows, f"unit_rows is {method.unit_rows}, and rows have lengths {lengths.tolist()[:4]}")


def check_embedded_views(entry: Entry) -> None:
    """The rows of the views that `embedded_views` names, and of no others, are the embeddings by their towers."""
    method = toy_method(entry)
    views = toy_batch(method, 6).views
    rows, given = method.eval().encode(views), set(method.embedded_views)
    towers = {view: method.tower(view)(views[view], unit=False) for view in method.views}
    same = {view for view, own in towers.items() if view in rows and _are_parallel(rows[view], own)}
    require(same == given, f"embedded_views is {sorted(given)}, and the rows of {sorted(same)} are those of their towers")


def check_nested_rows(entry: Entry) -> None:
    """Where rows may be cut to prefixes, the loss is that of a method that only ever saw the prefixes: with zeros behind them,
    of the same cosines. What `commit` keeps of whole rows must not differ."""
    (method, _), (narrow, _) = _started(entry), _started(entry)
    batch = toy_batch(method, 6)
    embeddings, nested = embed(method, batch), set(method.nested_rows)
    unknown = nested - embeddings.local.keys()
    require(not unknown, f"nested_rows names {sorted(unknown)}, which encode does not give")
    if not nested:
        return
    prefixes = {name: unit_prefix(row, 3) if name in nested else row for name, row in embeddings.local.items()}
    padded = {name: F.pad(row, (0, 3)) if name in nested else row for name, row in prefixes.items()}
    cut, wide = (replace(embeddings, local=rows, all=rows) for rows in (prefixes, padded))
    for queue in (module for module in narrow.modules() if isinstance(module, KeyQueue)):
        queue.key_KD.copy_(F.pad(unit_prefix(queue.key_KD, 3), (0, 3)))
    method.commit(embeddings, batch)
    narrow.commit(wide, batch)
    try:
        loss = method.loss(cut, batch).loss
    except (RuntimeError, ValueError) as error:
        raise AssertionError(f"nested_rows is not (), and the loss refuses prefixes: {first_line(error)}") from error
    _require_close(
        loss, narrow.loss(wide, batch).loss, "nested_rows is not (), and prefixes have another loss than narrow rows"
    )


def check_pure_loss(entry: Entry) -> None:
    """Checks that `loss` gives the same value twice and changes no state."""
    method = toy_method(entry)
    batch = toy_batch(method, 6)
    before = copy.deepcopy(method.state_dict())
    first, second = _loss(method, batch), _loss(method, batch)
    require(torch.equal(first, second), "two calls of loss differ")
    moved = _moved(before, method)
    require(not moved, f"loss changed {sorted(moved)}: that belongs into commit")


def check_commit(entry: Entry) -> None:
    """`commit` moves buffers, a teacher, or a parameter of the loss that is kept in its range, and no tower."""
    method = toy_method(entry)
    batch = toy_batch(method, 6)
    before = copy.deepcopy(method.state_dict())
    method.commit(embed(method, batch), batch)
    allowed = {id(parameter) for parameter in method.committed_parameters}
    moved = _moved(before, method) & {key for key, p in method.named_parameters() if id(p) not in allowed}
    require(not moved, f"commit changed {sorted(moved)}, which are not among its committed_parameters")


def check_order_of_rows(entry: Entry) -> None:
    """Checks that the order of the samples does not change the loss."""
    method = toy_method(entry)
    batch = toy_batch(method, 9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    _require_close(_loss(method, _permuted(batch, order)), _loss(method, batch), "the loss depends on the order of the rows")


def check_order_of_views(entry: Entry) -> None:
    """The same rows under swapped names are the same loss, for methods that make the same rows of their first two views."""
    method = toy_method(entry)
    batch = toy_batch(method, 6)
    straight = embed(method, batch)
    rows = {_swapped(key, list(method.views)[:2]): value for key, value in straight.local.items()}
    if len(method.views) < 2 or rows.keys() != straight.local.keys():
        return  # the first two views are not alike
    swapped = Embeddings(rows, rows, straight.ids, straight.ids, all_index=straight.all_index)
    _require_close(
        method.loss(swapped, batch).loss, method.loss(straight, batch).loss, "the loss depends on the order of views"
    )


def check_sizes_of_batches(entry: Entry) -> None:
    """Batches of one and of an odd number of samples have a finite loss and gradient."""
    method = toy_method(entry)
    for rows in (1, 2, 7):
        loss = _loss(method, toy_batch(method, rows))
        loss.backward()
        require(bool(loss.isfinite()), f"the loss of {rows} samples is {loss.item()}")
    bad = [key for key, p in method.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    require(not bad, f"the gradients of {bad} are not finite")


def check_gradients(entry: Entry) -> None:
    """Checks that every parameter gets a gradient, except those of a teacher."""
    method = toy_method(entry)
    _loss(method, toy_batch(method, 8)).backward()
    idle = [key for key, p in method.named_parameters() if p.grad is None or not p.grad.any()]
    frozen = [key for key, p in method.named_parameters() if not p.requires_grad]
    require(idle == frozen, f"{sorted(set(idle) ^ set(frozen))}: learns nothing, or is frozen and learns")
    require(all("teacher" in key for key in idle), f"of {idle}, some are not a teacher's and get no gradient")


def check_learning(entry: Entry) -> None:
    """Checks that a hundred steps on one batch halve the loss."""
    method = toy_method(entry)
    batch = toy_batch(method, 8)
    optimizer = _optimizer(method)
    losses = [float(train_step(method, optimizer, batch)) for _ in range(100)]
    require(min(losses) < 0.5 * max(losses[:5]), f"the loss falls from {max(losses[:5]):.3g} to {min(losses):.3g} only")


def check_resume(entry: Entry) -> None:
    """Queues, teachers and counters are part of the state: six steps are three, a new process, and three more."""
    (whole, optimizer), (resumed, resumed_optimizer) = _started(entry), _started(entry)
    for _ in range(3):
        train_step(whole, optimizer, toy_batch(whole, 8))
    resumed.load_state_dict(whole.state_dict())
    resumed_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(4, 7):
        loss = train_step(whole, optimizer, toy_batch(whole, 8))
        same = torch.equal(train_step(resumed, resumed_optimizer, toy_batch(resumed, 8)), loss)
        require(same, f"the loss of step {step} differs after a resume: some state is neither a buffer nor a parameter")
    moved = _moved(whole.state_dict(), resumed)
    require(not moved, f"{sorted(moved)} differ after a resume")


METHOD_CHECKS: dict[str, Callable[[Entry], None]] = {
    "declarations": check_declarations,
    "unit rows": check_unit_rows,
    "embedded views": check_embedded_views,
    "nested rows": check_nested_rows,
    "pure loss": check_pure_loss,
    "commit": check_commit,
    "order of rows": check_order_of_rows,
    "order of views": check_order_of_views,
    "sizes of batches": check_sizes_of_batches,
    "gradients": check_gradients,
    "learning": check_learning,
    "resume": check_resume,
}
"""The checks of `check_method`, by name."""


def _loss(method: Method, batch: Batch) -> Tensor:
    return method.loss(embed(method, batch), batch).loss


def _are_parallel(rows: Tensor, others: Tensor) -> bool:
    return rows.shape == others.shape and bool((torch.cosine_similarity(rows, others) > 1 - 1e-9).all())


def _optimizer(method: Method) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)


def _started(entry: Entry) -> tuple[Method, torch.optim.Optimizer]:
    method = toy_method(entry)
    method.configure(_FACTS)
    return method, _optimizer(method)


def _permuted(batch: Batch, order: Tensor) -> Batch:
    assert batch.labels is not None
    views = {name: view[order] for name, view in batch.views.items()}
    return Batch(views, batch.ids[order], batch.index[order], labels=batch.labels[order])


def _moved(before: dict[str, Tensor], method: Method) -> set[str]:
    return {key for key, value in method.state_dict().items() if not torch.equal(before[key], value)}


def _swapped(key: str, views: list[str]) -> str:
    """ "a" for "b" and "teacher_a" for "teacher_b"."""
    kind, _, view = key.rpartition("_")
    return "_".join(filter(None, (kind, dict(zip(views, reversed(views), strict=True)).get(view, view))))


def _require_close(value: Tensor, expected: Tensor, otherwise: str) -> None:
    """Equal up to the rounding of sums in another order, in float64."""
    close = torch.allclose(value, expected, rtol=1e-12, atol=0)
    require(close, f"{otherwise}: {value.item():.17g} and {expected.item():.17g}")
