"""Geometric augmentations: affine and elastic transforms in one interpolation, and horizontal flips."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.data.augment.pipeline import Augmentation, between, is_range


@dataclass(frozen=True, kw_only=True)
class Affine(Augmentation):
    """Rotates, scales, shears and shifts about the center, then deforms; one bilinear interpolation.

    The affine part is defined as torchvision's `affine`. The elastic part shifts the points of a coarse grid and interpolates
    the shifts bicubically, after Simard et al. ("Best Practices for Convolutional Neural Networks Applied to Visual Document
    Analysis", 2003), who use noise smoothed by a Gaussian instead.

    Args:
        rotation: largest angle in either direction, in degrees.
        scale: smallest and largest magnification.
        translation: largest shift in x and y, as a share of the side.
        shear: largest angle in either direction, in degrees.
        elastic: largest shift of a grid point in x and y, as a share of the side.
        elastic_grid: points per side of the elastic grid.
        fill: gray value, in [0, 1], of pixels from outside the image.
    """

    test_args: ClassVar[Mapping[str, Any]] = {"rotation": 30, "scale": (0.7, 1.4), "elastic": 0.1}

    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    translation: float = 0.0
    shear: float = 0.0
    elastic: float = 0.0
    elastic_grid: int = 4
    fill: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.rotation <= 180, "rotation", "degrees from 0 to 180")
        self.require(is_range(self.scale, 0.01, 100), "scale", "[from, to], both from 0.01 to 100")
        self.require(0 <= self.translation <= 1, "translation", "a share of the side, from 0 to 1")
        self.require(0 <= self.shear < 90, "shear", "degrees from 0 to below 90")
        self.require(0 <= self.elastic <= 1, "elastic", "a share of the side, from 0 to 1")
        self.require(self.elastic_grid >= 2, "elastic_grid", "2 or more")
        self.require(0 <= self.fill <= 1, "fill", "a gray value from 0 to 1")

    @property
    def draws(self) -> int:
        return 5 + (2 * self.elastic_grid**2 if self.elastic else 0)

    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        height, width = image_BCHW.shape[2:]
        grid_BHW2 = self._grid(draw_BK[:, :5], height, width)
        if self.elastic:
            grid_BHW2 = grid_BHW2 + self._displacement(draw_BK[:, 5:], height, width)
        # grid_sample pads with zeros.
        sampled = F.grid_sample(image_BCHW - self.fill, grid_BHW2, mode="bilinear", padding_mode="zeros", align_corners=False)
        return sampled.add_(self.fill).clamp_(0, 1)

    def _grid(self, draw_B5: Tensor, height: int, width: int) -> Tensor:
        """Source position of each output pixel, in grid_sample's units of half a side: float32 [B, H, W, 2]."""
        angle = between(draw_B5[:, 0], -self.rotation, self.rotation) * (math.pi / 180)
        scale = between(draw_B5[:, 1], *self.scale)
        shift_x, shift_y = (between(draw_B5[:, k], -self.translation, self.translation) for k in (2, 3))
        slant = torch.tan(between(draw_B5[:, 4], -self.shear, self.shear) * (math.pi / 180))
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        # The inverse of scale * rotation @ [[1, -slant], [0, 1]], whose determinant is scale^2.
        rows = ((cos - sin * slant, sin + cos * slant), (-sin, cos))
        x = torch.linspace(-1 + 1 / width, 1 - 1 / width, width, dtype=torch.float64, device=draw_B5.device)
        y = torch.linspace(-1 + 1 / height, 1 - 1 / height, height, dtype=torch.float64, device=draw_B5.device)
        from_x = (x - 2 * shift_x[:, None]) * width
        from_y = (y - 2 * shift_y[:, None]) * height
        grid_BHW2 = torch.empty(len(draw_B5), height, width, 2, device=draw_B5.device)
        for axis, ((along_x, along_y), side) in enumerate(zip(rows, (width, height), strict=True)):
            by_x, by_y = (along_x[:, None] * from_x / side).float(), (along_y[:, None] * from_y / side).float()
            torch.add(by_x[:, None, :], by_y[:, :, None], out=grid_BHW2[..., axis])
        return grid_BHW2

    def _displacement(self, draw_BK: Tensor, height: int, width: int) -> Tensor:
        points = self.elastic_grid
        control_B2GG = between(draw_BK, -2 * self.elastic, 2 * self.elastic).float().reshape(-1, 2, points, points)
        down_GH, across_GW = (_bicubic_weights(points, side).to(draw_BK.device) for side in (height, width))
        # Term by term: the summation order of a matrix product may change with the batch size.
        control_B2HG = control_B2GG.new_zeros(len(draw_BK), 2, height, points)
        for g in range(points):
            control_B2HG += control_B2GG[:, :, g, None] * down_GH[g, :, None]
        shift_B2HW = control_B2GG.new_zeros(len(draw_BK), 2, height, width)
        for g in range(points):
            shift_B2HW += control_B2HG[:, :, :, g, None] * across_GW[g]
        return shift_B2HW.permute(0, 2, 3, 1)


@lru_cache
def _bicubic_weights(points: int, size: int) -> Tensor:
    """Weights of `points` control values, the first and last at the ends, in each of `size` values: [points, size]."""
    unit = torch.eye(points)[:, None, None, :].expand(-1, 1, 2, -1)
    return F.interpolate(unit, size=(2, size), mode="bicubic", align_corners=True)[:, 0, 0]


@dataclass(frozen=True, kw_only=True)
class HorizontalFlip(Augmentation):
    """Flips horizontally."""

    p: float = 0.5

    @property
    def draws(self) -> int:
        return 0

    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        return image_BCHW.flip(-1)
