"""The pairwise sigmoid loss: a thin call of `mmcl.core.sigmoid`."""

from __future__ import annotations

from torch import Tensor

from mmcl.core.precision import unit_rows
from mmcl.core.sigmoid import sigmoid_loss
from mmcl.core.tiled.pairs import Tile
from mmcl.losses.arguments import check_rows, checked_ids, number


def siglip_loss(
    image: Tensor,
    text: Tensor,
    ids: Tensor | None = None,
    *,
    scale: Tensor | float,
    bias: Tensor | float,
    tile: Tile | None = None,
) -> Tensor:
    r"""SigLIP: judges every image with every text by itself, whether they belong together.

    $$\ell = -\frac{1}{N} \sum_{ij} \log \sigma\big(z_{ij} (\tau s_{ij} + b)\big)$$

    with the cosines $s_{ij}$, the scale $\tau$, the bias $b$, and $z_{ij} = 1$ for pairs and $-1$ for others.

    Args:
        image, text: row i of each forms a pair; scaled to unit length.
        ids: pairs with equal ids belong together too; without them, none do.
        scale: inverse temperature, a number above 0 or a one-element tensor. The paper learns its logarithm from ln 10 on, see
            `SigLipLoss`.
        bias: b, a number or a one-element tensor; the paper learns it from -10 on. -ln(N - 1) gives each pair its prior.
        tile: images and texts compared at once; by default chosen from the shapes.

    Shape:
        image, text [N, D]; ids [N], of integers; returns a scalar.

    Requirements:
        Divided by N and not by N^2, as in the paper: the sum over the negatives grows with the batch, and the bias with it.

    Relations:
        `clip_loss` couples the pairs by a softmax; this one does not.

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
