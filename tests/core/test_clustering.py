"""Marginals of the Sinkhorn assignment, and prototypes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmcl.core.clustering import Prototypes, sinkhorn


def scores(rng: torch.Generator, rows: int = 12, clusters: int = 4) -> torch.Tensor:
    return 2 * torch.rand(rows, clusters, generator=rng, dtype=torch.float64) - 1


def test_codes_are_balanced_in_the_limit(rng: torch.Generator) -> None:
    code_NK = sinkhorn(scores(rng), epsilon=0.5, iterations=100)
    torch.testing.assert_close(code_NK.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(code_NK.sum(0), torch.full((4,), 3.0, dtype=torch.float64))


def test_is_the_published_alternation(rng: torch.Generator) -> None:
    score_NK, epsilon = scores(rng), 0.05
    q_KN = torch.exp(score_NK / epsilon).T
    q_KN /= q_KN.sum()
    for _ in range(3):
        q_KN /= q_KN.sum(1, keepdim=True) * 4
        q_KN /= q_KN.sum(0, keepdim=True) * 12
    torch.testing.assert_close(sinkhorn(score_NK, epsilon=epsilon), (12 * q_KN).T, rtol=1e-10, atol=1e-14)


def test_a_small_epsilon_does_not_overflow(rng: torch.Generator) -> None:
    code_NK = sinkhorn(scores(rng).float(), epsilon=1e-3)
    assert code_NK.isfinite().all()
    torch.testing.assert_close(code_NK.sum(1), torch.ones(12))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_any_size_are_balanced_in_low_precision(rng: torch.Generator, dtype: torch.dtype) -> None:
    """At 60,000 and an epsilon of 0.05, the exponents are beyond a million."""
    code_NK = sinkhorn((60_000 * scores(rng)).to(dtype))
    assert code_NK.dtype == torch.float32
    assert code_NK.isfinite().all()
    torch.testing.assert_close(code_NK.sum(1), torch.ones(12))


def test_codes_have_no_gradient(rng: torch.Generator) -> None:
    assert not sinkhorn(scores(rng).requires_grad_()).requires_grad


def test_prototypes_are_unit_vectors_without_bias() -> None:
    prototypes = Prototypes(7, 3)
    assert [name for name, _ in prototypes.named_parameters()] == ["weight"]
    with torch.no_grad():
        prototypes.weight.mul_(5)
    prototypes.normalize()
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(7))
    rows = F.normalize(torch.randn(4, 3), dim=1)
    assert prototypes(rows).abs().max() <= 1 + 1e-6


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_prototypes_get_zeros_and_rows_their_gradient(frozen: bool) -> None:
    prototypes, rows = Prototypes(7, 3), torch.ones(4, 3, requires_grad=True)
    prototypes(rows, frozen=frozen).square().sum().backward()
    assert prototypes.weight.grad is not None
    assert prototypes.weight.grad.any() == (not frozen)
    assert rows.grad is not None
    assert rows.grad.any()
