"""Random-resized crop: the part of a picture that a view shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmcl.data.resize import Box
from mmcl.data.streams import Stream
from mmcl.errors import UserError
from mmcl.rng import uniform

_ATTEMPTS = 10
BOX_DRAWS = 2 * _ATTEMPTS + 2


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomResizedCrop:
    """A part of random area and aspect of a picture that is being decoded, see `random_boxes`."""

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"scale of a crop is {list(self.scale)}: give [from, to], shares above 0 up to 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"ratio of a crop is {list(self.ratio)}: give [from, to], both above 0")

    def box(self, width: int, height: int, *, seed: int, epoch: int, index: int, view: int) -> Box:
        """The part of one view, in whole pixels."""
        draw_1K = uniform(seed, Stream.CROP, epoch, index, view, np.arange(BOX_DRAWS))[None]
        left, top, right, bottom = map(round, random_boxes(draw_1K, width, height, self.scale, self.ratio)[0].tolist())
        # Of a picture that is a few pixels wide, rounding may leave nothing.
        left, top = min(left, width - 1), min(top, height - 1)
        return left, top, max(right, left + 1), max(bottom, top + 1)


def random_boxes(draw_BK: np.ndarray, width: int, height: int, scale: Sequence[float], ratio: Sequence[float]) -> np.ndarray:
    """Parts of random area and aspect (Szegedy et al., "Going Deeper with Convolutions", 2015, section 6).

    Of ten draws the first that fits in, else the whole picture, cut to an allowed aspect.

    Args:
        draw_BK: float64, uniform in [0, 1), K = `BOX_DRAWS`.
        width, height: of the pictures.
        scale: share of the picture's area, from and to.
        ratio: width by height, from and to; drawn on a logarithmic scale.

    Returns:
        float64 [B, 4]: left, top, right, bottom in pixels.
    """
    area_BA = (scale[0] + draw_BK[:, :_ATTEMPTS] * (scale[1] - scale[0])) * (width * height)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratio_BA = np.exp(low + draw_BK[:, _ATTEMPTS:-2] * (high - low))
    width_BA, height_BA = np.sqrt(area_BA * ratio_BA), np.sqrt(area_BA / ratio_BA)
    fits_BA = (width_BA <= width) & (height_BA <= height)
    row, first_B = np.arange(len(draw_BK)), fits_BA.argmax(1)
    inner_width, inner_height = width_BA[row, first_B], height_BA[row, first_B]
    left, top = draw_BK[:, -2] * (width - inner_width), draw_BK[:, -1] * (height - inner_height)
    drawn_B4 = np.stack([left, top, left + inner_width, top + inner_height], axis=1)
    return np.where(fits_BA.any(1, keepdims=True), drawn_B4, _whole(width, height, ratio))


def _whole(width: int, height: int, ratio: Sequence[float]) -> tuple[float, float, float, float]:
    inner_width, inner_height = min(width, height * ratio[1]), min(height, width / ratio[0])
    left, top = (width - inner_width) / 2, (height - inner_height) / 2
    return left, top, left + inner_width, top + inner_height
