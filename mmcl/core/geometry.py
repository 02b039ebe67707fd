"""Geometry of unit-length embeddings on the sphere, with measures that detect collapse.

Rows are [N, D] of unit length. All functions compute in float64 and return a scalar without a gradient. They raise ValueError
if there are no rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_COLLAPSED_STD = 0.02
_COLLAPSED_RANK = 1.1


@torch.no_grad()
def alignment(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Mean squared distance of positive pairs, 0 to 4: 0 if the two views of every sample have the same embedding.

    Wang & Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere", 2020,
    equation 4 with alpha = 2.
    """
    return (_double(a_ND) - b_ND.double()).square().sum(1).mean()


@torch.no_grad()
def uniformity(x_ND: Tensor) -> Tensor:
    """Log of the mean Gaussian potential exp(-2 d^2) of all pairs: 0 for one point, about -4 + 8 / D on a whole sphere.

    Wang & Isola, 2020, equation 5 with t = 2.

    Raises:
        ValueError: there are fewer than two rows.
    """
    rows, x_ND = len(x_ND), _double(x_ND, at_least=2)
    exponent = (4 * (x_ND @ x_ND.T) - 4).fill_diagonal_(-math.inf)  # the squared distance is 2 - 2 cos
    return exponent.flatten().logsumexp(0) - math.log(rows * (rows - 1))


@torch.no_grad()
def effective_rank(x_ND: Tensor) -> Tensor:
    """Effective number of dimensions of the rows, 1 to min(N, D): the exponential of the entropy of the singular values.

    Roy & Vetterli, "The effective rank: A measure of effective dimensionality", 2007, definition 1. Rows may have any length;
    the rank of zero rows is 0.

    Raises:
        ValueError: a row is not finite.
    """
    x_ND = _double(x_ND)
    if not bool(x_ND.isfinite().all()):
        raise ValueError("the rows of effective_rank must be finite numbers")
    wide = x_ND.shape[1] > len(x_ND)
    gram = x_ND @ x_ND.T if wide else x_ND.T @ x_ND
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    total = singular.sum()
    return torch.where(total > 0, torch.special.entr(singular / total).sum().exp(), 0)


@torch.no_grad()
def feature_std(x_ND: Tensor) -> Tensor:
    """Mean standard deviation of a coordinate times sqrt(D): 0 for one point, about 1 for rows that fill the sphere.

    Chen & He, "Exploring Simple Siamese Representation Learning", 2021, section 4.1.
    """
    return _double(x_ND).std(0, correction=0).mean() * math.sqrt(x_ND.shape[1])


@torch.no_grad()
def pair_similarities(a_ND: Tensor, b_ND: Tensor, id_N: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine of the positive pairs (a_i, b_i), and of the pairs (a_i, b_j) with different ids (NaN if there are none).

    Takes time linear in N, because the sum over all pairs is the product of the sums.
    """
    a_ND, b_ND = _double(a_ND), b_ND.double()
    group_N = torch.unique(id_N, return_inverse=True)[1]
    sums = [x_ND.new_zeros(len(x_ND), x_ND.shape[1]).index_add_(0, group_N, x_ND) for x_ND in (a_ND, b_ND)]
    equal_pairs = torch.bincount(group_N).square().sum()
    different = (a_ND.sum(0) * b_ND.sum(0)).sum() - (sums[0] * sums[1]).sum()
    count = len(a_ND) ** 2 - equal_pairs
    return (a_ND * b_ND).sum(1).mean(), torch.where(count > 0, different / count, math.nan)


@torch.no_grad()
def modality_gap(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Distance between the means of two modalities, 0 to 2.

    Liang et al., "Mind the Gap: Understanding the Modality Gap in Multi-modal Contrastive Representation Learning", 2022,
    section 4.2.
    """
    distance: Tensor = (_double(a_ND).mean(0) - _double(b_ND).mean(0)).norm()
    return distance


def is_collapsed(x_ND: Tensor) -> bool:
    """True if the rows have collapsed, so that they no longer distinguish samples; see `is_collapse`."""
    return is_collapse(float(feature_std(x_ND)), float(effective_rank(x_ND)))


def is_collapse(feature_std: float, effective_rank: float) -> bool:
    """True if the spread and rank are those of rows close to a single point, or to a line through the origin.

    The bounds are an average cosine above 0.9996 or an effective rank below 1.1. The embeddings of an untrained network form a
    narrow cone, but are far from these bounds.
    """
    return feature_std < _COLLAPSED_STD or effective_rank < _COLLAPSED_RANK


def _double(x_ND: Tensor, at_least: int = 1) -> Tensor:
    if len(x_ND) < at_least:
        raise ValueError(f"needs at least {at_least} rows, got {len(x_ND)}")
    return x_ND.double()
