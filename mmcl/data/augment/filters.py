"""Neighborhood augmentations: Gaussian blur and stroke thickness."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.data.augment.pipeline import Augmentation, between, is_range, per_image


@dataclass(frozen=True, kw_only=True)
class Blur(Augmentation):
    """Convolves with a Gaussian, truncated at three standard deviations; the border is mirrored.

    Args:
        sigma: smallest and largest standard deviation, in pixels.
    """

    p: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(is_range(self.sigma, 0.01, 100), "sigma", "[from, to] in pixels, both from 0.01 to 100")

    @property
    def draws(self) -> int:
        return 1

    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        radius = min(math.ceil(3 * self.sigma[1]), min(image_BCHW.shape[2:]) - 1)
        sigma_B = between(draw_BK[:, 0], *self.sigma)
        offset = torch.arange(-radius, radius + 1, dtype=torch.float64, device=image_BCHW.device)
        weight_BR = torch.exp(-0.5 * (offset / sigma_B[:, None]) ** 2)
        weight_BR = weight_BR / weight_BR.sum(1, keepdim=True)
        down = _weigh_rows(image_BCHW, weight_BR)
        # Transposing twice to convolve whole rows is faster than convolving along columns.
        across = _weigh_rows(down.transpose(2, 3).contiguous(), weight_BR)
        return across.transpose(2, 3).contiguous().clamp_(0, 1)


@dataclass(frozen=True, kw_only=True)
class Stroke(Augmentation):
    """Makes bright strokes thicker or thinner: interpolates towards the 3 x 3 gray dilation or erosion.

    Args:
        strength: largest interpolation weight in either direction, from 0 to 1.
    """

    strength: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.strength <= 1, "strength", "a share from 0 to 1")

    @property
    def draws(self) -> int:
        return 1

    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        amount = per_image(between(draw_BK[:, 0], -self.strength, self.strength))
        padded = F.pad(image_BCHW, (1, 1, 1, 1), mode="replicate")
        goal = torch.where(amount > 0, _of_nine(padded, torch.maximum), _of_nine(padded, torch.minimum))
        return image_BCHW + amount.abs() * (goal - image_BCHW)


def _of_nine(padded_BCHW: Tensor, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Minimum or maximum of every 3 x 3 neighborhood, first down and then across: several times as fast as pooling."""
    for dim in (2, 3):
        size = padded_BCHW.shape[dim] - 2
        before, here, after = (padded_BCHW.narrow(dim, start, size) for start in range(3))
        padded_BCHW = extreme(extreme(before, here), after)
    return padded_BCHW


def _weigh_rows(image_BCHW: Tensor, weight_BR: Tensor) -> Tensor:
    """Convolves vertically with a symmetric kernel per image, tap by tap: conv2d's order of summation depends on the batch."""
    radius, height = weight_BR.shape[1] // 2, image_BCHW.shape[2]
    padded = F.pad(image_BCHW, (0, 0, radius, radius), mode="reflect")
    total = image_BCHW * per_image(weight_BR[:, radius])
    for away in range(1, radius + 1):
        pair = padded.narrow(2, radius - away, height) + padded.narrow(2, radius + away, height)
        total += pair.mul_(per_image(weight_BR[:, radius + away]))
    return total
