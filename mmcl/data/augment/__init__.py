"""Augmentations: pure functions of the images and of random draws keyed by (seed, epoch, sample, view)."""

from __future__ import annotations

import re

from mmcl.registry import Registry

_OTHER_NAMES = {
    **dict.fromkeys(("rotate", "rotation", "random_rotation"), "'affine' with args {rotation: 10}"),
    **dict.fromkeys(("scale", "zoom", "resize"), "'affine' with args {scale: [0.8, 1.2]}"),
    **dict.fromkeys(("shift", "translate", "translation"), "'affine' with args {translation: 0.1}"),
    **dict.fromkeys(("shear", "skew"), "'affine' with args {shear: 5}"),
    **dict.fromkeys(("elastic", "warp", "deform", "random_affine"), "'affine'"),
    **dict.fromkeys(("random_crop", "resized_crop", "random_resized_crop"), "'crop'"),
    **dict.fromkeys(("flip", "mirror", "horizontal_flip", "random_horizontal_flip"), "'hflip'"),
    **dict.fromkeys(("jitter", "brightness", "contrast", "saturation", "hue"), "'color_jitter'"),
    **dict.fromkeys(("gray", "grey", "greyscale", "random_grayscale", "to_gray"), "'grayscale'"),
    **dict.fromkeys(("gaussian_blur", "smooth"), "'blur'"),
    **dict.fromkeys(("cutout", "random_erasing", "coarse_dropout"), "'erase'"),
    **dict.fromkeys(("negative", "random_invert"), "'invert'"),
}
"""What other libraries call these augmentations."""


def _suggestion(name: str) -> str | None:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("-", "_")
    return _OTHER_NAMES.get(words)


AUGMENTATIONS = Registry(
    "augmentation",
    {
        "affine": "mmcl.data.augment.affine:Affine",
        "blur": "mmcl.data.augment.filters:Blur",
        "color_jitter": "mmcl.data.augment.color:ColorJitter",
        "crop": "mmcl.data.augment.crop:Crop",
        "erase": "mmcl.data.augment.erase:Erase",
        "grayscale": "mmcl.data.augment.color:Grayscale",
        "hflip": "mmcl.data.augment.affine:HorizontalFlip",
        "invert": "mmcl.data.augment.color:Invert",
        "solarize": "mmcl.data.augment.color:Solarize",
        "stroke": "mmcl.data.augment.filters:Stroke",
    },
    suggest=_suggestion,
)
