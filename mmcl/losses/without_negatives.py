"""Losses of two views without negatives: thin wrappers of `mmcl.core`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.core import decorrelation, sigreg
from mmcl.core.clustering import sinkhorn
from mmcl.core.precision import in_float32, unit_rows
from mmcl.core.regression import cosine_regression
from mmcl.losses.arguments import check_numbers, check_positive, check_rows, check_sigreg, inverse


def barlow_twins_loss(a: Tensor, b: Tensor, *, off_diagonal: float = 0.0051) -> Tensor:
    r"""Barlow Twins: makes the cross-correlation matrix of two views close to the identity.

    $$\ell = \sum_i (1 - C_{ii})^2 + \lambda \sum_i \sum_{j \ne i} C_{ij}^2$$

    Args:
        a, b: two views; row i of each belongs to the same sample. Not scaled.
        off_diagonal: $\lambda$.

    Shape:
        a, b [N, D]; returns a scalar.

    Requirements:
        Wide rows (8192 in the paper). C is computed over the whole batch, with biased standard deviations; on several
        processes, use `gathered`.

    Relations:
        `vicreg_loss` decorrelates each view separately.

    Raises:
        UserError: shapes, dtypes or devices do not match, or a value is not finite.

    Source:
        Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", 2021, eq. 1 and 2.

    Example:
        >>> a = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> round(barlow_twins_loss(a, a).item(), 4)  # two dimensions without correlation
        0.0
        >>> round(barlow_twins_loss(a, -a).item(), 4)
        7.9999
    """
    check_rows({"a": a, "b": b})
    check_numbers(off_diagonal=off_diagonal)
    return decorrelation.barlow_twins_loss(a, b, off_diagonal=off_diagonal)


def vicreg_loss(a: Tensor, b: Tensor, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> Tensor:
    r"""VICReg: pulls two views together, keeps the variance of every dimension, and decorrelates the dimensions.

    $$\ell = \lambda \, s(a, b) + \mu \, (v(a) + v(b)) / 2 + \nu \, (c(a) + c(b))$$

    where s is the mean squared difference, v the hinge loss of standard deviations below 1, and c the sum of squared
    covariances of different dimensions, divided by D.

    Args:
        a, b: two views; row i of each belongs to the same sample. Not scaled.
        invariance, variance, covariance: $\lambda$, $\mu$, $\nu$.

    Shape:
        a, b [N, D]; returns a scalar.

    Requirements:
        Wide rows (8192 in the paper). Statistics are computed over the whole batch; on several processes, use `gathered`.

    Relations:
        As in the published code, s is the mean over all N D values, and the hinge losses of both views are averaged.
        `barlow_twins_loss` compares the dimensions of one view with those of the other.

    Raises:
        UserError: shapes, dtypes or devices do not match, or a value is not finite.

    Source:
        Bardes et al., "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", 2022, eq. 1 to 6.

    Example:
        >>> a = 2 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> round(vicreg_loss(a, a).item(), 4)  # equal, varied and without covariance
        0.0
    """
    check_rows({"a": a, "b": b})
    check_numbers(invariance=invariance, variance=variance, covariance=covariance)
    return decorrelation.vicreg_loss(a, b, invariance=invariance, variance=variance, covariance=covariance)


def lejepa_loss(
    a: Tensor,
    b: Tensor,
    small: Sequence[Tensor] = (),
    *,
    weight: float = 0.05,
    slices: int = 1024,
    knots: int = 17,
    upper: float = 3.0,
    step: int = 0,
) -> Tensor:
    r"""LeJEPA: pulls views together, and the rows of a batch towards an isotropic Gaussian distribution (SIGReg).

    $$\ell = \frac{1 - \lambda}{V N D} \sum_{v, i} \| z_{v i} - \tfrac{1}{2} (a_i + b_i) \|^2
    + \frac{\lambda N}{V M} \sum_{v, m} \int_{-c}^{c} \Big| \frac{1}{N} \sum_i e^{i t \langle z_{v i}, u_m \rangle}
    - e^{-t^2 / 2} \Big|^2 e^{-t^2 / 2} \, dt$$

    for V views z, of which a and b are two, and M random directions u.

    Args:
        a, b: two large views; row i of each belongs to the same sample. Not scaled.
        small: rows of additional small crops, which are compared with the mean of a and b; not scaled.
        weight: $\lambda$, from 0 to 1.
        slices: M.
        knots, upper: points of the trapezoidal rule from 0 to c, and c.
        step: number from which the directions are drawn; give that of the training step, the same on all processes.

    Shape:
        a, b and each of small [N, D]; returns a scalar.

    Requirements:
        Distributions are those of the whole batch; on several processes, use `gathered`.

    Relations:
        With `weight=0`, equal rows have a loss of 0: only SIGReg prevents collapse.

    Raises:
        UserError: shapes, dtypes or devices do not match, a value is not finite, or an option is out of its range.

    Source:
        Balestriero and LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics", 2025.

    Example:
        >>> a = torch.zeros(8, 2)  # collapsed
        >>> round(lejepa_loss(a, a, weight=1.0).item(), 4) > round(lejepa_loss(*torch.randn(2, 8, 2), weight=1.0).item(), 4)
        True
    """
    views = {"a": a, "b": b, **{f"small[{number}]": rows for number, rows in enumerate(small)}}
    check_rows(views)
    check_sigreg(weight=weight, slices=slices, knots=knots, upper=upper)
    directions = sigreg.random_directions(a.shape[1], slices, step).to(a.device)
    return sigreg.lejepa_loss(_stacked(*views.values()), directions, large=2, weight=weight, knots=knots, upper=upper)


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    r"""BYOL: regresses the prediction of one view on the teacher's embedding of the other view.

    $$\ell = \frac{1}{N} \sum_i \Big\| \frac{p_i}{\|p_i\|} - \frac{z_i}{\|z_i\|} \Big\|^2
    = \frac{1}{N} \sum_i (2 - 2 \cos(p_i, z_i))$$

    Args:
        prediction: output of the student's predictor; scaled to unit length.
        target: output of the teacher, row i of the same sample; scaled to unit length. Receives no gradient.

    Shape:
        prediction, target [N, D]; returns a scalar from 0 to 4.

    Requirements:
        A predictor and a momentum teacher; without them, embeddings collapse to a point with a loss of 0. The paper's loss is
        the sum of both directions, `byol_loss(predict(a), teach(b)) + byol_loss(predict(b), teach(a))`.

    Relations:
        SimSiam's loss, $-\cos$ (Chen & He, 2021, eq. 1), is half of this loss minus 1, with the student's own rows as targets.

    Raises:
        UserError: shapes, dtypes or devices do not match, or a value is not finite.

    Source:
        Grill et al., "Bootstrap Your Own Latent", 2020, eq. 2.

    Example:
        >>> round(byol_loss(torch.eye(3), 5 * torch.eye(3)).item(), 4)
        0.0
        >>> round(byol_loss(torch.eye(3), -torch.eye(3)).item(), 4)
        4.0
    """
    check_rows({"prediction": prediction, "target": target})
    return cosine_regression(unit_rows(prediction), unit_rows(target)) / max(len(prediction), 1)


def swav_loss(
    a: Tensor,
    b: Tensor,
    small: Sequence[Tensor] = (),
    *,
    prototypes: Tensor,
    temperature: Tensor | float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
) -> Tensor:
    r"""SwAV: predicts from every crop the cluster assigned to another crop of the same sample.

    $$\ell = \frac{1}{2N} \sum_i \big( H(q_{a_i}, p_{b_i}) + H(q_{b_i}, p_{a_i}) \big)$$

    where H is the cross-entropy, q the codes, balanced over the batch (`mmcl.core.clustering.sinkhorn`), and p the softmax of
    the cosines with the prototypes, divided by T.

    Args:
        a, b: rows of the two large crops; scaled to unit length.
        small: rows of additional crops, which predict the codes of both large crops; scaled to unit length.
        prototypes: learned cluster centers; scaled to unit length.
        temperature: T of the predictions, a number above 0 or a one-element tensor.
        epsilon, iterations: Sinkhorn options for the codes, which receive no gradient.

    Shape:
        a, b and each of small [N, D]; prototypes [K, D]; returns a scalar.

    Requirements:
        A batch that is not small compared with K, because codes are balanced over it. Codes need the rows of all processes; on
        several processes, use `gathered`.

    Relations:
        With small crops, the loss is the mean over the predictions of each code. Constant rows give ln K.

    Raises:
        UserError: shapes, dtypes or devices do not match, or a value is not finite.

    Source:
        Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020, eq. 2 and 6.

    Example:
        >>> round(swav_loss(torch.eye(3), torch.eye(3), prototypes=torch.eye(3), temperature=0.5).item(), 4)
        0.2395
    """
    crops = {"a": a, "b": b, **{f"small[{number}]": rows for number, rows in enumerate(small)}}
    check_rows(crops)
    check_rows({"a": a, "prototypes": prototypes}, paired=False)
    check_positive(epsilon=epsilon)
    scale = inverse(temperature, a)
    score = {name: _cosines(rows, prototypes) for name, rows in crops.items()}
    codes = {name: sinkhorn(score[name], epsilon=epsilon, iterations=iterations) for name in ("a", "b")}
    losses = [
        F.cross_entropy(scale * score[crop], code, reduction="sum")
        for name, code in codes.items()
        for crop in crops
        if crop != name
    ]
    return torch.stack(losses).mean() / max(len(a), 1)


@in_float32
def _stacked(*views: Tensor) -> Tensor:
    return torch.stack(views)


@in_float32
def _cosines(rows: Tensor, prototypes: Tensor) -> Tensor:
    return unit_rows(rows) @ unit_rows(prototypes).T
