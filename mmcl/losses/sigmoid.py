"""The pairwise sigmoid loss: a thin wrapper of `mmcl.core.sigmoid`."""

from __future__ import annotations

from torch import Tensor

from mmcl.core.precision import unit_rows
from mmcl.core.sigmoid import sigmoid_loss
from mmcl.core.tiled.pairs import TileShape
from mmcl.losses.arguments import check_rows, checked_ids, number


def siglip_loss(
    image: Tensor,
    text: Tensor,
    ids: Tensor | None = None,
    *,
    scale: Tensor | float,
    bias: Tensor | float,
    tile: TileShape | None = None,
) -> Tensor:
    r"""SigLIP: classifies every pair of an image and a text independently as matching or not.

    $$\ell = -\frac{1}{N} \sum_{ij} \log \sigma\big(z_{ij} (\tau s_{ij} + b)\big)$$

    where $s_{ij}$ are the cosines, $\tau$ is the scale, $b$ the bias, and $z_{ij} = 1$ for matching pairs, else $-1$.

    Args:
        image, text: row i of each forms a pair; scaled to unit length.
        ids: pairs with equal ids match too; without ids, only row i of both.
        scale: inverse temperature, a number above 0 or a one-element tensor. The paper learns its logarithm, which starts at
            ln 10, see `SigLipLoss`.
        bias: b, a number or a one-element tensor; the paper learns it, starting at -10. -ln(N - 1) gives each pair its prior.
        tile: images and texts compared at once; by default chosen from the shapes.

    Shape:
        image, text [N, D]; ids [N], of integers; returns a scalar.

    Requirements:
        The sum is divided by N and not by N^2, as in the paper: the part of the negatives grows with the batch, and so does
        the size of the bias.

    Relations:
        `clip_loss` couples the pairs in a softmax; this loss does not.

    Raises:
        UserError: shapes, dtypes or devices do not match, or a value is not finite.

    Source:
        Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, section 3.2.

    Example:
        >>> image, text = torch.eye(3), torch.eye(3)
        >>> round(siglip_loss(image, text, scale=10.0, bias=-5.0).item(), 4)  # 3 ln(1 + e^-5)
        0.0201
    """
    check_rows({"image": image, "text": text})
    pair_ids = checked_ids("ids", ids, "image", image)
    return sigmoid_loss(
        unit_rows(image),
        unit_rows(text),
        image_id_N=pair_ids,
        text_id_M=pair_ids,
        scale=number("scale", scale, image, positive=True),
        bias=number("bias", bias, image),
        tile=tile,
    )
