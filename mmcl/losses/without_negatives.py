"""Losses of two views that need no negatives: thin calls of the core."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.core import decorrelation
from mmcl.core.clustering import sinkhorn
from mmcl.core.precision import in_float32, unit_rows
from mmcl.core.regression import cosine_regression
from mmcl.losses.arguments import check_numbers, check_positive, check_rows, inverse


def barlow_twins_loss(a: Tensor, b: Tensor, *, off_diagonal: float = 0.0051) -> Tensor:
    r"""Barlow Twins: the cross-correlation of two views is brought to the identity.

    $$\ell = \sum_i (1 - C_{ii})^2 + \lambda \sum_i \sum_{j \ne i} C_{ij}^2$$

    Args:
        a, b: two views; row i of each belongs to the same sample. Not scaled.
        off_diagonal: $\lambda$.

    Shape:
        a, b [N, D]; returns a scalar.

    Requirements:
        Wide rows (8192 in the paper). C is that of the whole batch, with biased deviations: see `gathered`.

    Relations:
        `vicreg_loss` decorrelates each view by itself.

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
    r"""VICReg: two views agree, every dimension varies, and no two vary together.

    $$\ell = \lambda \, s(a, b) + \mu \, (v(a) + v(b)) / 2 + \nu \, (c(a) + c(b))$$

    with the mean square difference s, the hinge v of deviations below 1, and the squared covariances c of different dimensions,
    divided by D.

    Args:
        a, b: two views; row i of each belongs to the same sample. Not scaled.
        invariance, variance, covariance: $\lambda$, $\mu$, $\nu$.

    Shape:
        a, b [N, D]; returns a scalar.

    Requirements:
        Wide rows (8192 in the paper). Statistics are those of the whole batch: see `gathered`.

    Relations:
        As in the published code, s is the mean over all N D numbers, and the hinges of both views are averaged.
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


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    r"""BYOL: the prediction of one view regresses on the teacher's row of the other.

    $$\ell = \frac{1}{N} \sum_i \Big\| \frac{p_i}{\|p_i\|} - \frac{z_i}{\|z_i\|} \Big\|^2
    = \frac{1}{N} \sum_i (2 - 2 \cos(p_i, z_i))$$

    Args:
        prediction: the student's, behind the predictor; scaled to unit length.
        target: the teacher's, row i of the same sample; scaled to unit length. No gradient reaches it.

    Shape:
        prediction, target [N, D]; returns a scalar from 0 to 4.

    Requirements:
        A predictor and a momentum teacher: without them all rows become one, at a loss of 0. The paper's loss is the sum of
        both directions, `byol_loss(predict(a), teach(b)) + byol_loss(predict(b), teach(a))`.

    Relations:
        SimSiam's loss, $-\cos$ (Chen & He, 2021, eq. 1), is half of it less 1, with the student's own rows as targets.

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
    r"""SwAV: every crop predicts the cluster to which the other crop of its sample was assigned.

    $$\ell = \frac{1}{2N} \sum_i \big( H(q_{a_i}, p_{b_i}) + H(q_{b_i}, p_{a_i}) \big)$$

    with the cross-entropy H, the codes q, balanced over the batch (`mmcl.core.clustering.sinkhorn`), and the softmax p of the
    cosines with the prototypes, over T.

    Args:
        a, b: rows of the two large crops; scaled to unit length.
        small: rows of further crops, which predict the codes of both and give none; scaled to unit length.
        prototypes: the clusters, learned; scaled to unit length.
        temperature: T of the predictions, a number above 0 or a one-element tensor.
        epsilon, iterations: of the codes; no gradient flows through them.

    Shape:
        a, b and each of small [N, D]; prototypes [K, D]; returns a scalar.

    Requirements:
        A batch that is not small beside K: codes are balanced over it. They need the rows of all processes: see `gathered`.

    Relations:
        With small crops, the mean over the predictions of each code. Constant rows give ln K.

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
def _cosines(rows: Tensor, prototypes: Tensor) -> Tensor:
    return unit_rows(rows) @ unit_rows(prototypes).T
