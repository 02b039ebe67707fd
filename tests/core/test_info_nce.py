"""info_nce against a slow loop in float64, and the identities that it satisfies."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.core.info_nce import info_nce, symmetric_info_nce
from mmcl.core.tiled.pairs import TileShape
from tests.core.loops import info_nce_loop


def unit(rng: torch.Generator, rows: int, dim: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(rows, dim, generator=rng, dtype=torch.float64), dim=1).to(dtype)


IDS = {
    "one positive each": [0, 1, 2, 3, 4, 5],
    "groups": [0, 1, 0, 2, 1, 0],
    "all equal": [7] * 6,
    "large ids": [2**62, -(2**62), 2**62, 5, -5, 0],
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
@pytest.mark.parametrize("drop_self", [False, True])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_equals_the_loop(rng: torch.Generator, ids: list[int], drop_self: bool, scale: float) -> None:
    query, id_N = unit(rng, 6), torch.tensor(ids)
    key = query if drop_self else unit(rng, 6)
    rows = torch.arange(6) if drop_self else None
    got = info_nce(query, key, query_id_N=id_N, key_id_M=id_N, scale=scale, query_row_N=rows, key_row_M=rows)
    expected = info_nce_loop(query, key, id_N, id_N, scale, query_row=rows, key_row=rows)
    assert float(got) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("temperature", "expected"), [(0.5, 0.2395448), (1.0, 0.5514447)])
def test_nt_xent_of_known_vectors(temperature: float, expected: float) -> None:
    """ln(1 + 2 e^(-1 / T)): each of four rows has its positive at cosine 1 and two others at 0."""
    rows, number = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]).double(), torch.arange(4)
    ids = number // 2
    loss = info_nce(rows, rows, query_id_N=ids, key_id_M=ids, query_row_N=number, key_row_M=number, scale=1 / temperature)
    assert loss.item() == pytest.approx(expected, abs=5e-8)


def test_classes_with_a_single_member_are_left_out(rng: torch.Generator) -> None:
    z, ids, row = unit(rng, 5), torch.tensor([0, 0, 1, 2, 0]), torch.arange(5)
    arguments: dict[str, Any] = {"key_id_M": ids, "key_row_M": row, "scale": 5.0}
    whole = info_nce(z, z, query_id_N=ids, query_row_N=row, **arguments)
    members = row[ids == 0]
    assert float(whole) == pytest.approx(
        float(info_nce(z[members], z, query_id_N=ids[members], query_row_N=members, **arguments))
    )


@pytest.mark.parametrize("tile", [None, (2, 3)], ids=str)
@pytest.mark.parametrize("scale", [1e4, 1e6])
def test_no_scale_overflows(rng: torch.Generator, tile: TileShape | None, scale: float) -> None:
    wide = [unit(rng, 6).requires_grad_() for _ in range(2)]
    narrow = [x.detach().float().requires_grad_() for x in wide]
    id_N = torch.arange(6)
    for positives in ("outside", "inside"):
        losses = [
            info_nce(*rows, query_id_N=id_N, key_id_M=id_N, scale=scale, positives=positives, tile=tile)
            for rows in (wide, narrow)
        ]
        assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-5)
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(losses[1], narrow))


def test_more_keys_than_queries(rng: torch.Generator) -> None:
    query, key = unit(rng, 3), unit(rng, 9)
    query_id, key_id = torch.tensor([0, 1, 9]), torch.tensor([5, 0, 0, 1, 2, 3, 4, 6, 7])
    got = info_nce(query, key, query_id_N=query_id, key_id_M=key_id, scale=10.0)
    # The third query has no positive and is left out of the mean.
    assert float(got) == pytest.approx(info_nce_loop(query, key, query_id, key_id, 10.0), rel=1e-12)


def test_is_cross_entropy_with_unique_ids(rng: torch.Generator) -> None:
    query, key, id_N = unit(rng, 32), unit(rng, 32), torch.arange(32)
    got = info_nce(query, key, query_id_N=id_N, key_id_M=id_N, scale=20.0)
    assert float(got) == pytest.approx(float(F.cross_entropy(20.0 * query @ key.T, id_N)), rel=1e-12)


def test_constant_embeddings_give_the_log_of_the_candidates() -> None:
    same = F.normalize(torch.ones(10, 4, dtype=torch.float64), dim=1)
    id_N = torch.arange(5).repeat(2)
    rows = torch.arange(10)
    nt_xent = info_nce(same, same, query_id_N=id_N, key_id_M=id_N, scale=5.0, query_row_N=rows, key_row_M=rows)
    clip = info_nce(same, same, query_id_N=rows, key_id_M=rows, scale=5.0)
    assert float(nt_xent) == pytest.approx(math.log(9), rel=1e-12)
    assert float(clip) == pytest.approx(math.log(10), rel=1e-12)


def test_gradients_of_rows_and_scale(rng: torch.Generator) -> None:
    query, key = unit(rng, 5, 3).requires_grad_(), unit(rng, 7, 3).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    query_id, key_id = torch.tensor([0, 1, 1, 2, 9]), torch.tensor([0, 0, 1, 2, 3, 4, 1])
    rows, key_rows = torch.arange(5), torch.arange(7)

    def loss(q: Tensor, k: Tensor, s: Tensor) -> Tensor:
        return info_nce(q, k, query_id_N=query_id, key_id_M=key_id, scale=s, query_row_N=rows, key_row_M=key_rows)

    assert torch.autograd.gradcheck(loss, (query, key, scale))


def test_permuting_the_rows_changes_nothing(rng: torch.Generator) -> None:
    query, key, id_N = unit(rng, 12), unit(rng, 12), torch.arange(12) // 2
    order = torch.randperm(12, generator=rng)
    straight = info_nce(query, key, query_id_N=id_N, key_id_M=id_N, scale=7.0)
    shuffled = info_nce(query[order], key, query_id_N=id_N[order], key_id_M=id_N, scale=7.0)
    torch.testing.assert_close(shuffled, straight, rtol=1e-13, atol=0)


def test_sum_over_slices_is_the_whole(rng: torch.Generator) -> None:
    """The seam for processes and tiles: local queries against all keys."""
    query, key, id_N = unit(rng, 9), unit(rng, 9), torch.arange(9) // 2
    rows = torch.arange(9)
    parts = [
        info_nce(
            query[s], key, query_id_N=id_N[s], key_id_M=id_N, scale=7.0, query_row_N=rows[s], key_row_M=rows, reduction="sum"
        )
        for s in (slice(0, 2), slice(2, 7), slice(7, 9))
    ]
    whole = info_nce(query, key, query_id_N=id_N, key_id_M=id_N, scale=7.0, query_row_N=rows, key_row_M=rows, reduction="sum")
    torch.testing.assert_close(sum(parts), whole, rtol=1e-13, atol=0)


@pytest.mark.parametrize("rows", [1, 2])
def test_no_positive_is_zero_with_a_usable_gradient(rng: torch.Generator, rows: int) -> None:
    query = unit(rng, rows).requires_grad_()
    number, id_N = torch.arange(rows), torch.arange(rows)
    loss = info_nce(query, query, query_id_N=id_N, key_id_M=id_N, scale=9.0, query_row_N=number, key_row_M=number)
    loss.backward()
    assert loss.item() == 0
    assert query.grad is not None
    assert bool((query.grad == 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rows_and_a_low_temperature_stay_exact(rng: torch.Generator, dtype: torch.dtype) -> None:
    query, key, id_N = unit(rng, 16, dtype=dtype), unit(rng, 16, dtype=dtype), torch.arange(16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = info_nce(query, key, query_id_N=id_N, key_id_M=id_N, scale=100.0)
    expected = info_nce_loop(query, key, id_N, id_N, 100.0)
    assert got.dtype == torch.float32
    assert float(got) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"key_MD": torch.ones(4, 3)}, r"\[N, D\]"),
        ({"query_id_N": torch.arange(3)}, "ids"),
        ({"query_row_N": torch.arange(4)}, "row numbers"),
        ({"key_valid_M": torch.ones(3, dtype=torch.bool)}, r"key_valid_M \(3,\) must be \[4\]"),
        ({"query_weight_N": torch.ones(5)}, "query_weight_N"),
        ({"own_key_ND": torch.ones(4, 3)}, "own_key_ND"),
        ({"own_negative_ND": torch.ones(4, 3)}, "own_negative_ND"),
        ({"positives": "insde"}, "positives must be one of 'outside', 'inside', not 'insde'"),
        ({"denominator": "none"}, "denominator"),
        ({"reduction": "none"}, "reduction"),
        ({"hardness": -1.0}, "hardness"),
        ({"positive_prior": 1.0}, "positive_prior"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], named: str) -> None:
    arguments = {
        "query_ND": torch.ones(4, 2),
        "key_MD": torch.ones(4, 2),
        "query_id_N": torch.arange(4),
        "key_id_M": torch.arange(4),
    }
    with pytest.raises(ValueError, match=named):
        info_nce(**{**arguments, **changes}, scale=1.0)


TILES: list[TileShape | None] = [None, (1, 1), (2, 3), (4, 5), (3, 100)]
OPTIONS: dict[str, dict[str, Any]] = {
    "L_out": {},
    "L_in": {"positives": "inside"},
    "DCL": {"denominator": "negatives"},
    "DCL, L_in": {"denominator": "negatives", "positives": "inside"},
    "hard": {"hardness": 1.0},
    "debiased": {"positive_prior": 0.1},
    "at the floor": {"positive_prior": 0.9},
    "HCL": {"hardness": 0.5, "positive_prior": 0.1},
    "HCL, L_in": {"hardness": 2.0, "positive_prior": 0.05, "positives": "inside"},
    "HCL, DCL": {"hardness": 1.0, "positive_prior": 0.1, "denominator": "negatives"},
}
OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def case(rng: torch.Generator) -> dict[str, Any]:
    """Queries that are some of the keys; groups, duplicates, a query without positives, one without negatives left."""
    key = unit(rng, 11, 4)
    return {
        "query": key[[1, 4, 5, 0, 8, 10, 2]].clone(),
        "key": key,
        "query_id": torch.tensor([0, 3, 0, 5, 3, 9, 0]),
        "key_id": torch.tensor([5, 0, 0, 0, 3, 0, 7, 7, 3, 3, 9]),
        "query_row": torch.tensor([1, 4, 5, 0, 8, 10, 2]),
        "key_row": torch.arange(11),
        "valid": torch.tensor([1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1]).bool(),
        "own_key": unit(rng, 7, 4),
        "weight": torch.rand(7, generator=rng, dtype=torch.float64),
    }


def call(rows: dict[str, Any], scale: Any, tile: TileShape | None, **options: Any) -> Tensor:
    return info_nce(
        rows["query"],
        rows["key"],
        query_id_N=rows["query_id"],
        key_id_M=rows["key_id"],
        query_row_N=rows.get("query_row"),
        key_row_M=rows.get("key_row"),
        key_valid_M=rows.get("valid"),
        own_key_ND=rows.get("own_key"),
        query_weight_N=rows.get("weight"),
        scale=scale,
        tile=tile,
        **options,
    )


@OPTION
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_option_equals_the_loop(rng: torch.Generator, options: dict[str, Any], tile: TileShape | None) -> None:
    rows = case(rng)
    for scale, reduction in ((3.0, "mean"), (20.0, "sum")):
        got = call(rows, scale, tile, reduction=reduction, **options)
        assert float(got) == pytest.approx(info_nce_loop(**rows, scale=scale, reduction=reduction, **options), rel=1e-11)


@OPTION
@pytest.mark.parametrize("without", ["query_row key_row", "valid", "own_key", "weight", "own_key weight valid"])
def test_every_option_does_without_what_may_be_missing(rng: torch.Generator, options: dict[str, Any], without: str) -> None:
    rows = {name: value for name, value in case(rng).items() if name not in without.split()}
    expected = pytest.approx(info_nce_loop(**rows, scale=9.0, **options), rel=1e-11)
    assert float(call(rows, 9.0, None, **options)) == expected
    assert float(call(rows, 9.0, (3, 4), **options)) == expected


@OPTION
@pytest.mark.parametrize("tile", [None, (2, 3)], ids=str)
def test_every_option_has_an_exact_gradient(rng: torch.Generator, options: dict[str, Any], tile: TileShape | None) -> None:
    rows, scale = case(rng), torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    inputs = tuple(rows[name].requires_grad_() for name in ("query", "key", "own_key"))

    def loss(query: Tensor, key: Tensor, own_key: Tensor, scale: Tensor) -> Tensor:
        return call({**rows, "query": query, "key": key, "own_key": own_key}, scale, tile, **options)

    assert torch.autograd.gradcheck(loss, (*inputs, scale), fast_mode=True)


def test_keys_without_gradient_need_none(rng: torch.Generator) -> None:
    """A queue: the gradient of the queries is the same, whether or not the keys need theirs."""
    rows = case(rng)
    found = []
    for wanted in (False, True):
        query, key = rows["query"].clone().requires_grad_(), rows["key"].clone().requires_grad_(wanted)
        call({**rows, "query": query, "key": key}, 5.0, (2, 3)).backward()
        assert (key.grad is not None) == wanted
        found.append(query.grad)
    assert torch.equal(*found)


def two_views(rng: torch.Generator, count: int = 6) -> dict[str, Any]:
    """SimCLR's 2N rows, each with one positive."""
    z, row = unit(rng, 2 * count), torch.arange(2 * count)
    return {"query": z, "key": z, "query_id": row % count, "key_id": row % count, "query_row": row, "key_row": row}


def test_closed_forms_of_constant_embeddings(rng: torch.Generator) -> None:
    """12 rows, all alike: each has one positive and ten negatives."""
    rows = two_views(rng)
    rows["query"] = rows["key"] = F.normalize(torch.ones(12, 4, dtype=torch.float64), dim=1)
    for options, expected in (
        ({}, math.log(11)),
        ({"positives": "inside"}, math.log(11)),
        ({"denominator": "negatives"}, math.log(10)),
        ({"hardness": 1.0}, math.log(11)),
        ({"hardness": 1.0, "positive_prior": 0.1}, math.log(11)),
    ):
        for tile in (None, (5, 7)):
            assert float(call(rows, 4.0, tile, **options)) == pytest.approx(expected, rel=1e-12)


def test_variants_approach_nt_xent(rng: torch.Generator) -> None:
    rows = two_views(rng)
    z = rows["query"]
    logits = (5.0 * z @ z.T).fill_diagonal_(-torch.inf)
    nt_xent = float(F.cross_entropy(logits, torch.arange(12).roll(6)))
    for options in ({}, {"positives": "inside"}, {"hardness": 1e-9}, {"positive_prior": 1e-9}):
        assert float(call(rows, 5.0, None, **options)) == pytest.approx(nt_xent, rel=1e-7)
    assert float(call(rows, 5.0, None, hardness=1.0)) > nt_xent
    assert float(call(rows, 5.0, None, denominator="negatives")) < nt_xent


def test_inside_is_never_larger_than_outside(rng: torch.Generator) -> None:
    for _ in range(20):
        rows = {**two_views(rng, 9), "query_id": (ids := torch.randint(4, (18,), generator=rng)), "key_id": ids}
        assert float(call(rows, 10.0, None, positives="inside")) <= float(call(rows, 10.0, None)) + 1e-12


def test_own_keys_are_not_negatives_of_others(rng: torch.Generator) -> None:
    """MoCo's equation 1 as a cross-entropy: the own key first, then the queue."""
    query, own, queue = unit(rng, 5), unit(rng, 5), unit(rng, 8)
    logits = 6.0 * torch.cat([(query * own).sum(1, keepdim=True), query @ queue.T], 1)
    expected = F.cross_entropy(logits, torch.zeros(5, dtype=torch.int64))
    ids = {"query_id_N": torch.arange(5), "key_id_M": torch.arange(5, 13), "own_key_ND": own}
    for tile in (None, (2, 3)):
        torch.testing.assert_close(info_nce(query, queue, **ids, scale=6.0, tile=tile), expected, rtol=1e-12, atol=0)  # type: ignore[arg-type]


def test_invalid_keys_are_ignored_even_if_not_finite(rng: torch.Generator) -> None:
    rows = case(rng)
    rows["key"] = torch.where(rows["valid"][:, None], rows["key"], torch.nan).requires_grad_()
    call(rows, 5.0, (2, 3)).backward()
    assert rows["key"].grad is not None
    assert rows["key"].grad.isfinite().all()
    assert bool((rows["key"].grad[~rows["valid"]] == 0).all())


@OPTION
@pytest.mark.parametrize("ids", [[0, 1, 2], [4, 4, 4], [0]])
@pytest.mark.parametrize("tile", [None, (2, 2)], ids=str)
def test_rows_without_positives_or_negatives_are_left_out(
    rng: torch.Generator, options: dict[str, Any], ids: list[int], tile: TileShape | None
) -> None:
    z, id_N, row = unit(rng, len(ids)).requires_grad_(), torch.tensor(ids), torch.arange(len(ids))
    rows = {"query": z, "key": z, "query_id": id_N, "key_id": id_N, "query_row": row, "key_row": row}
    loss = call(rows, 5.0, tile, **options)
    loss.backward()
    expected = info_nce_loop(z.detach(), z.detach(), id_N, id_N, 5.0, query_row=row, key_row=row, **options)
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_no_queries_and_weights_of_zero_give_zero(rng: torch.Generator) -> None:
    rows = case(rng)
    assert call({**rows, "weight": torch.zeros(7)}, 5.0, (2, 3)).item() == 0
    none = {
        name: value[:0] if name in ("query", "query_id", "query_row", "own_key", "weight") else value
        for name, value in rows.items()
    }
    assert call(none, 5.0, None).item() == call(none, 5.0, (2, 3)).item() == 0


def test_row_numbers_may_repeat(rng: torch.Generator) -> None:
    rows = {**case(rng), "key_row": torch.tensor([1, 1, 4, 4, 4, 10, 2, 3, 8, 1, 0])}
    for tile in TILES:
        assert float(call(rows, 3.0, tile)) == pytest.approx(info_nce_loop(**rows, scale=3.0), rel=1e-12)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
def test_symmetric_is_both_directions(rng: torch.Generator, ids: list[int], tile: TileShape | None) -> None:
    a, b, id_N = unit(rng, 6), unit(rng, 6), torch.tensor(ids)
    expected = info_nce_loop(a, b, id_N, id_N, 14.0) + info_nce_loop(b, a, id_N, id_N, 14.0)
    for reduction, factor in (("mean", 1), ("sum", 6)):
        got = symmetric_info_nce(a, b, id_N=id_N, scale=14.0, reduction=reduction, tile=tile)  # type: ignore[arg-type]
        assert float(got) == pytest.approx(factor * expected, rel=1e-12)


@pytest.mark.parametrize("tile", [None, (2, 3)], ids=str)
def test_symmetric_has_an_exact_gradient(rng: torch.Generator, tile: TileShape | None) -> None:
    a, b, id_N = unit(rng, 5, 3).requires_grad_(), unit(rng, 5, 3).requires_grad_(), torch.tensor([0, 1, 1, 2, 0])
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b, s: symmetric_info_nce(a, b, id_N=id_N, scale=s, tile=tile), (a, b, scale))


def test_symmetric_is_the_loss_of_open_clip(rng: torch.Generator) -> None:
    theirs = pytest.importorskip("open_clip.loss").ClipLoss()
    rows = [unit(rng, 40, 16).requires_grad_() for _ in range(2)]
    scale = torch.tensor(14.3, dtype=torch.float64, requires_grad=True)
    expected = theirs(*rows, scale)
    grads = torch.autograd.grad(expected, (*rows, scale))
    for tile in (None, (16, 11)):
        got = symmetric_info_nce(*rows, id_N=torch.arange(40), scale=scale, tile=tile) / 2
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(torch.autograd.grad(got, (*rows, scale)), grads, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("low_precision_backward", [False, True])
def test_tiles_in_low_precision_at_a_low_temperature(
    rng: torch.Generator, dtype: torch.dtype, low_precision_backward: bool
) -> None:
    """Logits from -100 to 100, under autocast in the forward pass, and in the backward pass too where a caller does that."""
    rows = [F.normalize(unit(rng, 64) + 3 * base, dim=1).to(dtype).requires_grad_() for base in unit(rng, 2)]
    wide = [x.detach().double().requires_grad_() for x in rows]
    id_N = torch.arange(64) // 2
    expected = symmetric_info_nce(*wide, id_N=id_N, scale=100.0)
    grads = torch.autograd.grad(expected, wide)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = symmetric_info_nce(*rows, id_N=id_N, scale=100.0, tile=(24, 17))
        if low_precision_backward:
            found = torch.autograd.grad(got, rows)
    if not low_precision_backward:
        found = torch.autograd.grad(got, rows)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    for mine, true in zip(found, grads, strict=True):
        assert mine.dtype == dtype
        error = (mine.double() - true).norm() / true.norm()
        assert error < 2 * torch.finfo(dtype).eps + 1e-4


def test_a_forward_pass_changes_nothing(rng: torch.Generator) -> None:
    rows = case(rng)
    before = {name: value.clone() for name, value in rows.items()}
    first, second = call(rows, 5.0, (2, 3)), call(rows, 5.0, (2, 3))
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[name]) for name, value in rows.items())


@pytest.mark.parametrize("tile", [None, (2, 3)])
def test_an_own_negative_counts_as_so_many_keys_of_its_query_alone(rng: torch.Generator, tile: TileShape | None) -> None:
    query, key, own, ids = unit(rng, 5), unit(rng, 5), unit(rng, 5), torch.arange(5)
    with_own: dict[str, Any] = {"own_negative_ND": own, "own_negative_log_weight": math.log(3), "tile": tile, "scale": 4.0}
    denominators: tuple[Literal["all", "negatives"], ...] = ("all", "negatives")
    for denominator in denominators:
        got = info_nce(query, key, query_id_N=ids, key_id_M=ids, denominator=denominator, **with_own)
        alone = [
            info_nce(
                query[[i]],
                torch.cat([key, own[[i, i, i]]]),
                query_id_N=ids[[i]],
                key_id_M=torch.arange(8),
                denominator=denominator,
                scale=4.0,
            )
            for i in range(5)
        ]
        torch.testing.assert_close(got, torch.stack(alone).mean(), rtol=1e-12, atol=0)


def test_an_own_negative_has_one_weight(rng: torch.Generator) -> None:
    query, ids = unit(rng, 3), torch.arange(3)
    with pytest.raises(ValueError, match="a weight of its own"):
        info_nce(query, query, query_id_N=ids, key_id_M=ids, scale=1.0, own_negative_ND=query, hardness=1.0)
