"""Regression of one unit vector on another, without negatives (BYOL, SimSiam)."""

from __future__ import annotations

from torch import Tensor

from mmcl.core.precision import in_float32


@in_float32
def cosine_regression(prediction_ND: Tensor, target_ND: Tensor) -> Tensor:
    r"""Computes the sum over the rows of $\|p - z\|^2 = 2 - 2 \cos(p, z)$; the targets receive no gradient.

    This is Grill et al., "Bootstrap Your Own Latent", 2020, eq. 2. The loss of SimSiam (Chen & He, "Exploring Simple Siamese
    Representation Learning", 2021, eq. 1), $-\cos(p, z)$, is half of it less 1.

    Args:
        prediction_ND, target_ND: unit-length rows, any floating type; the loss is float32 (float64 for float64 rows).

    Returns:
        A scalar in [0, 4 N].

    Raises:
        ValueError: the shapes differ.
    """
    if prediction_ND.shape != target_ND.shape:
        raise ValueError(f"predictions {tuple(prediction_ND.shape)} and targets {tuple(target_ND.shape)} must be alike")
    return 2 * len(prediction_ND) - 2 * (prediction_ND * target_ND.detach()).sum()
