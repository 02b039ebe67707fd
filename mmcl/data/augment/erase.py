"""Random erasing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmcl.data.augment.pipeline import Augmentation, between, is_range


@dataclass(frozen=True, kw_only=True)
class Erase(Augmentation):
    """Fills a rectangle (Zhong et al., "Random Erasing Data Augmentation", 2017).

    A rectangle that is too long is cut to the image's side, whereas the paper draws again.

    Args:
        area: smallest and largest share of the image's area.
        ratio: smallest and largest height / width; drawn on a logarithmic scale.
        fill: gray value of the rectangle, in [0, 1].
    """

    p: float = 0.5
    area: tuple[float, float] = (0.02, 0.2)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(is_range(self.area, 0, 1), "area", "[from, to], both from 0 to 1")
        self.require(is_range(self.ratio, 0.01, 100), "ratio", "[from, to], both from 0.01 to 100")
        self.require(0 <= self.fill <= 1, "fill", "a gray value from 0 to 1")

    @property
    def draws(self) -> int:
        return 4

    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        height, width = image_BCHW.shape[2:]
        area = between(draw_BK[:, 0], *self.area) * (height * width)
        ratio = torch.exp(between(draw_BK[:, 1], math.log(self.ratio[0]), math.log(self.ratio[1])))
        inside_y = _interval(height, torch.sqrt(area * ratio), draw_BK[:, 2])
        inside_x = _interval(width, torch.sqrt(area / ratio), draw_BK[:, 3])
        inside_B1HW = (inside_y[:, :, None] & inside_x[:, None, :])[:, None]
        return image_BCHW.masked_fill(inside_B1HW, self.fill)


def _interval(side: int, length_B: Tensor, draw_B: Tensor) -> Tensor:
    """Mask of the pixels in an interval of rounded length at a uniform position: bool [B, side]."""
    length = length_B.round().clamp(max=side)
    start = (draw_B * (side - length + 1)).floor()
    pixel = torch.arange(side, device=draw_B.device)
    return (pixel >= start[:, None]) & (pixel < (start + length)[:, None])
