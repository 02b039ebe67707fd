"""Mixed negatives against a loop written from the equations of MoCHi, and their draws."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl import rng as hashes
from mmcl.core.negative_mixing import draw_mixtures, mixed_log_sum_exp

IDS = {"query_id_N": torch.tensor([5, 1, -7, 2**62, 1]), "key_id_M": torch.tensor([1, 9, 1, 8, -2, 1, 1, 1])}
SEED = 2**40
HASHED = int(hashes.hash_integers(SEED).astype("int64"))


def unit(rng: torch.Generator, rows: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(rows, 4, generator=rng, dtype=dtype), dim=1)


def mixtures(q: Tensor, i: int, keys: dict[int, Tensor], hardest: int, pairs: int, with_query: int) -> list[Tensor]:
    """Those of a query, from the keys of other ids."""
    nearest = sorted(keys, key=lambda place: -float(q.detach() @ keys[place]))[:hardest]
    order = sorted(nearest, key=lambda place: int(hashes.hash_integers(SEED, i, 0, place).astype("int64")))
    mixed, count = [], len(order)
    for number in range(pairs if count > 1 else 0):
        turn, slot = divmod(number, count)
        one, other = order[(slot + 1 + turn % (count - 1)) % count], order[slot]
        alpha = float(hashes.uniform(SEED, i, 1 + 2 * turn, other))
        mixed.append(alpha * keys[one] + (1 - alpha) * keys[other])
    for number in range(with_query if count else 0):
        turn, slot = divmod(number, count)
        beta = float(hashes.uniform(SEED, i, 2 + 2 * turn, order[slot])) / 2
        mixed.append(beta * q.detach() + (1 - beta) * keys[order[slot]])
    return [h / h.norm() for h in mixed]


def loop(query: Tensor, key: Tensor, scale: Tensor, *counts: int) -> Tensor:
    sums = []
    for q, i in zip(query, IDS["query_id_N"].tolist(), strict=True):
        others = {place: n for place, (n, j) in enumerate(zip(key, IDS["key_id_M"].tolist(), strict=False)) if j != i}
        total = sum((scale * q @ h).exp() for h in mixtures(q, i, others, *counts))
        sums.append(torch.as_tensor(total, dtype=torch.float64))
    return torch.stack(sums).log()


@pytest.mark.parametrize("counts", [(3, 8, 4), (2, 0, 5), (20, 19, 0), (8, 3, 3), (1, 0, 2)])
@pytest.mark.parametrize("keys", [8, 2, 1])
def test_it_equals_the_loop(rng: torch.Generator, counts: tuple[int, int, int], keys: int) -> None:
    query, key = unit(rng, 5).requires_grad_(), unit(rng, keys)
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    expected = loop(query, key, scale, *counts)
    options: dict[str, Any] = dict(zip(("hardest", "pairs", "with_query"), counts, strict=True))
    options |= {**IDS, "key_id_M": IDS["key_id_M"][:keys], "scale": scale, "seed": HASHED}
    for block in (1, 2**22):
        with mock.patch("mmcl.core.negative_mixing._BLOCK", block):
            found = mixed_log_sum_exp(query, key, **options)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
        kept = expected.isfinite()
        if kept.any():
            grads = [torch.autograd.grad(x[kept].square().sum(), (query, scale), retain_graph=True) for x in (found, expected)]
            torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


def test_what_is_nearest_does_not_depend_on_the_block(rng: torch.Generator) -> None:
    """All keys are equally near but for the rounding of float32, and products of other shapes are rounded otherwise."""
    direction = F.normalize(torch.randn(1, 64, generator=rng, dtype=torch.float64), dim=1)
    across = torch.randn(600, 64, generator=rng, dtype=torch.float64)
    across = F.normalize(across - across @ direction.T * direction, dim=1)
    query, key = direction.float().expand(150, -1), (0.6 * direction + 0.8 * across).float()
    options: dict[str, Any] = {"key_id_M": torch.arange(1000, 1600), "hardest": 40, "pairs": 60, "with_query": 9, "seed": 3}
    ids = torch.arange(150)
    whole = mixed_log_sum_exp(query, key, query_id_N=ids, scale=5.0, **options)
    for part in (torch.arange(1), torch.arange(5, 82), torch.arange(149, 2, -3)):
        found = mixed_log_sum_exp(query[part], key, query_id_N=ids[part], scale=5.0, **options)
        torch.testing.assert_close(found, whole[part], rtol=3e-7, atol=0)


def drawn(place_nH: Tensor, pairs: int, with_query: int) -> list[list[tuple[float, ...]]]:
    own_nH = torch.zeros_like(place_nH, dtype=torch.bool)
    ids = torch.arange(len(place_nH))
    *parts, _ = draw_mixtures(place_nH, own_nH, ids, pairs, with_query, itself=-1, seed=HASHED)
    return [[tuple(one) for one in mixture.tolist()] for mixture in torch.stack([part.double() for part in parts], 2)]


@pytest.mark.parametrize(("pairs", "with_query"), [(50, 50), (31, 7)])
def test_a_key_that_gives_way_to_another_changes_few_mixtures(rng: torch.Generator, pairs: int, with_query: int) -> None:
    places = torch.stack([torch.randperm(500, generator=rng)[:51] for _ in range(40)])
    before = drawn(places[:, :50], pairs, with_query)
    after = drawn(places[:, 1:].flip(1), pairs, with_query)
    most = [0, 0]
    for ours, theirs in zip(before, after, strict=True):
        for kind, part in enumerate((slice(pairs), slice(pairs, None))):
            most[kind] = max(most[kind], len(set(theirs[part]) - set(ours[part])))
    assert 0 < most[0] <= 4
    assert 0 < most[1] <= 2


def test_pairs_are_equally_likely_and_shares_are_uniform() -> None:
    count = 6_000
    found = torch.tensor(drawn(torch.arange(5).expand(count, -1), 1, 1))
    assert (found[:, 0, 0] != found[:, 0, 1]).all()
    cells = (5 * found[:, 0, 0] + found[:, 0, 1]).long().bincount(minlength=25)
    assert (cells[cells > 0] - count / 20).abs().max() < 5 * math.sqrt(count / 20)
    assert (cells > 0).sum() == 20
    for draws in (found[:, 0, 2], 2 * found[:, 1, 2]):
        for k in range(1, 10):
            assert abs((draws < k / 10).float().mean() - k / 10) < 5 * 0.5 / math.sqrt(count)


def test_no_key_is_mixed_again_before_all_were() -> None:
    for mixture in drawn(torch.arange(6).expand(3, -1), 12, 6):
        assert sorted(second for _, second, _ in mixture[:6]) == list(range(6))
        assert sorted(first for first, _, _ in mixture[6:12]) == list(range(6))
        assert len({frozenset(pair[:2]) for pair in mixture[:12]}) == 12
        assert {first for first, _, _ in mixture[12:]} == {-1}


def test_second_derivatives_pass_the_numerical_check(rng: torch.Generator) -> None:
    """Of pairs of keys: mixtures with the query are constants, which would follow it here."""
    leaves = unit(rng, 5).requires_grad_(), torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    key = unit(rng, 8)

    def total(query: Tensor, scale: Tensor) -> Tensor:
        return mixed_log_sum_exp(query, key, **IDS, scale=scale, hardest=8, pairs=6, with_query=0, seed=0)[:1]

    assert torch.autograd.gradcheck(total, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(total, leaves, fast_mode=True)
    transformed = torch.func.grad(lambda q: total(q, leaves[1].detach()).sum())(leaves[0].detach())
    torch.testing.assert_close(transformed, torch.autograd.grad(total(*leaves).sum(), leaves[0])[0], rtol=1e-12, atol=0)


def test_without_keys_there_is_nothing_to_mix(rng: torch.Generator) -> None:
    query = unit(rng, 5).requires_grad_()
    ids = {**IDS, "key_id_M": IDS["key_id_M"][:0]}
    found = mixed_log_sum_exp(query, unit(rng, 0), **ids, scale=4.0, hardest=3, pairs=2, with_query=2, seed=0)
    assert found.tolist() == [-math.inf] * 5


@pytest.mark.parametrize("wrong", [{"hardest": 0}, {"pairs": -1}, {"with_query": -1}, {"scale": 0.0}])
def test_numbers_out_of_range_are_refused(rng: torch.Generator, wrong: dict[str, float]) -> None:
    options: dict[str, Any] = {**IDS, "scale": 4.0, "hardest": 3, "pairs": 2, "with_query": 2, "seed": 0}
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}, and must be"):
        mixed_log_sum_exp(unit(rng, 5), unit(rng, 8), **{**options, **wrong})
