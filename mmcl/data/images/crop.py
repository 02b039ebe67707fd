"""Random-resized crop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmcl.data.images.resize import Box
from mmcl.data.random_streams import Stream
from mmcl.errors import UserError
from mmcl.rng import few_uniform

ATTEMPTS = 10
"""Maximum number of draws of an area and an aspect ratio until they fit."""
BOX_DRAWS = 2 * ATTEMPTS + 2
"""Number of draws: areas, aspect ratios, and the position."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomResizedCrop:
    """Crop of random area and aspect ratio during decoding, see `random_box`."""

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"scale of a crop is {list(self.scale)}: give [from, to], shares above 0 up to 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"ratio of a crop is {list(self.ratio)}: give [from, to], both above 0")

    def box(self, width: int, height: int, *, seed: int, epoch: int, index: int, view: int) -> Box:
        """Returns the crop for one view, in whole pixels."""
        draw = few_uniform(seed, Stream.CROP, epoch, index, view)
        left, top, right, bottom = map(round, random_box(draw, width, height, self.scale, self.ratio))
        # For an image a few pixels wide, rounding may give an empty box.
        left, top = min(left, width - 1), min(top, height - 1)
        return left, top, max(right, left + 1), max(bottom, top + 1)


def random_box(
    draw: Callable[[int], float], width: int, height: int, scale: Sequence[float], ratio: Sequence[float]
) -> tuple[float, float, float, float]:
    """Draws a box of random area and aspect ratio (Szegedy et al., "Going Deeper with Convolutions", 2015, section 6).

    Uses the first of ten draws that fits into the image, else the largest centered box with an allowed aspect ratio.

    Args:
        draw: function of k in range(`BOX_DRAWS`) to a uniform number in [0, 1).
        width, height: size of the image.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height; drawn on a logarithmic scale.

    Returns:
        left, top, right, bottom in pixels.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(ATTEMPTS):
        area = (scale[0] + draw(attempt) * (scale[1] - scale[0])) * (width * height)
        aspect = math.exp(low + draw(ATTEMPTS + attempt) * (high - low))
        inner_width, inner_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if inner_width <= width and inner_height <= height:
            left, top = draw(BOX_DRAWS - 2) * (width - inner_width), draw(BOX_DRAWS - 1) * (height - inner_height)
            return left, top, left + inner_width, top + inner_height
    return whole_box(width, height, ratio)


def whole_box(width: int, height: int, ratio: Sequence[float]) -> tuple[float, float, float, float]:
    """Returns the largest centered box with an allowed aspect ratio: the whole image if its own is allowed."""
    inner_width, inner_height = min(width, height * ratio[1]), min(height, width / ratio[0])
    left, top = (width - inner_width) / 2, (height - inner_height) / 2
    return left, top, left + inner_width, top + inner_height
