"""GradCache: the gradient of a large batch in the memory of a small one.

Gao, Zhang, Han, Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021, section 3.2.

A contrastive loss cannot be split into micro-batches, because each row needs all others as negatives. It needs only their
embeddings, which are small. Therefore all pieces are first encoded without a graph, and the loss of the whole batch gives the
gradient of each row. Then each piece is encoded again with a graph, and the gradients of its rows are propagated through it.
This costs one more forward pass and is exact. The mean of the losses of micro-batches would be another loss, with fewer
negatives.

Batch norm in training mode is the exception: it normalizes each piece separately. Only the second pass updates its running
statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmcl.types import Views

T = TypeVar("T")


def split_views(views: Views, size: int | None) -> list[Views]:
    """Splits a batch into pieces of `size` rows; None leaves it whole.

    The last piece may be shorter. A single remaining row is added to the previous piece, because batch norm cannot normalize
    it.
    """
    rows = len(next(iter(views.values())))
    if size is None or size >= rows:
        return [views]
    starts = list(range(0, rows - (size > 1), size))
    return [
        {name: view[start:stop] for name, view in views.items()}
        for start, stop in zip(starts, [*starts[1:], rows], strict=True)
    ]


def cached_backward(
    encode: Callable[[Views], Mapping[str, Tensor]],
    pieces: Sequence[Views],
    *,
    loss: Callable[[Mapping[str, Tensor]], T],
    backward: Callable[[T], None],
    seed: Callable[[int], object],
    prepare: Callable[[Views], Views] = lambda views: views,
    no_sync: Callable[[], AbstractContextManager[object]] = nullcontext,
    loss_parameters: Sequence[Tensor] = (),
) -> T:
    """Accumulates the gradient of one loss over all pieces. A single piece is encoded once and needs no second pass.

    If `encode` communicates between processes, as with sharded weights, every process must pass the same number of pieces.

    Args:
        encode: maps a piece to its rows, view name -> [b, D], of any type; integers have no gradient. A module, wrapped or not
            (DDP, FSDP, mixed precision), or any function. Batch norms inside a plain function are updated in both passes.
        pieces: the local batch in order, see `split_views`.
        loss: maps the rows of all pieces to the argument of `backward`; called once.
        backward: runs the backward pass, including any scaling of the loss; called once.
        seed: seeds the generators that `encode` uses. It is called with the number of the piece before each of its passes, so
            that both passes have the same dropout masks; afterwards the generators have the state after the last piece.
        prepare: maps a piece to what `encode` takes, before each of its passes; copies it to the device, for example, so that
            only one piece is there at a time.
        no_sync: context in which `encode` does not reduce gradients; used for every piece but the last.
        loss_parameters: leaves other than the rows that the loss depends on, such as a temperature.

    Returns:
        The result of `loss`.

    Example:
        >>> tower = torch.nn.Linear(4, 3)
        >>> views = {"a": torch.randn(6, 4), "b": torch.randn(6, 4)}
        >>> def encode(views):
        ...     return {name: tower(rows) for name, rows in views.items()}
        >>> def loss(rows):
        ...     return (rows["a"] @ rows["b"].T).logsumexp(1).mean()
        >>> pieces, seed = split_views(views, 2), torch.manual_seed
        >>> value = cached_backward(encode, pieces, loss=loss, backward=torch.Tensor.backward, seed=seed)
        >>> torch.allclose(tower.weight.grad, torch.autograd.grad(loss(encode(views)), tower.weight)[0], atol=1e-6)
        True
    """
    if len(pieces) == 1:
        seed(0)
        result = loss(encode(prepare(pieces[0])))
        backward(result)
        return result
    parts = _encode_without_graph(encode, pieces, seed, prepare)
    rows = {name: torch.cat(part) for name, part in parts.items()}
    for row in rows.values():
        row.requires_grad_(row.is_floating_point())
    result = loss(rows)
    backward(result)
    grads = {n: row.grad.split([len(x) for x in parts[n]]) for n, row in rows.items() if row.grad is not None}

    def encode_again(number: int, parameters: Sequence[Tensor] = ()) -> None:
        seed(number)
        outputs = encode(prepare(pieces[number]))
        driven = [name for name in grads if outputs[name].requires_grad]
        torch.autograd.backward(
            [*(outputs[name] for name in driven), *parameters],
            [*(grads[name][number] for name in driven), *map(torch.zeros_like, parameters)],
        )

    with no_sync():
        for number in range(len(pieces) - 1):
            encode_again(number)
    # The gradients of the loss parameters are complete, but DDP reduces a parameter only when a backward pass reaches it.
    encode_again(len(pieces) - 1, loss_parameters)
    return result


@torch.no_grad()
def _encode_without_graph(
    encode: Callable[[Views], Mapping[str, Tensor]],
    pieces: Sequence[Views],
    seed: Callable[[int], object],
    prepare: Callable[[Views], Views],
) -> dict[str, list[Tensor]]:
    """Rows of every view, one tensor per piece."""
    parts: dict[str, list[Tensor]] = {}
    with _running_statistics_kept(encode):
        for number, piece in enumerate(pieces):
            seed(number)
            for name, row in encode(prepare(piece)).items():
                parts.setdefault(name, []).append(row)
    return parts


@contextmanager
def _running_statistics_kept(encode: object) -> Iterator[None]:
    """Batch norms in training mode still normalize by their batch, but do not update their running statistics."""
    module = getattr(encode, "__self__", encode)
    modules = module.modules() if isinstance(module, nn.Module) else ()
    tracking: list[Any] = [m for m in modules if m.training and getattr(m, "track_running_stats", False)]
    for norm in tracking:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True
