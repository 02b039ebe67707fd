"""How an image becomes the input of an image encoder: a frozen dataclass, saved with every model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from mmcl.errors import UserError, unknown_name

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Resize = Literal["shortest", "squash", "pad", "none"]
CropRounding = Literal["round", "truncate", "floor"]
Backend = Literal["pillow", "torchvision", "torchvision_float"]
ChannelOrder = Literal["rgb", "bgr"]


@dataclass(frozen=True, slots=True)
class Percentiles:
    """The range of an image's own values, from one percentile to another.

    Attributes:
        percentiles: low and high, from 0 to 100.
    """

    percentiles: tuple[float, float]

    def __post_init__(self) -> None:
        given = tuple(self.percentiles) if isinstance(self.percentiles, list | tuple) else ()
        if len(given) != 2 or not _are_finite(given) or not 0 <= given[0] < given[1] <= 100:
            raise UserError(f"percentiles {self.percentiles!r}: give two rising numbers from 0 to 100, such as [1, 99]")
        object.__setattr__(self, "percentiles", given)


Intensity = tuple[float, float] | Percentiles | None

MAX_SIDE = 2**14
"""Pixels of a side that an image is resized to, and channels: a file that says 10^9 must not make an image of that size."""

TORCHVISION_LANCZOS = "2.12"
"""The version of torch whose torchvision is the first to resize tensors by Lanczos."""

OF_THE_ENCODER = ("size", "channels", "mean", "std", "channel_order")
"""The fields of `Preprocess` that an encoder was built with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocess:
    """How an image of any size becomes the input of an image encoder; saved with the model.

    The whole image is resized as `resize` says; what then lies beyond `size` around the centre is cropped, and what is missing
    is filled. Lists, as JSON has them, become tuples, and two equal sides one number.

    Attributes:
        size: height and width of the input in pixels; one number where they are equal.
        channels: 1 (grey), 3 (RGB), or as many as the arrays have that are given.
        mean, std: per channel in the order of `channel_order`, in the [0, 1] scale; the encoder applies them itself.
        interpolation: of the resize, as in Pillow; "lanczos" by torchvision is offered from torch 2.12 on.
        resize: "shortest" (keep the aspect and cover `resize_size`), "squash" (ignore the aspect), "pad" (keep the aspect and
            fit into `resize_size`) or "none".
        resize_size: height and width to which the image is resized before the crop; None takes `size`.
        crop_rounding: where the crop begins if an odd number of pixels is cut off or filled in: "round" as torchvision,
            open_clip and timm do (half to even; fills the smaller part first), "truncate" as transformers does on tensors,
            "floor" as transformers does on Pillow images.
        fill: grey, or colour per channel, from 0 to 255, of what is filled in.
        backend: whose resize, bit for bit: "pillow", "torchvision" (its kernel for uint8 tensors; up to 2 of 255 levels from
            Pillow's) or "torchvision_float" (the same in float32 and not rounded to levels).
        channel_order: in which the encoder takes the three channels; images are RGB until then.
        intensity: the values of images beyond 8 bits that become the levels 0 and 255, low and high, or the `Percentiles` of
            each image's own values, {"percentiles": [1, 99]} in JSON; what lies beyond is cut off. None takes all of 16 bits.
            Images of 8 bits are as they are.
        shrink_on_load: whether a JPEG of at least four times the size to which it is resized is decoded at a half, a quarter or
            an eighth, and so in a fraction of the time; on photos within 4 of 255 levels on average, and not bit for bit.

    Raises:
        UserError: a value is not one of the above; names it.
    """

    size: int | tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: Interpolation = "bicubic"
    resize: Resize = "shortest"
    resize_size: int | tuple[int, int] | None = None
    crop_rounding: CropRounding = "round"
    fill: int | tuple[int, ...] = 255
    backend: Backend = "pillow"
    channel_order: ChannelOrder = "rgb"
    intensity: Intensity = None
    shrink_on_load: bool = False

    def __post_init__(self) -> None:
        for name in ("size", "resize_size", "mean", "std", "fill"):
            object.__setattr__(self, name, _plain(getattr(self, name), pair=name.endswith("size")))
        object.__setattr__(self, "intensity", as_intensity(self.intensity))
        if not isinstance(self.channels, int) or not 1 <= self.channels <= MAX_SIDE:  # what follows is as long
            raise self._refusal("channels")
        for name, default in (("mean", 0.0), ("std", 1.0)):
            if set(getattr(self, name)) == {default}:
                object.__setattr__(self, name, (default,) * self.channels)
        for name, is_right in self._checks().items():
            if not is_right:
                raise self._refusal(name)

    def _refusal(self, name: str) -> UserError:
        return UserError(f"preprocess: {name} {getattr(self, name)!r} is not possible here; see mmcl.preprocess.Preprocess")

    def _checks(self) -> dict[str, bool]:
        choices = {
            "interpolation": Interpolation,
            "resize": Resize,
            "crop_rounding": CropRounding,
            "backend": Backend,
            "channel_order": ChannelOrder,
        }
        fill = self.fill if isinstance(self.fill, tuple) else (self.fill,) * self.channels
        return {
            "size": _is_size(self.size),
            "resize_size": self.resize_size is None or _is_size(self.resize_size),
            "mean": len(self.mean) == self.channels and _are_finite(self.mean),
            "std": len(self.std) == self.channels and _are_finite(self.std) and 0 not in self.std,
            "fill": len(fill) == self.channels and all(isinstance(v, int) and 0 <= v <= 255 for v in fill),
            "shrink_on_load": isinstance(self.shrink_on_load, bool),
            **{name: getattr(self, name) in get_args(allowed) for name, allowed in choices.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocess:
        """From what `dataclasses.asdict` gave. Raises UserError for an unknown field or a value that is not possible."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise unknown_name("field", name, known, where="preprocess")
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"preprocess: {error}") from None

    @property
    def height(self) -> int:
        """Of the input, in pixels."""
        return self.size[0] if isinstance(self.size, tuple) else self.size

    @property
    def width(self) -> int:
        """Of the input, in pixels."""
        return self.size[1] if isinstance(self.size, tuple) else self.size

    def changed(self, values: Mapping[str, Any] | None) -> Preprocess:
        """With some fields as in `values`; at another size it shows the same part. Raises UserError as `from_json` does."""
        if not values:
            return self
        base = self.at(values["size"]) if "size" in values and _is_size(_plain(values["size"], pair=True)) else self
        return Preprocess.from_json({**{field.name: getattr(base, field.name) for field in fields(base)}, **values})

    def at(self, size: int | tuple[int, int]) -> Preprocess:
        """Shows the same part of every image at another size."""
        if self.resize_size is None:
            return replace(self, size=size)
        to, now, before = (side if isinstance(side, tuple) else (side, side) for side in (size, self.size, self.resize_size))
        height, width = (round(before[axis] * to[axis] / now[axis]) for axis in (0, 1))
        return replace(self, size=size, resize_size=(height, width))


def as_intensity(value: Any) -> Intensity:
    """What becomes black and white, as a configuration gives it. Raises UserError for what is no range and no percentiles."""
    if value is None or isinstance(value, Percentiles):
        return value
    if isinstance(value, Mapping) and list(value) == ["percentiles"]:
        return Percentiles(value["percentiles"])
    given = tuple(value) if isinstance(value, list | tuple) else ()
    if len(given) != 2 or not _are_finite(given) or not given[0] < given[1]:
        raise UserError(f"intensity {value!r}: give [low, high], two rising numbers, or {{percentiles: [1, 99]}}")
    return given


def as_size(size: int | Sequence[int]) -> int | tuple[int, int]:
    """A side, or height and width, as a configuration gives them."""
    return size if isinstance(size, int) else (size[0], size[1])


def _plain(value: Any, *, pair: bool) -> Any:
    """Lists as tuples, and a pair of equal sides as one."""
    value = tuple(value) if isinstance(value, list) else value
    return value[0] if pair and isinstance(value, tuple) and len(value) == 2 and value[0] == value[1] else value


def _are_finite(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, tuple) and len(value) == 2 else (value,)
    return all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in sides)
