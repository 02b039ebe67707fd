"""Conversion of transformers' image processors to `Preprocess`; unsupported operations are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mmcl.errors import UserError
from mmcl.logging import get_logger, note
from mmcl.preprocess import TORCHVISION_LANCZOS, Interpolation, Preprocess, Resize

logger = get_logger(__name__)

Size = int | tuple[int, int]

RESAMPLE: Mapping[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
"""Interpolation modes by Pillow's numbers, which the processors store."""

_SUPPORTED = (
    *("Beit", "Bit", "Blip", "Chameleon", "ChineseCLIP", "CLIP", "ConvNext", "DeiT", "DINOv3ViT", "EfficientNet", "Flava"),
    *("Gemma3", "GotOcr2", "Levit", "Llava", "MobileNetV1", "MobileNetV2", "MobileViT", "Ovis2", "OwlViT", "PoolFormer"),
    *("PPChart2Table", "Pvt", "RTDetr", "Sam2", "Sam3", "Sapiens2", "Segformer", "SegGpt", "Siglip", "Tipsv2", "Tipsv2Dpt"),
    "ViT",
)
"""Processors that resize, crop, rescale and normalize, in this order; the functions below handle their differences."""

_DOES_MORE = ("do_pad", "crop_to_patches", "do_pan_and_scan")
"""Settings that enable other operations."""

_NEVER_CROP = ("Gemma3", "GotOcr2", "RTDetr", "Segformer", "SegGpt")
"""Processors that ignore `do_center_crop`."""

_GIVE = "give preprocess with size, mean and std"

_CONVNEXT_SQUASHES_FROM = 384
"""Size from which ConvNext's processor ignores the aspect ratio; below it, it resizes to `size / crop_pct` and crops."""


def preprocess_of(processor: Any, name: str) -> Preprocess:
    """Return the settings of an image processor.

    Args:
        processor: as built by `transformers.AutoImageProcessor`. Processors on tensors resize differently from processors on
            Pillow images.
        name: name of the model, for error messages.

    Raises:
        UserError: `Preprocess` does not support an operation of the processor; the message names its class or setting.
    """
    given = _Settings(_kind(processor), processor.to_dict(), name)
    if given.kind == "Siglip2":
        raise UserError(
            f"{name}: SigLIP 2 in native resolution (NaFlex) keeps the aspect of every image, which is not supported; take a "
            f"model of fixed resolution, such as google/siglip2-base-patch16-224, or {_GIVE}"
        )
    if given.kind not in _SUPPORTED:
        raise UserError(f"{name}: images as {given.kind}ImageProcessor makes them are not supported; {_GIVE}")
    resize, resize_size, size = _geometry(given)
    mean, std = _constants(given)
    interpolation, on_tensors = _interpolation(given), _works_on_tensors(processor)
    if on_tensors and interpolation == "lanczos" and torch.__version__ < TORCHVISION_LANCZOS:
        note(
            logger,
            f"{name}: torch {torch.__version__} resizes no tensors by Lanczos, as {given.kind}ImageProcessor asks, and "
            f"{TORCHVISION_LANCZOS} does; images are resized by Pillow, whose Lanczos differs by some levels of 255",
        )
        on_tensors = False
    # DINOv3's rescales first.
    tensor_backend = "torchvision_float" if given.kind == "DINOv3ViT" and given.get("do_rescale") else "torchvision"
    return Preprocess(
        size=size,
        mean=mean,
        std=std,
        interpolation=interpolation,
        resize=resize,
        resize_size=resize_size,
        crop_rounding="truncate" if on_tensors else "floor",
        fill=0,
        backend=tensor_backend if on_tensors else "pillow",  # type: ignore[arg-type]
        channel_order="bgr" if given.kind == "MobileViT" and given.get("do_flip_channel_order") else "rgb",
    )


@dataclass(frozen=True, slots=True)
class _Settings:
    """Settings of one image processor, with the defaults of its class."""

    kind: str
    values: Mapping[str, Any]
    name: str

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def refusal(self, key: str) -> UserError:
        return UserError(
            f"{self.name}: images as {self.kind}ImageProcessor makes them with {key} {self.get(key)!r} are not supported; "
            f"{_GIVE}"
        )


def _kind(processor: Any) -> str:
    return type(processor).__name__.removesuffix("Pil").removesuffix("Fast").removesuffix("ImageProcessor")


def _works_on_tensors(processor: Any) -> bool:
    return getattr(processor, "backend", "") == "torchvision" or type(processor).__name__.endswith("Fast")


def _geometry(given: _Settings) -> tuple[Resize, Size | None, Size]:
    """Return the resize mode, the size after resizing, and the size after cropping."""
    for key in _DOES_MORE:
        if given.get(key):
            raise given.refusal(key)
    resize, resize_size = _resize(given)
    if given.kind == "ConvNext" and resize == "shortest":
        if given.get("do_center_crop"):
            raise given.refusal("do_center_crop")
        return resize, resize_size, int(_sides(given, "size")["shortest_edge"])
    if given.get("do_center_crop") and given.kind not in _NEVER_CROP:
        crop = _sides(given, "crop_size")
        if set(crop) != {"height", "width"}:
            raise given.refusal("crop_size")
        return resize, resize_size, (crop["height"], crop["width"])
    if resize != "squash" or resize_size is None:  # Images would have different sizes.
        raise given.refusal("do_resize" if resize == "none" else "do_center_crop")
    return resize, resize_size, resize_size


def _resize(given: _Settings) -> tuple[Resize, Size | None]:
    if not given.get("do_resize"):
        return "none", None
    sides, crop_pct = _sides(given, "size"), given.get("crop_pct")
    if set(sides) == {"height", "width"} and given.kind != "ConvNext":
        height, width = sides["height"], sides["width"]
        if given.kind != "PoolFormer" or crop_pct is None:
            return "squash", (height, width)
        scaled = int(height / crop_pct), int(width / crop_pct)
        return ("shortest" if height == width else "squash"), scaled
    if set(sides) != {"shortest_edge"}:
        raise given.refusal("size")
    edge = sides["shortest_edge"]
    if given.kind == "ConvNext" and edge >= _CONVNEXT_SQUASHES_FROM:
        return "squash", edge
    if given.kind in ("ConvNext", "PoolFormer") and crop_pct is not None:
        return "shortest", int(edge / crop_pct)
    return "shortest", int((256 / 224) * edge) if given.kind == "Levit" else edge


def _sides(given: _Settings, key: str) -> dict[str, int]:
    return {side: length for side, length in dict(given.get(key) or {}).items() if length is not None}


def _constants(given: _Settings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation on the [0, 1] scale for all operations on levels from 0 to 255."""
    scale = 255 * given.get("rescale_factor") if given.get("do_rescale") else 255.0
    mean, std = (_per_channel(given.get(key)) for key in ("image_mean", "image_std"))
    divisor = std
    if not given.get("do_normalize") or given.kind == "MobileViT":
        mean, divisor = (0.0,) * 3, (1.0,) * 3
    if given.kind == "EfficientNet" and given.get("rescale_offset") and given.get("do_rescale"):
        mean = tuple(value + 1 for value in mean)
    if given.kind == "EfficientNet" and given.get("include_top"):  # divides by the deviation once more
        divisor = tuple(value * again for value, again in zip(divisor, std, strict=True))
    return tuple(value / scale for value in mean), tuple(value / scale for value in divisor)


def _per_channel(values: Any) -> tuple[float, ...]:
    channels: tuple[float, ...] = tuple(values) if isinstance(values, list | tuple) else (values,)
    return channels * 3 if len(channels) == 1 else channels


def _interpolation(given: _Settings) -> Interpolation:
    number = given.get("resample")
    if number is None:
        return "bilinear"
    if number not in RESAMPLE:
        raise given.refusal("resample")
    return RESAMPLE[int(number)]
