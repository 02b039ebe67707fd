"""Random-resized crop of decoded images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmcl.data.augment.pipeline import Augmentation, is_range
from mmcl.data.images.crop import ATTEMPTS, BOX_DRAWS, whole_box


@dataclass(frozen=True, kw_only=True)
class Crop(Augmentation):
    """Crops a part of random area and aspect ratio, like `data.crop`, but from the cached images.

    Resizes like Pillow's bilinear filter, which averages over all pixels when it shrinks. Unlike `data.crop`, it cannot use the
    details of a larger original, but the image is not decoded again.

    Args:
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height; drawn on a logarithmic scale.
        size: output height and width in pixels; default: those of the input. Requires p = 1.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)
    size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(is_range(self.scale, 0.001, 1), "scale", "[from, to], both from 0.001 to 1")
        self.require(is_range(self.ratio, 0.01, 100), "ratio", "[from, to], both from 0.01 to 100")
        self.require(self.size is None or self.size >= 1, "size", "null or 1 pixel or more")
        self.require(self.size is None or self.p == 1, "p", "1 where `size` is set: the images of a batch have one size")

    @property
    def draws(self) -> int:
        return BOX_DRAWS

    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        height, width = image_BCHW.shape[2:]
        box_B4 = torch.from_numpy(random_boxes(draw_BK.cpu().numpy(), width, height, self.scale, self.ratio))
        left, top, right, bottom = box_B4.to(image_BCHW.device).unbind(1)
        across = _resize(image_BCHW, left, right, self.size or width)
        down = _resize(across.transpose(2, 3), top, bottom, self.size or height)
        return down.transpose(2, 3).contiguous().clamp_(0, 1)


def random_boxes(draw_BK: np.ndarray, width: int, height: int, scale: Sequence[float], ratio: Sequence[float]) -> np.ndarray:
    """Vectorized `random_box` for images of one size: draws float64 [B, K] to float64 [B, 4]."""
    area_BA = (scale[0] + draw_BK[:, :ATTEMPTS] * (scale[1] - scale[0])) * (width * height)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratio_BA = np.exp(low + draw_BK[:, ATTEMPTS:-2] * (high - low))
    width_BA, height_BA = np.sqrt(area_BA * ratio_BA), np.sqrt(area_BA / ratio_BA)
    fits_BA = (width_BA <= width) & (height_BA <= height)
    row, first_B = np.arange(len(draw_BK)), fits_BA.argmax(1)
    inner_width, inner_height = width_BA[row, first_B], height_BA[row, first_B]
    left, top = draw_BK[:, -2] * (width - inner_width), draw_BK[:, -1] * (height - inner_height)
    drawn_B4 = np.stack([left, top, left + inner_width, top + inner_height], axis=1)
    return np.where(fits_BA.any(1, keepdims=True), drawn_B4, whole_box(width, height, ratio))


def _resize(image_BCHW: Tensor, start_B: Tensor, stop_B: Tensor, size: int) -> Tensor:
    """Resizes the part from `start` to `stop` of the last side to `size` pixels, with a triangle filter: [B, C, H, size].

    The half-width of the filter is one pixel, of the result if it shrinks. Computed tap by tap, because the summation order of
    a matrix product may change with the batch size.
    """
    side = image_BCHW.shape[3]
    step_B1 = (stop_B - start_B)[:, None] / size
    center_BS = start_B[:, None] + (torch.arange(size, device=start_B.device) + 0.5) * step_B1 - 0.5
    reach_B1 = step_B1.clamp(min=1)
    first_BS = (center_BS - reach_B1).floor() + 1
    taps = math.ceil(2 * max(1.0, side / size))
    pixel_TBS = first_BS + torch.arange(taps, device=start_B.device)[:, None, None]
    weight_TBS = (1 - (pixel_TBS - center_BS).abs() / reach_B1).clamp(min=0)
    weight_TBS = weight_TBS * ((pixel_TBS >= 0) & (pixel_TBS < side))
    weight_TBS = weight_TBS / weight_TBS.sum(0)
    total = image_BCHW.new_zeros(*image_BCHW.shape[:3], size)
    for pixel_BS, weight_BS in zip(pixel_TBS.long().clamp(0, side - 1), weight_TBS.float(), strict=True):
        where = pixel_BS[:, None, None, :].expand_as(total)
        total += image_BCHW.gather(3, where) * weight_BS[:, None, None, :]
    return total
