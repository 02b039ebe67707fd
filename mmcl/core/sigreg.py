"""LeJEPA's loss: views of a sample agree, and the rows of a batch are distributed as an isotropic Gaussian.

SIGReg tests that on random directions: the empirical characteristic function of the rows' projections on each is compared with
that of a standard normal variable. Its means are over the whole batch, so it takes the rows of all processes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.core.precision import in_float32


@in_float32
def lejepa_loss(
    row_VBD: Tensor, direction_DM: Tensor, *, large: int, weight: float = 0.05, knots: int = 17, upper: float = 3.0
) -> Tensor:
    r"""$(1 - \lambda) \cdot$ mean square distance of all views from the mean of the large ones $+ \lambda \cdot$ `sigreg`.

    Balestriero and LeCun, "LeJEPA", 2025; as in its published code, distances are means over all dimensions.

    Args:
        row_VBD: rows of all processes, at their own length, of V views.
        direction_DM: M directions of unit length.
        large: number of views, the first ones, whose mean all views are compared with.
        weight: $\lambda$, from 0 to 1.
        knots, upper: as in `sigreg`.

    Returns:
        A scalar.
    """
    center_BD = row_VBD[:large].mean(0)
    distance = (row_VBD - center_BD).square().sum() / max(row_VBD.numel(), 1)
    return (1 - weight) * distance + weight * sigreg(row_VBD, direction_DM, knots=knots, upper=upper)


@in_float32
def sigreg(row_VBD: Tensor, direction_DM: Tensor, *, knots: int = 17, upper: float = 3.0) -> Tensor:
    r"""Epps and Pulley's statistic of normality, the mean over views and directions.

    $$T = B \int_{-c}^{c} \Big| \frac{1}{B} \sum_b e^{i t x_b} - e^{-t^2/2} \Big|^2 e^{-t^2/2} \, dt$$

    for the projections $x_b$ of the rows on a direction. The integrand is even, so that the trapezoidal rule on
    $[0, c]$ is doubled. Epps and Pulley, "A test for normality based on the empirical characteristic function", 1983;
    Balestriero and LeCun, "LeJEPA", 2025.

    Args:
        row_VBD: rows of all processes, at their own length, of V views.
        direction_DM: M directions of unit length.
        knots: of the trapezoidal rule, from t = 0 to t = c.
        upper: c.

    Returns:
        A scalar of at least 0; its mean over rows of a standard normal distribution is 1.05, whatever their number.
    """
    x_VBM, spacing = row_VBD @ direction_DM, upper / (knots - 1)
    rows, total = row_VBD.shape[1], row_VBD.new_zeros(())
    for knot in range(1, knots):  # At t = 0 all characteristic functions are 1.
        t = knot * spacing
        normal = math.exp(-(t**2) / 2)
        real_VM, imaginary_VM = ((t * x_VBM).cos().sum(1) / max(rows, 1), (t * x_VBM).sin().sum(1) / max(rows, 1))
        width = spacing if knot == knots - 1 else 2 * spacing
        total = total + width * normal * ((real_VM - normal).square() + imaginary_VM.square())
    return rows * total.mean()


def random_directions(dim: int, count: int, step: int) -> Tensor:
    """Unit vectors [dim, count] in float32 on the CPU, uniform on the sphere; a function of the step alone."""
    generator = torch.Generator().manual_seed(step)
    return F.normalize(torch.randn(dim, count, generator=generator), dim=0)
