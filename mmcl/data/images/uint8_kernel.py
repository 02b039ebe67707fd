"""torchvision's resize of uint8 images with antialiasing, in numpy: for processes that do not import torch.

The same integers bit for bit: weights in float64, rounded to 16 bits with as many binary places as the largest leaves, and sums
in 32 bits, first along the rows and then along the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mmcl.preprocess import Preprocess

_BITS = 15
_MOST_PLACES = 22


def resize_uint8(levels_CHW: np.ndarray, size: tuple[int, int], preprocess: Preprocess) -> np.ndarray:
    """Resizes levels, uint8 [C, H, W], to a height and width; a `Kernel` of `mmcl.data.images.resize`.

    The backend "torchvision_float", and interpolations without weights here, import torchvision.
    """
    if preprocess.backend == "torchvision_float" or preprocess.interpolation not in ("nearest", *_FILTERS):
        from mmcl.data.images.tensors import resize_by_torchvision

        return resize_by_torchvision(levels_CHW, size, preprocess)
    height, width = size
    if preprocess.interpolation == "nearest":
        return levels_CHW[:, _nearest(levels_CHW.shape[1], height)][:, :, _nearest(levels_CHW.shape[2], width)]
    filtering = _FILTERS[preprocess.interpolation]
    rows = _along_last(levels_CHW, width, *filtering)
    return _along_last(rows.swapaxes(1, 2), height, *filtering).swapaxes(1, 2)


def _nearest(side: int, to: int) -> np.ndarray:
    """Source position of each pixel, int64 [to]: the one whose area holds its center."""
    scale = np.float32(side) / np.float32(to)
    center = (np.arange(to, dtype=np.float32) + np.float32(0.5)) * scale
    return np.asarray(np.minimum(np.floor(center).astype(np.int64), side - 1))


def _along_last(levels: np.ndarray, to: int, weigh: Callable[[np.ndarray], np.ndarray], support: float) -> np.ndarray:
    """Resizes the last axis, uint8 [..., side] to [..., to]."""
    if levels.shape[-1] == to:
        return levels
    place_TK, weight_TK, places = _integer_weights(levels.shape[-1], to, weigh, support)
    total = np.full((*levels.shape[:-1], to), 1 << (places - 1), np.int32)
    for tap in range(place_TK.shape[1]):
        total += levels[..., place_TK[:, tap]].astype(np.int32) * weight_TK[:, tap]
    return np.asarray(np.clip(total >> places, 0, 255), np.uint8)


def _integer_weights(
    side: int, to: int, weigh: Callable[[np.ndarray], np.ndarray], support: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Positions and integer weights of the pixels under the filter, each [to, K], and the weights' binary places."""
    scale = side / to
    reach, stretch = support * max(scale, 1), 1 / max(scale, 1)
    center_T = scale * (np.arange(to) + 0.5)
    first_T = np.maximum((center_T - reach + 0.5).astype(np.int64), 0)
    last_T = np.minimum((center_T + reach + 0.5).astype(np.int64), side)
    tap_K = np.arange((last_T - first_T).max())
    place_TK = first_T[:, None] + tap_K
    weight_TK = weigh((place_TK - center_T[:, None] + 0.5) * stretch) * (place_TK < last_T[:, None])
    weight_TK /= weight_TK.sum(1, keepdims=True)
    largest, places = weight_TK.max(), 0
    while places < _MOST_PLACES and int(0.5 + largest * (1 << (places + 1))) < 1 << _BITS:
        places += 1
    rounded_TK = np.trunc(weight_TK * (1 << places) + np.copysign(0.5, weight_TK)).astype(np.int32)
    return np.minimum(place_TK, side - 1), rounded_TK, places


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(1 - np.abs(distance), 0))


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic with a = -0.5."""
    x = np.abs(distance)
    return np.asarray(np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * -0.5, 0)))


def _lanczos(distance: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0))


_FILTERS: Mapping[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "bilinear": (_triangle, 1),
    "bicubic": (_cubic, 2),
    "lanczos": (_lanczos, 3),
}
