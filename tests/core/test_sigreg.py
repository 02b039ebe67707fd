"""SIGReg's statistic against its expectation, and its random directions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmcl.core.sigreg import lejepa_loss, random_directions, sigreg


def integral(of: Tensor, t: Tensor) -> float:
    return torch.trapezoid(of, t).item()


@pytest.mark.parametrize("rows", [1, 8, 50])
def test_the_mean_over_normal_rows_does_not_depend_on_their_number(rows: int, rng: torch.Generator) -> None:
    """Of each t, the expected square is (1 - phi^2) / B."""
    t = torch.linspace(-3, 3, 33, dtype=torch.float64)
    normal = (-(t**2) / 2).exp()
    expected = integral((1 - normal**2) * normal, t)
    assert round(expected, 2) == 1.05
    views = torch.randn(50, 80, rows, 3, generator=rng, dtype=torch.float64)
    direction = random_directions(3, 1, 0).double()
    found = torch.stack([sigreg(of_group, direction) for of_group in views])
    assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(len(found))


def test_collapsed_rows_have_the_largest_statistic_of_centered_ones(rng: torch.Generator) -> None:
    t = torch.linspace(-3, 3, 33, dtype=torch.float64)
    normal = (-(t**2) / 2).exp()
    collapsed = sigreg(torch.zeros(2, 20, 3, dtype=torch.float64), random_directions(3, 7, 0).double())
    assert collapsed.item() == pytest.approx(20 * integral((1 - normal) ** 2 * normal, t), rel=1e-9)
    for scale in (0.1, 0.5, 0.9):
        rows = scale * torch.randn(1, 20, 3, generator=rng, dtype=torch.float64)
        assert sigreg(rows, random_directions(3, 7, 0).double()) < collapsed


def test_directions_are_of_unit_length_and_others_in_every_step() -> None:
    first, again, second = (random_directions(5, 40, step) for step in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.isclose(first, second).any(0).all()
    torch.testing.assert_close(first.norm(dim=0), torch.ones(40))


def test_descending_makes_rows_gaussian() -> None:
    """Rows that start on a line spread until their covariance is near the identity."""
    rows = torch.linspace(-0.1, 0.1, 64, dtype=torch.float64)[:, None].repeat(1, 4)
    rows = (rows + 1e-3 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).requires_grad_()
    optimizer = torch.optim.Adam([rows], lr=0.1)
    for step in range(150):
        optimizer.zero_grad()
        lejepa_loss(torch.stack([rows, rows]), random_directions(4, 16, step).double(), large=2, weight=1).backward()
        optimizer.step()
    torch.testing.assert_close(rows.detach().T.cov(), torch.eye(4, dtype=torch.float64), atol=0.2, rtol=0)
