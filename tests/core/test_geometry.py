"""Geometry of rows against NumPy loops, and for inputs with known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmcl.core.geometry import (
    alignment,
    effective_rank,
    feature_std,
    is_collapsed,
    modality_gap,
    pair_similarities,
    uniformity,
)


def rows(count: int = 40, width: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, width, generator=generator), dim=1)


A, B = rows(seed=0), rows(seed=1)
ID = torch.tensor([i % 31 for i in range(40)])


def test_alignment_and_gap_are_those_of_a_loop() -> None:
    a, b = A.double().numpy(), B.double().numpy()
    assert alignment(A, B).item() == pytest.approx(np.mean([np.sum((x - y) ** 2) for x, y in zip(a, b, strict=True)]))
    assert modality_gap(A, B).item() == pytest.approx(np.sqrt(np.sum((a.mean(0) - b.mean(0)) ** 2)))


def test_uniformity_is_that_of_a_loop() -> None:
    a = A.double().numpy()
    potentials = [math.exp(-2 * np.sum((a[i] - a[j]) ** 2)) for i in range(40) for j in range(i)]
    assert uniformity(A).item() == pytest.approx(math.log(np.mean(potentials)))


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (5, 5)])
def test_effective_rank_is_that_of_the_singular_values(shape: tuple[int, int]) -> None:
    x = rows(*shape) * torch.linspace(0.1, 3, shape[1])
    singular = np.linalg.svd(x.double().numpy(), compute_uv=False)
    share = singular / singular.sum()
    assert effective_rank(x).item() == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-6)


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_effective_rank_counts_equal_axes(dimensions: int) -> None:
    assert effective_rank(torch.eye(8)[:dimensions].repeat(3, 1)).item() == pytest.approx(dimensions)


def test_feature_std_is_that_of_numpy() -> None:
    assert feature_std(A).item() == pytest.approx(A.double().numpy().std(0).mean() * math.sqrt(7))


def test_pair_similarities_are_those_of_a_loop() -> None:
    a, b = A.double().numpy(), B.double().numpy()
    positive, negative = pair_similarities(A, B, ID)
    assert positive.item() == pytest.approx(np.mean([a[i] @ b[i] for i in range(40)]))
    expected = np.mean([a[i] @ b[j] for i in range(40) for j in range(40) if ID[i] != ID[j]])
    assert negative.item() == pytest.approx(expected)
    assert math.isnan(pair_similarities(A, B, torch.zeros(40))[1])


def test_rows_that_fill_the_sphere() -> None:
    sphere = rows(4000, 32)
    assert uniformity(sphere).item() == pytest.approx(-4 + 8 / 32, abs=0.05)
    assert feature_std(sphere).item() == pytest.approx(1, abs=0.01)
    assert effective_rank(sphere).item() == pytest.approx(32, rel=0.01)
    assert not is_collapsed(sphere)


def test_rows_that_are_one() -> None:
    point = A[:1].expand(40, -1)
    assert alignment(point, point).item() == 0
    assert uniformity(point).item() == pytest.approx(0, abs=1e-6)
    assert feature_std(point).item() == pytest.approx(0, abs=1e-6)
    assert effective_rank(point).item() == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="needs at least 2 rows, got 1"):
        uniformity(A[:1])


@pytest.mark.parametrize(("noise", "collapsed"), [(0.0, True), (0.01, True), (0.1, False), (1.0, False)])
def test_collapse_to_a_point(noise: float, collapsed: bool) -> None:
    """At 0.1 the average cosine is 0.99, as of untrained networks."""
    cone = normalize(rows(1, 64) + noise * rows(512, 64), dim=1)
    assert is_collapsed(cone) == collapsed


def test_collapse_to_a_line() -> None:
    line = A[:1] * torch.tensor([1.0, -1.0]).repeat(20)[:, None]
    assert feature_std(line).item() > 0.5
    assert is_collapsed(line)
    assert not is_collapsed(A[:2].repeat(20, 1))
