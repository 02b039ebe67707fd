"""info_nce against a slow loop in float64, and the identities that it must keep."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.core.info_nce import info_nce


def unit(rng: torch.Generator, rows: int, dim: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(rows, dim, generator=rng, dtype=torch.float64), dim=1).to(dtype)


def loop(query: Tensor, key: Tensor, query_id: Tensor, key_id: Tensor, scale: float, same: set[tuple[int, int]]) -> float:
    """Equation 2 of "Supervised Contrastive Learning", one number at a time."""
    losses = []
    for i in range(len(query)):
        logits = {j: scale * float(query[i] @ key[j]) for j in range(len(key)) if (i, j) not in same}
        positives = [j for j in logits if query_id[i] == key_id[j]]
        if positives:
            log_total = math.log(sum(math.exp(v) for v in logits.values()))
            losses.append(-sum(logits[p] - log_total for p in positives) / len(positives))
    return sum(losses) / len(losses) if losses else 0.0


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
    same = {(i, i) for i in range(6)} if drop_self else set()
    assert float(got) == pytest.approx(loop(query, key, id_N, id_N, scale, same), rel=1e-12, abs=1e-12)


def test_more_keys_than_queries(rng: torch.Generator) -> None:
    query, key = unit(rng, 3), unit(rng, 9)
    query_id, key_id = torch.tensor([0, 1, 9]), torch.tensor([5, 0, 0, 1, 2, 3, 4, 6, 7])
    got = info_nce(query, key, query_id_N=query_id, key_id_M=key_id, scale=10.0)
    # The third query has no positive and is left out of the mean.
    assert float(got) == pytest.approx(loop(query, key, query_id, key_id, 10.0, set()), rel=1e-12)


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
    expected = loop(query.double(), key.double(), id_N, id_N, 100.0, set())
    assert got.dtype == torch.float32
    assert float(got) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"key_MD": torch.ones(4, 3)}, r"\[N, D\]"),
        ({"query_id_N": torch.arange(3)}, "ids"),
        ({"query_row_N": torch.arange(4)}, "row numbers"),
    ],
)
def test_wrong_shapes_are_named(changes: dict[str, Tensor], named: str) -> None:
    arguments = {
        "query_ND": torch.ones(4, 2),
        "key_MD": torch.ones(4, 2),
        "query_id_N": torch.arange(4),
        "key_id_M": torch.arange(4),
    }
    with pytest.raises(ValueError, match=named):
        info_nce(**{**arguments, **changes}, scale=1.0)  # type: ignore[arg-type]
