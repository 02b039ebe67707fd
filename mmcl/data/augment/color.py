"""Color augmentations; pixelwise except for the mean in contrast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmcl.data.augment.pipeline import Augmentation, between, per_image
from mmcl.errors import UserError

_LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class ColorJitter(Augmentation):
    """Changes brightness, contrast, saturation and hue, in this order, each defined as in torchvision.

    Args:
        brightness, contrast, saturation: the factor is drawn from [max(0, 1 - x), 1 + x].
        hue: largest hue shift in either direction, in turns of the color circle.
    """

    p: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for argument in ("brightness", "contrast", "saturation"):
            self.require(getattr(self, argument) >= 0, argument, "a number from 0")
        self.require(0 <= self.hue <= 0.5, "hue", "a share of a turn, from 0 to 0.5")

    @property
    def draws(self) -> int:
        return 4

    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        factors = (
            per_image(between(draw_BK[:, k], max(0.0, 1 - strength), 1 + strength))
            for k, strength in enumerate((self.brightness, self.contrast, self.saturation))
        )
        brightness, contrast, saturation = factors
        if self.brightness:
            image_BCHW = (image_BCHW * brightness).clamp_(0, 1)
        if self.contrast:
            image_BCHW = _blend(image_BCHW, _mean(_gray(image_BCHW)), contrast)
        if self.saturation:
            _require_colors(image_BCHW, "color_jitter with a saturation above 0")
            image_BCHW = _blend(image_BCHW, _gray(image_BCHW), saturation)
        if self.hue:
            _require_colors(image_BCHW, "color_jitter with a hue above 0")
            image_BCHW = turn_hue(image_BCHW, between(draw_BK[:, 3], -self.hue, self.hue))
        return image_BCHW


@dataclass(frozen=True, kw_only=True)
class Grayscale(Augmentation):
    """Converts to gray, with three equal channels."""

    p: float = 0.2

    @property
    def draws(self) -> int:
        return 0

    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        _require_colors(image_BCHW, "grayscale")
        return _gray(image_BCHW).expand_as(image_BCHW).contiguous()


@dataclass(frozen=True, kw_only=True)
class Solarize(Augmentation):
    """Inverts the bright pixels.

    Args:
        threshold: value in [0, 1] at and above which a pixel is inverted, per channel.
    """

    p: float = 0.2
    threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.threshold <= 1, "threshold", "a value from 0 to 1")

    @property
    def draws(self) -> int:
        return 0

    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        # |1 - x| or |0 - x|: ten times as fast as `where`.
        return _as_number(torch.ge, image_BCHW, self.threshold).sub_(image_BCHW).abs_()


@dataclass(frozen=True, kw_only=True)
class Invert(Augmentation):
    """Inverts the image."""

    p: float = 0.5

    @property
    def draws(self) -> int:
        return 0

    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        return 1 - image_BCHW


def turn_hue(image_B3HW: Tensor, turn_B: Tensor) -> Tensor:
    """Shifts the hue in the HSV model by `turn_B` full circles; value and saturation are unchanged."""
    red, green, blue = image_B3HW.unbind(1)
    value, low = image_B3HW.amax(1), image_B3HW.amin(1)
    chroma = value - low
    # Position on the hexagon of hues, 0 to 6: red 0, green 2, blue 4. Masks of 0 and 1 are ten times as fast as `where`.
    is_red = _as_number(torch.eq, value, red)
    is_green = _as_number(torch.eq, value, green).mul_(1 - is_red)
    is_blue = 1 - is_red - is_green
    offset = is_red * (green - blue) + is_green * (blue - red) + is_blue * (red - green)
    hue = offset.div_(chroma + _as_number(torch.eq, chroma, 0)) + 2 * is_green + 4 * is_blue
    hue += 6 * turn_B.float()[:, None, None]
    hue -= 6 * torch.floor(hue / 6)
    turned = torch.empty_like(image_B3HW)
    torch.sub((hue - 3).abs_(), 1, out=turned[:, 0])
    torch.sub(2, (hue - 2).abs_(), out=turned[:, 1])
    torch.sub(2, (hue - 4).abs_(), out=turned[:, 2])
    return turned.clamp_(0, 1).mul_(chroma[:, None]).add_(low[:, None])


def _as_number(compare: Callable[..., Tensor], a: Tensor, b: Tensor | float) -> Tensor:
    """1.0 where a comparison holds, else 0.0."""
    return compare(a, b, out=torch.empty_like(a))


def _gray(image_BCHW: Tensor) -> Tensor:
    if image_BCHW.shape[1] == 1:
        return image_BCHW
    red, green, blue = image_BCHW.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[:, None]


def _mean(gray_B1HW: Tensor) -> Tensor:
    """Mean per image, [B, 1, 1, 1]; summed in float64 and rounded, so that the order of summation does not matter."""
    return gray_B1HW.mean((1, 2, 3), keepdim=True, dtype=torch.float64).float()


def _blend(image: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return (share * image).add_((1 - share) * other).clamp_(0, 1)


def _require_colors(image_BCHW: Tensor, what: str) -> None:
    if image_BCHW.shape[1] != 3:
        raise UserError(
            f"augmentation {what} needs images with 3 channels, not {image_BCHW.shape[1]}; set it to 0 or leave it out"
        )
