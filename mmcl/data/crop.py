"""Random-resized crop, at decoding: the part of a picture that a view shows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mmcl.data.decode import Box
from mmcl.data.streams import Stream
from mmcl.errors import UserError
from mmcl.rng import uniform

_ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomResizedCrop:
    """A part of random area and aspect (Szegedy et al., "Going Deeper with Convolutions", 2015, section 6).

    Args:
        scale: share of the picture's area, from and to.
        ratio: width by height, from and to; drawn on a logarithmic scale.
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"data.crop.scale is {list(self.scale)}: give [from, to], shares above 0 up to 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"data.crop.ratio is {list(self.ratio)}: give [from, to], both above 0")

    def box(self, width: int, height: int, *, seed: int, epoch: int, index: int, view: int) -> Box:
        """The part of one view: the first of ten draws that fits in, else the whole picture, cut to an allowed aspect."""
        draw = uniform(seed, Stream.CROP, epoch, index, view, np.arange(2 * _ATTEMPTS + 2))
        area = (self.scale[0] + draw[:_ATTEMPTS] * (self.scale[1] - self.scale[0])) * (width * height)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = np.exp(low + draw[_ATTEMPTS:-2] * (high - low))
        box_width, box_height = np.sqrt(area * ratio), np.sqrt(area / ratio)
        fits = np.flatnonzero((box_width <= width) & (box_height <= height))
        if len(fits) == 0:
            return self._whole(width, height)
        inner_width, inner_height = float(box_width[fits[0]]), float(box_height[fits[0]])
        left, top = float(draw[-2]) * (width - inner_width), float(draw[-1]) * (height - inner_height)
        return left, top, left + inner_width, top + inner_height

    def _whole(self, width: int, height: int) -> Box:
        inner_width = min(width, height * self.ratio[1])
        inner_height = min(height, width / self.ratio[0])
        left, top = (width - inner_width) / 2, (height - inner_height) / 2
        return left, top, left + inner_width, top + inner_height
