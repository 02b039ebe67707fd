"""Barlow Twins against np.corrcoef, VICReg against a loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mmcl.core.decorrelation import barlow_twins_loss, cross_correlation, vicreg_loss
from mmcl.core.regression import cosine_regression

Loss = Callable[[Tensor, Tensor], Tensor]


def views(rng: torch.Generator, rows: int = 9, dim: int = 4) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, rows, dim, generator=rng, dtype=torch.float64)
    return (3 * a + 1).requires_grad_(), (a + 0.5 * b).requires_grad_()


def test_cross_correlation_is_that_of_numpy(rng: torch.Generator) -> None:
    a, b = views(rng)
    expected = np.corrcoef(a.detach().numpy(), b.detach().numpy(), rowvar=False)[:4, 4:]
    np.testing.assert_allclose(cross_correlation(a, b, eps=0).detach().numpy(), expected, rtol=1e-12)


def test_equal_views_correlate_by_one_at_any_batch_size(rng: torch.Generator) -> None:
    """An unbiased deviation would give (B - 1) / B."""
    for rows in (2, 3, 50):
        a, _ = views(rng, rows)
        torch.testing.assert_close(cross_correlation(a, 2 * a + 3, eps=0).diagonal(), torch.ones(4, dtype=torch.float64))


def test_barlow_twins_is_equation_1(rng: torch.Generator) -> None:
    a, b = views(rng)
    c = np.corrcoef(a.detach().numpy(), b.detach().numpy(), rowvar=False)[:4, 4:]
    off = sum(c[i, j] ** 2 for i in range(4) for j in range(4) if i != j)
    expected = sum((1 - c[i, i]) ** 2 for i in range(4)) + 0.0051 * off
    assert barlow_twins_loss(a, b).item() == pytest.approx(expected, rel=1e-4)  # eps of the published batch norm


def vicreg_loop(a: list[list[float]], b: list[list[float]]) -> float:
    n, d = len(a), len(a[0])
    loss = 25 * sum((a[i][k] - b[i][k]) ** 2 for i in range(n) for k in range(d)) / (n * d)
    for z in (a, b):
        mean = [sum(z[i][k] for i in range(n)) / n for k in range(d)]
        cov = [[sum((z[i][k] - mean[k]) * (z[i][m] - mean[m]) for i in range(n)) / (n - 1) for m in range(d)] for k in range(d)]
        loss += 25 * sum(max(0.0, 1 - math.sqrt(cov[k][k] + 1e-4)) for k in range(d)) / d / 2
        loss += sum(cov[k][m] ** 2 for k in range(d) for m in range(d) if k != m) / d
    return loss


def test_vicreg_is_the_loop(rng: torch.Generator) -> None:
    a, b = (0.3 * view for view in views(rng))
    assert vicreg_loss(a, b).item() == pytest.approx(vicreg_loop(a.tolist(), b.tolist()), rel=1e-12)


@pytest.mark.parametrize("loss", [barlow_twins_loss, vicreg_loss])
def test_gradients_are_exact_and_views_may_be_swapped(loss: Loss, rng: torch.Generator) -> None:
    a, b = views(rng)
    assert torch.autograd.gradcheck(loss, (a, b))
    torch.testing.assert_close(loss(a, b), loss(b, a), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [barlow_twins_loss, vicreg_loss])
def test_constant_and_single_rows_are_finite(loss: Loss) -> None:
    for rows in (1, 5):
        a = torch.ones(rows, 3, requires_grad=True)
        value = loss(a, a.detach())
        value.backward()
        assert value.isfinite()
        assert a.grad is not None
        assert a.grad.isfinite().all()


def test_statistics_are_float32_under_autocast(rng: torch.Generator) -> None:
    a, b = (view.detach().float() for view in views(rng))
    for loss in (barlow_twins_loss, vicreg_loss):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = loss(a, b)
        assert torch.equal(inside, loss(a, b))


def test_cosine_regression_is_the_squared_error_of_unit_vectors(rng: torch.Generator) -> None:
    p, z = (torch.nn.functional.normalize(view.detach(), dim=1).requires_grad_() for view in views(rng))
    loss = cosine_regression(p, z)
    expected = torch.nn.functional.mse_loss(p, z, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()
    assert p.grad is not None
    assert z.grad is None


@pytest.mark.parametrize("loss", [barlow_twins_loss, vicreg_loss, cosine_regression])
def test_views_must_be_alike(loss: Loss) -> None:
    with pytest.raises(ValueError, match="must be alike"):
        loss(torch.ones(3, 2), torch.ones(1, 2))
