"""Augmentations: pure functions of the images and of random draws keyed by (seed, epoch, sample, view)."""

from __future__ import annotations

from mmcl.registry import Registry

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
)
