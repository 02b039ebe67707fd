"""Image preprocessing settings: a frozen dataclass that is saved with every model."""

from __future__ import annotations

import math
import reprlib
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
    """Intensity range of each image, between two percentiles of its values.

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
"""Largest side to resize to, and largest number of channels: a file that states 10^9 must not allocate such an image."""

TORCHVISION_LANCZOS = "2.12"
"""First torch version whose torchvision can resize tensors with Lanczos interpolation."""

_CHOICES = {
    "interpolation": Interpolation,
    "resize": Resize,
    "crop_rounding": CropRounding,
    "backend": Backend,
    "channel_order": ChannelOrder,
}
_EXPECTED = {
    "size": f"1 to {MAX_SIDE:,} pixels, or height and width",
    "resize_size": f"1 to {MAX_SIDE:,} pixels, or height and width",
    "channels": f"1 to {MAX_SIDE:,}",
    "mean": "a number for each channel",
    "std": "a number other than 0 for each channel",
    "fill": "a level from 0 to 255, or one for each channel",
    "shrink_on_load": "true or false",
}
_SHORT = reprlib.Repr()

OF_THE_ENCODER = ("size", "channels", "mean", "std", "channel_order")
"""Fields of `Preprocess` that are fixed by how the encoder was built."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocess:
    """Preprocessing that turns an image of any size into the input of an image encoder; saved with the model.

    The whole image is resized according to `resize`, then cropped or padded around its center to `size`. Lists, as read from
    JSON, become tuples, and two equal sides become one number.

    Attributes:
        size: height and width of the input in pixels; one number if they are equal.
        channels: 1 (gray), 3 (RGB), or the number of channels of the input arrays.
        mean, std: per channel in the order of `channel_order`, on the [0, 1] scale; the encoder applies them itself.
        interpolation: of the resize, as in Pillow; "lanczos" with torchvision requires torch 2.12 or later.
        resize: "shortest" (keep the aspect and cover `resize_size`), "squash" (ignore the aspect), "pad" (keep the aspect and
            fit into `resize_size`) or "none".
        resize_size: height and width to which the image is resized before the crop; None uses `size`.
        crop_rounding: rounding of the crop's offset if an odd number of pixels is cropped or padded: "round" as in torchvision,
            open_clip and timm (half to even; pads the smaller part first), "truncate" as in transformers for tensors, "floor"
            as in transformers for Pillow images.
        fill: padding value, gray or per channel, from 0 to 255.
        backend: resize implementation, matched bit for bit: "pillow", "torchvision" (its kernel for uint8 tensors; differs from
            Pillow's by up to 2 of 255 levels) or "torchvision_float" (the same in float32, not rounded to levels).
        channel_order: order in which the encoder expects the three channels; images are RGB until then.
        intensity: low and high value that map to the levels 0 and 255 in images of more than 8 bits, or `Percentiles` of each
            image's own values, {"percentiles": [1, 99]} in JSON; values outside are clipped. None uses the full 16-bit range.
            8-bit images are unchanged.
        shrink_on_load: whether a JPEG of at least four times its target size is decoded at 1/2, 1/4 or 1/8 of its size, which
            takes a fraction of the time; on photos the result differs by at most 4 of 255 levels on average.

    Raises:
        UserError: a value is invalid; names it.
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
        fix = f"choose one of {', '.join(get_args(_CHOICES[name]))}" if name in _CHOICES else f"give {_EXPECTED[name]}"
        return UserError(f"preprocess: {name} is {_SHORT.repr(getattr(self, name))}: {fix}")

    def _checks(self) -> dict[str, bool]:
        fill = self.fill if isinstance(self.fill, tuple) else (self.fill,) * self.channels
        return {
            "size": _is_size(self.size),
            "resize_size": self.resize_size is None or _is_size(self.resize_size),
            "mean": len(self.mean) == self.channels and _are_finite(self.mean),
            "std": len(self.std) == self.channels and _are_finite(self.std) and 0 not in self.std,
            "fill": len(fill) == self.channels and all(isinstance(v, int) and 0 <= v <= 255 for v in fill),
            "shrink_on_load": isinstance(self.shrink_on_load, bool),
            **{name: getattr(self, name) in get_args(allowed) for name, allowed in _CHOICES.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocess:
        """Builds from the output of `dataclasses.asdict`. Raises UserError for an unknown field or an invalid value."""
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
        """Height of the input in pixels."""
        return self.size[0] if isinstance(self.size, tuple) else self.size

    @property
    def width(self) -> int:
        """Width of the input in pixels."""
        return self.size[1] if isinstance(self.size, tuple) else self.size

    def changed(self, values: Mapping[str, Any] | None) -> Preprocess:
        """Returns a copy with the fields in `values` replaced; another size shows the same part. Raises as `from_json` does."""
        if not values:
            return self
        size = _plain(values.get("size"), pair=True)
        base = self.at(size) if _is_size(size) else self
        return Preprocess.from_json({**{field.name: getattr(base, field.name) for field in fields(base)}, **values})

    def at(self, size: int | tuple[int, int]) -> Preprocess:
        """Returns a copy that shows the same part of every image at another size."""
        if self.resize_size is None:
            return replace(self, size=size)
        to, now, before = (side if isinstance(side, tuple) else (side, side) for side in (size, self.size, self.resize_size))
        height, width = (round(before[axis] * to[axis] / now[axis]) for axis in (0, 1))
        return replace(self, size=size, resize_size=(height, width))


def as_intensity(value: Any) -> Intensity:
    """Parses `intensity` from a configuration. Raises UserError if it is neither a range nor percentiles."""
    if value is None or isinstance(value, Percentiles):
        return value
    if isinstance(value, Mapping) and list(value) == ["percentiles"]:
        return Percentiles(value["percentiles"])
    given = tuple(value) if isinstance(value, list | tuple) else ()
    if len(given) != 2 or not _are_finite(given) or not given[0] < given[1]:
        raise UserError(f"intensity {value!r}: give [low, high], two rising numbers, or {{percentiles: [1, 99]}}")
    return given


def as_size(size: int | Sequence[int]) -> int | tuple[int, int]:
    """Parses a side, or height and width, from a configuration."""
    return size if isinstance(size, int) else (size[0], size[1])


def _plain(value: Any, *, pair: bool) -> Any:
    """Converts lists to tuples, and a pair of equal sides to one number."""
    value = tuple(value) if isinstance(value, list) else value
    return value[0] if pair and isinstance(value, tuple) and len(value) == 2 and value[0] == value[1] else value


def _are_finite(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, tuple) and len(value) == 2 else (value,)
    return all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in sides)
