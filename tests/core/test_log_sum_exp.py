"""Tiles give the same result as one matrix for logits of any span, and no large matrix is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmcl.core.dense import DenseContrast
from mmcl.core.info_nce import info_nce, symmetric_info_nce
from mmcl.core.sigmoid import sigmoid_loss
from mmcl.core.tiled.log_sum_exp import pair_log_sum_exp
from mmcl.core.tiled.pairs import PairKind, Pairs, TileShape, choose_tile

N, M = 7, 11
QUERY_ID = torch.tensor([0, 3, 0, 5, 3, 9, 0])
KEY_ID = torch.tensor([5, 0, 0, 0, 3, 0, 7, 7, 3, 3, 9])
QUERY_ROW = torch.tensor([1, 4, 5, 0, 8, 10, 2])
KEY_ROW = torch.arange(M)
PAIRS = {"no rows": (QUERY_ID, KEY_ID), "rows": (QUERY_ID, KEY_ID, QUERY_ROW, KEY_ROW)}
SPANS = {"narrow": 5.0, "one exponential": 95.0, "just": 149.0, "two exponentials": 400.0, "far beyond exp": 4000.0}


def sums(
    query: Tensor,
    key: Tensor,
    which: str | tuple[Tensor, ...],
    tile: TileShape | None,
    *,
    scale: Tensor | float = 1.0,
    kind: PairKind = "all",
    both: bool = False,
    mirrored: bool = False,
) -> tuple[Tensor, ...]:
    """Log-sum-exps of tiles, or of the whole matrix; one if not `both`."""
    ids = PAIRS[which] if isinstance(which, str) else which
    if tile is None:
        query_row, key_row = ids[2:] or (None, None)
        rows = {"query_id_N": ids[0], "key_id_M": ids[1], "query_row_N": query_row, "key_row_M": key_row}
        dense = DenseContrast(query, key, scale=scale, **rows)  # type: ignore[arg-type]
        return tuple(dense._log_sum_exp(kind, dim) for dim in ((1, 0) if both else (1,)))
    pairs = Pairs(*ids, tile=tile, mirrored=mirrored)  # type: ignore[misc, arg-type]
    scale = torch.as_tensor(scale, dtype=query.dtype)
    facts = pairs.facts(query, key, scale)
    by_row, by_column = pair_log_sum_exp(query, key, pairs, scale=scale, facts=facts, kind=kind, both=both)
    return (by_row,) if by_column is None else (by_row, by_column)


def rows(rng: torch.Generator, span: float) -> tuple[Tensor, Tensor]:
    """Queries and keys whose logits span just this much."""
    query, key = (torch.randn(count, 5, generator=rng, dtype=torch.float64) for count in (N, M))
    logits = query @ key.T
    return query * (span / float(logits.max() - logits.min())), key


def leaves(rng: torch.Generator, span: float) -> tuple[Tensor, Tensor]:
    query, key = rows(rng, span)
    return query.requires_grad_(), key.requires_grad_()


def dense(query: Tensor, key: Tensor, kind: PairKind, which: str) -> tuple[Tensor, Tensor]:
    equal = QUERY_ID[:, None] == KEY_ID
    keep = {"all": torch.ones(N, M, dtype=torch.bool), "negatives": ~equal, "positives": equal}[kind]
    if which == "rows":
        keep = keep & (QUERY_ROW[:, None] != KEY_ROW)
    logits = (query @ key.T).masked_fill(~keep, -torch.inf)
    return logits.logsumexp(1), logits.logsumexp(0)


def with_gradients(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The outputs, and the gradients of a sum of them in which every entry has a weight of its own; -inf has none."""
    weights = [torch.linspace(-1, 2, len(x), dtype=x.dtype) for x in outputs]
    total = torch.stack([torch.where(x.isfinite(), x, 0) @ weight for x, weight in zip(outputs, weights, strict=True)]).sum()
    return [*outputs, *torch.autograd.grad(total, inputs)]


@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS.keys())
@pytest.mark.parametrize("tile", [None, (1, 1), (2, 3), (4, 5), (3, 100)], ids=str)
@pytest.mark.parametrize("which", PAIRS)
@pytest.mark.parametrize("kind", ["all", "negatives", "positives"])
def test_tiles_equal_one_matrix(rng: torch.Generator, kind: PairKind, which: str, tile: TileShape | None, span: float) -> None:
    inputs = leaves(rng, span)
    expected = with_gradients(dense(*inputs, kind, which), inputs)
    got = sums(*inputs, which, tile, kind=kind, both=True)
    torch.testing.assert_close(with_gradients(got, inputs), expected, rtol=1e-11, atol=1e-11)
    one_way = sums(*inputs, which, tile, kind=kind)
    assert len(one_way) == 1
    by_row = with_gradients(dense(*inputs, kind, which)[:1], inputs)
    torch.testing.assert_close(with_gradients(one_way, inputs), by_row, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS.keys())
def test_float32_is_close_to_float64_at_any_span(rng: torch.Generator, span: float) -> None:
    wide = leaves(rng, span)
    query, key = (x.detach().float().requires_grad_() for x in wide)
    expected = with_gradients(dense(*wide, "all", "rows"), wide)
    got = with_gradients(sums(query, key, "rows", (3, 4), both=True), (query, key))
    for mine, true in zip(got, expected, strict=True):
        assert mine.dtype == torch.float32
        # An exponential is as wrong as its logit, and the largest logit is rounded to half an eps of the span.
        assert (mine.double() - true).norm() <= max(2e-6, torch.finfo(torch.float32).eps / 2 * span) * true.norm()


@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS.keys())
@pytest.mark.parametrize("tile", [None, (1, 1), (2, 3), (4, 4), (100, 3), (100, 100)], ids=str)
@pytest.mark.parametrize("kind", ["all", "negatives", "positives"])
def test_mirrored_tiles_equal_the_whole_matrix(
    rng: torch.Generator, kind: PairKind, tile: TileShape | None, span: float
) -> None:
    """Rows against themselves, the queries scaled: half of the tiles, the same sums and gradients."""
    z = torch.randn(len(KEY_ID), 5, generator=rng, dtype=torch.float64)
    logits = z @ z.T
    scale = torch.tensor(span / float(logits.max() - logits.min()), dtype=torch.float64).requires_grad_()
    z.requires_grad_()
    equal, own = KEY_ID[:, None] == KEY_ID, torch.eye(len(KEY_ID), dtype=torch.bool)
    keep = {"all": ~own, "negatives": ~equal, "positives": equal & ~own}[kind]
    expected = with_gradients(((scale * z @ z.T).masked_fill(~keep, -torch.inf).logsumexp(1),), (z, scale))
    ids = (KEY_ID, KEY_ID, KEY_ROW, KEY_ROW)
    got = sums(z, z, ids, tile, scale=scale, kind=kind, mirrored=tile is not None)
    torch.testing.assert_close(with_gradients(got, (z, scale)), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("learned", [(True, True), (True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("both", [True, False])
def test_the_gradient_of_the_scale(rng: torch.Generator, both: bool, learned: tuple[bool, bool]) -> None:
    """Whether or not the rows on either side need one."""
    query, key = (x.requires_grad_(needed) for x, needed in zip(rows(rng, 30.0), learned, strict=True))
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    leaves = tuple(x for x in (query, key, scale) if x.requires_grad)
    expected = with_gradients(dense(scale * query, key, "all", "rows")[: 1 + both], leaves)
    got = sums(query, key, "rows", (3, 4), scale=scale, both=both)
    torch.testing.assert_close(with_gradients(got, leaves), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("level", [-3000.0, 3000.0])
@pytest.mark.parametrize("span", [5.0, 95.0])
def test_narrow_spans_far_from_zero(rng: torch.Generator, level: float, span: float) -> None:
    """A common center, however large, must leave the exponential."""
    query, key = rows(rng, span)
    query = torch.cat([query, torch.full((N, 1), level, dtype=torch.float64)], 1).requires_grad_()
    key = torch.cat([key, torch.ones(M, 1, dtype=torch.float64)], 1).requires_grad_()
    expected = with_gradients(dense(query, key, "all", "rows"), (query, key))
    got = with_gradients(sums(query, key, "rows", (3, 4), both=True), (query, key))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-8)


def test_non_finite_values_propagate(rng: torch.Generator) -> None:
    query, key = rows(rng, 5.0)
    query[2, 1] = torch.nan
    by_row, by_column = sums(query, key, "rows", (2, 3), both=True)
    assert by_row.isnan().tolist() == [False, False, True, False, False, False, False]
    assert by_column.isnan().sum() == M - 1  # all but the one that is the same row


def test_a_sum_of_no_pairs_is_minus_infinity_with_zero_gradient(rng: torch.Generator) -> None:
    """One query against itself: no pair in either direction."""
    z = torch.randn(1, 3, generator=rng).requires_grad_()
    zero = torch.zeros(1, dtype=torch.int64)
    for tile in (None, (1, 1)):
        outputs = sums(z, z, (zero, zero, zero, zero), tile, both=True)
        assert [x.item() for x in outputs] == [-torch.inf, -torch.inf]
        (grad,) = torch.autograd.grad(outputs, z, [torch.ones(1), torch.ones(1)])
        assert bool((grad == 0).all())


@pytest.mark.parametrize(
    "shape",
    [(1, 1), (1024, 1024), (1025, 1024), (3000, 3000), (64, 2**17), (2**17, 64), (5000, 300), (2**23, 1), (1, 2**23)],
)
def test_a_tile_is_a_share_of_the_pairs(shape: tuple[int, int]) -> None:
    tile, pairs = choose_tile(*shape), shape[0] * shape[1]
    if pairs <= 2**20:
        assert tile is None
    else:
        assert tile is not None
        assert min(pairs, 2**21) <= min(tile[0], shape[0]) * min(tile[1], shape[1]) <= 2**22


# Memory: both sizes below are beyond what is done in one piece.
SMALL, LARGE, DIM = 2560, 5120, 8
LOSSES: dict[str, Callable[[Tensor, Tensor, dict[str, Any]], Tensor]] = {
    "one way": lambda q, k, i: info_nce(q, k, query_id_N=i["id"], key_id_M=i["id"], scale=i["scale"]),
    "self dropped": lambda q, k, i: info_nce(
        q, q, query_id_N=i["id"], key_id_M=i["id"], scale=i["scale"], query_row_N=i["row"], key_row_M=i["row"]
    ),
    "L_in": lambda q, k, i: info_nce(q, k, query_id_N=i["id"], key_id_M=i["id"], scale=i["scale"], positives="inside"),
    "HCL": lambda q, k, i: info_nce(
        q, k, query_id_N=i["id"], key_id_M=i["id"], scale=i["scale"], hardness=1.0, positive_prior=0.1
    ),
    "symmetric": lambda q, k, i: symmetric_info_nce(q, k, id_N=i["id"], scale=i["scale"]),
    "sigmoid": lambda q, k, i: sigmoid_loss(q, k, image_id_N=i["id"], text_id_M=i["id"], scale=i["scale"], bias=i["bias"]),
}
LOSS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def inputs_of(count: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    rng = torch.Generator().manual_seed(count)
    query, key = (F.normalize(torch.randn(count, DIM, generator=rng), dim=1).requires_grad_() for _ in range(2))
    scalars = {"scale": torch.tensor(14.0, requires_grad=True), "bias": torch.tensor(-7.0, requires_grad=True)}
    return query, key, {"id": torch.arange(count) // 2, "row": torch.arange(count), **scalars}


def saved_bytes(loss: Callable[..., Tensor], count: int) -> int:
    """Of all storages that autograd keeps, each counted once; the int32 ids, 4 bytes a row, come on top."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = loss(*inputs_of(count))
    assert total.requires_grad
    return sum(seen.values())


@LOSS
def test_what_is_saved_for_backward_grows_with_the_rows(loss: Callable[..., Tensor]) -> None:
    small, large = saved_bytes(loss, SMALL), saved_bytes(loss, LARGE)
    assert small > 0
    assert large <= 2.05 * small
    assert large < LARGE * LARGE  # bytes; a matrix of float32 would be four times that


@pytest.mark.parametrize("dim", [8, 64, 256, 512, 1024])
def test_tiles_are_kept_in_no_more_memory_than_the_rows_take(rng: torch.Generator, dim: int) -> None:
    """And they save products: of four, a share as large as that of the scores that are kept."""
    count, tile = 1024, (100, 256)
    query, key = (F.normalize(torch.randn(count, dim, generator=rng), dim=1).requires_grad_() for _ in range(2))
    ids, saved = (torch.arange(count), torch.arange(count)), []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    products = Products()  # type: ignore[no-untyped-call]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), products:
        outputs = sums(query, key, ids, tile, both=True)
        torch.autograd.grad(outputs, (query, key), [torch.ones(count)] * 2)
    everything, memory = count * count, query.numel() + key.numel()
    assert sum(saved) <= 2 * memory + 2 * count + 1  # rows, tiles, sums and the scale
    kind = 4 * everything - products.multiplications / dim
    assert min(everything, memory) - tile[0] * tile[1] < kind <= min(everything, memory)


def test_backward_may_come_twice(rng: torch.Generator) -> None:
    inputs = leaves(rng, 5.0)
    by_query, by_key = sums(*inputs, "no rows", (2, 3), both=True)
    total = by_query.sum() + by_key.sum()
    first = torch.autograd.grad(total, inputs, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(total, inputs), first, rtol=0, atol=0)


class Products(TorchDispatchMode):
    """Counts the multiplications of matrix products."""

    multiplications = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.addmm_.default:
            (rows, columns), inner = args[0].shape, args[1].shape[1]
            self.multiplications += rows * columns * inner
        return func(*args, **(kwargs or {}))


class Largest(TorchDispatchMode):
    """The most elements that any tensor had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@LOSS
def test_no_tensor_is_larger_than_a_tile(loss: Callable[..., Tensor]) -> None:
    inputs = inputs_of(SMALL)
    largest = Largest()  # type: ignore[no-untyped-call]
    with largest:
        loss(*inputs).backward()
    assert SMALL * SMALL > 2**22
    assert 2**21 < largest.elements <= 1.01 * 2**22


@LOSS
def test_the_plain_path_equals_the_tiles_of_the_default_size(
    loss: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = inputs_of(SMALL)
    leaves = (inputs[0], inputs[1], inputs[2]["scale"], inputs[2]["bias"])

    def value_and_gradients() -> list[Tensor]:
        total = loss(*inputs)
        return [total, *(g for g in torch.autograd.grad(total, leaves, allow_unused=True) if g is not None)]

    tiled = value_and_gradients()
    for module in ("info_nce", "sigmoid"):
        monkeypatch.setattr(f"mmcl.core.{module}.choose_tile", lambda *shape: None)
    plain = value_and_gradients()
    for mine, theirs in zip(tiled, plain, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()
