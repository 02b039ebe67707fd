"""Counts around each positive against the whole matrix in float64, on rows that float32 products cannot distinguish."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mmcl.evaluate.measures.rank_counts import RankCounts, cosine_rank_counts, positive_pairs, score_rank_counts

RowsAndIds = tuple[Tensor, Tensor, Tensor, Tensor]


def close(count: int, width: int, seed: int) -> Tensor:
    """Rows in clumps: within one they differ in the last bits, or not at all, or in length alone."""
    rng = np.random.default_rng(seed)
    center = np.random.default_rng(99).normal(size=(3, width))[rng.integers(3, size=count)]
    noise = rng.normal(size=(count, width)) * rng.choice([0, 3e-8, 1e-6, 0.3], (count, 1))
    return torch.from_numpy((center + noise) * rng.choice([0.25, 1, 2], (count, 1))).float()


def clumps() -> RowsAndIds:
    rng = np.random.default_rng(0)
    a_ids, b_ids = (torch.from_numpy(rng.integers(20, size=n)) for n in (30, 45))
    return close(30, 37, 1), close(45, 37, 2), a_ids, b_ids


def collapsed() -> RowsAndIds:
    return torch.ones(35, 5), 3 * torch.ones(25, 5), torch.arange(35) % 30, torch.arange(25) // 2


def few_ids() -> RowsAndIds:
    return close(40, 9, 3), close(35, 9, 4), torch.arange(40) % 2, torch.arange(35) % 3


def extreme_lengths() -> RowsAndIds:
    a, b, a_ids, b_ids = clumps()
    return a * torch.tensor([1e-38, 1.0, 1e36]).repeat(10)[:, None], b, a_ids, b_ids


def with_zeros() -> RowsAndIds:
    a, b, a_ids, b_ids = clumps()
    a[::7], b[::5] = 0, 0
    return a, b, a_ids, b_ids


CASES = (clumps, collapsed, few_ids, extreme_lengths, with_zeros)


def cosines(a: Tensor, b: Tensor) -> np.ndarray:
    return (unit(a) @ unit(b).T).float().numpy()


def unit(x: Tensor) -> Tensor:
    norm = x.double().norm(dim=1, keepdim=True)
    return x.double() / torch.where(norm > 0, norm, 1.0)


def expected(score: np.ndarray, query_ids: np.ndarray, key_ids: np.ndarray) -> dict[tuple[int, int], tuple[int, int, int]]:
    counts = {}
    for query, key in np.argwhere(query_ids[:, None] == key_ids[None, :]):
        own, negative = score[query, key], key_ids != query_ids[query]
        tied = negative & (score[query] == own)
        counts[int(query), int(key)] = (int((negative & (score[query] > own)).sum()), int(tied.sum()), int(tied[:key].sum()))
    return counts


def found(counts: RankCounts) -> dict[tuple[int, int], tuple[int, int, int]]:
    assert (counts.query.diff() >= 0).all()
    columns = (counts.query, counts.key, counts.above, counts.tied, counts.before)
    return {(q, k): tuple(numbers) for q, k, *numbers in zip(*(column.tolist() for column in columns), strict=True)}


@pytest.mark.parametrize("chunk_size", [None, 7, 13])
@pytest.mark.parametrize("case", CASES)
def test_counts_of_cosines_are_those_of_the_whole_matrix(case: Callable[[], RowsAndIds], chunk_size: int | None) -> None:
    a, b, a_ids, b_ids = case()
    forward, backward = cosine_rank_counts(a, b, a_ids, b_ids, chunk_size=chunk_size)
    score = cosines(a, b)
    assert found(forward) == expected(score, a_ids.numpy(), b_ids.numpy())
    assert found(backward) == expected(score.T, b_ids.numpy(), a_ids.numpy())
    assert sum(count[1] for count in found(forward).values()) > 0, "the case must have ties"


@pytest.mark.parametrize("chunk_size", [None, 7, 13])
@pytest.mark.parametrize("case", CASES)
def test_counts_of_given_scores_are_those_of_the_whole_matrix(case: Callable[[], RowsAndIds], chunk_size: int | None) -> None:
    a, b, a_ids, b_ids = case()
    score = torch.from_numpy(cosines(a, b)).round(decimals=1)
    given = score.clone()
    counts = score_rank_counts(lambda part: given[part], a_ids, b_ids, chunk_size=chunk_size)
    assert found(counts) == expected(score.numpy(), a_ids.numpy(), b_ids.numpy())
    assert torch.equal(given, score), "what was given is left as it was"


def test_float32_products_alone_would_be_wrong() -> None:
    """So the first test can fail: a product in float32 orders some of these rows otherwise."""
    a, b, a_ids, b_ids = clumps()
    product = (unit(a).float() @ unit(b).float().T).numpy()
    assert expected(product, a_ids.numpy(), b_ids.numpy()) != expected(cosines(a, b), a_ids.numpy(), b_ids.numpy())


def test_low_precision_settings_change_nothing_and_stay() -> None:
    rows = clumps()
    plain = [found(counts) for counts in cosine_rank_counts(*rows)]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert [found(counts) for counts in cosine_rank_counts(*rows)] == plain
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_positive_pairs_are_those_of_the_mask() -> None:
    query, key = torch.tensor([5, 1, 5, 9]), torch.tensor([1, 5, 7, 5, 5])
    assert torch.equal(torch.stack(positive_pairs(query, key), 1), (query[:, None] == key[None, :]).nonzero())


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        score_rank_counts(lambda part: torch.tensor([[torch.nan, 1.0]]), torch.tensor([0]), torch.tensor([0, 1]))


def test_the_matrix_of_all_scores_never_exists() -> None:
    """12 000 x 12 000 scores would be 550 MB, and a mask of the positives 140 MB."""
    script = """
import resource, torch
from mmcl.evaluate.measures.rank_counts import cosine_rank_counts
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
a, b = (torch.randn(12000, 8, generator=generator) for _ in range(2))
cosine_rank_counts(a[:1500], b[:1500], torch.arange(1500), torch.arange(1500))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
forward, _ = cosine_rank_counts(a, b, torch.arange(12000), torch.arange(12000))
assert 5500 < forward.above.double().mean() < 6500
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    finished = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True)
    assert int(finished.stdout) < 60
