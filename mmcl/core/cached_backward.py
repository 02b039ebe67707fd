"""The gradient of a large batch in the memory of a small one: GradCache.

Gao, Zhang, Han, Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021, section 3.2.

A contrastive loss does not split into micro-batches, because each row needs all others as negatives. But it needs them as
embeddings only, and these are small. So all pieces are encoded without a graph; the loss of the whole batch gives each row its
gradient; then each piece is encoded again, with a graph, through which the gradients of its rows are sent. That costs one more
forward pass and is exact, where the mean of the losses of micro-batches is another loss, with fewer negatives.

Batch norm in training is the exception: it normalises each piece by itself. Only the second pass moves its running statistics.
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
    """Cuts a batch into pieces of `size` rows; None leaves it whole.

    Where it does not divide, the last piece is shorter. A row that would be alone joins the piece before: a batch norm cannot
    normalise it.
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
    no_sync: Callable[[], AbstractContextManager[object]] = nullcontext,
    loss_parameters: Sequence[Tensor] = (),
) -> T:
    """Accumulates the gradient of one loss of all pieces together. A single piece is encoded once and needs no second pass.

    Every process must bring the same number of pieces where `encode` communicates, as sharded weights do.

    Args:
        encode: a piece to its rows, view name -> [b, D], of any type; integers have no gradient. A module, wrapped or not (DDP,
            FSDP, mixed precision), or any function; batch norms that a function hides count both passes.
        pieces: the local batch in order, see `split_views`.
        loss: the rows of all pieces to what `backward` takes; called once.
        backward: back-propagates, scaled as it has to be; called once.
        seed: seeds the generators that `encode` draws from. Called with the piece's number before each of its passes: the
            masks of dropout are the same in both, and afterwards the generators are where the last piece leaves them.
        no_sync: the context in which `encode` reduces no gradients; of every piece but the last.
        loss_parameters: leaves on which the loss depends besides the rows, such as a temperature.

    Returns:
        What `loss` returned.

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
        result = loss(encode(pieces[0]))
        backward(result)
        return result
    parts = _encode_without_graph(encode, pieces, seed)
    rows = {name: torch.cat(part) for name, part in parts.items()}
    for row in rows.values():
        row.requires_grad_(row.is_floating_point())
    result = loss(rows)
    backward(result)
    grads = {n: row.grad.split([len(x) for x in parts[n]]) for n, row in rows.items() if row.grad is not None}

    def encode_again(number: int, parameters: Sequence[Tensor] = ()) -> None:
        seed(number)
        outputs = encode(pieces[number])
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
    encode: Callable[[Views], Mapping[str, Tensor]], pieces: Sequence[Views], seed: Callable[[int], object]
) -> dict[str, list[Tensor]]:
    """The rows of every view, one tensor for each piece."""
    parts: dict[str, list[Tensor]] = {}
    with _running_statistics_kept(encode):
        for number, piece in enumerate(pieces):
            seed(number)
            for name, row in encode(piece).items():
                parts.setdefault(name, []).append(row)
    return parts


@contextmanager
def _running_statistics_kept(encode: object) -> Iterator[None]:
    """Batch norms in training go on normalising by their batch, but do not count it; of a method, those of its module."""
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
