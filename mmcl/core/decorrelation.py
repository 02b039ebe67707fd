"""Decorrelation losses of two views, Barlow Twins and VICReg, which compare dimensions instead of pairs of rows.

Both need the statistics of the whole batch, so they take the rows of all processes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mmcl.core.precision import in_float32


@in_float32
def barlow_twins_loss(a_BD: Tensor, b_BD: Tensor, *, off_diagonal: float = 0.0051) -> Tensor:
    r"""$\sum_i (1 - C_{ii})^2 + \lambda \sum_i \sum_{j \ne i} C_{ij}^2$ of the cross-correlation matrix of two views.

    Zbontar et al., "Barlow Twins", 2021, eq. 1. Statistics are float32 (float64 for float64 rows) whatever the autocast type.

    Args:
        a_BD, b_BD: rows of all processes, at their own length.
        off_diagonal: $\lambda$, the weight of the terms off the diagonal.

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes differ.
    """
    c_DD = cross_correlation(a_BD, b_BD)
    diagonal_D = c_DD.diagonal()
    return (1 - diagonal_D).square().sum() + off_diagonal * (c_DD.square().sum() - diagonal_D.square().sum())


@in_float32
def cross_correlation(a_BD: Tensor, b_BD: Tensor, *, eps: float = 1e-5) -> Tensor:
    """C of eq. 2 of the paper, [D, D]: every column centered and divided by its *biased* deviation, so that equal views give 1.

    `eps` is added to the variances, as the batch norm of the published code does.
    """
    _check_alike(a_BD, b_BD)
    return _standardized(a_BD, eps).T @ _standardized(b_BD, eps) / max(len(a_BD), 1)


@in_float32
def vicreg_loss(
    a_BD: Tensor, b_BD: Tensor, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> Tensor:
    r"""Invariance + variance + covariance, weighted: $\lambda s(a, b) + \mu (v(a) + v(b)) + \nu (c(a) + c(b))$.

    Bardes et al., "VICReg", 2022, eqs. 1 to 6: the mean square difference; a hinge that keeps every deviation above 1; the
    squared covariances of different dimensions, by D. As in the published code, the hinge terms of both views are averaged and
    not added. Statistics are float32 (float64 for float64 rows).

    Args:
        a_BD, b_BD: rows of all processes, at their own length.
        invariance, variance, covariance: the weights.

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes differ.
    """
    _check_alike(a_BD, b_BD)
    loss = invariance * (a_BD - b_BD).square().sum() / max(a_BD.numel(), 1)
    for row_BD in (a_BD, b_BD):
        covariance_DD = _covariance(row_BD)
        variance_D = covariance_DD.diagonal()
        hinge = F.relu(1 - (variance_D + 1e-4).sqrt()).mean()
        shared = (covariance_DD.square().sum() - variance_D.square().sum()) / row_BD.shape[1]
        loss = loss + variance * hinge / 2 + covariance * shared
    return loss


def _standardized(row_BD: Tensor, eps: float) -> Tensor:
    centered_BD = row_BD - row_BD.mean(0)
    return centered_BD / (centered_BD.square().mean(0) + eps).sqrt()


def _covariance(row_BD: Tensor) -> Tensor:
    """Unbiased covariance, [D, D]; zero for a single row."""
    centered_BD = row_BD - row_BD.mean(0)
    return centered_BD.T @ centered_BD / max(len(row_BD) - 1, 1)


def _check_alike(a_BD: Tensor, b_BD: Tensor) -> None:
    if a_BD.shape != b_BD.shape:
        raise ValueError(f"views {tuple(a_BD.shape)} and {tuple(b_BD.shape)} must be alike")
