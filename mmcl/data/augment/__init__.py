"""Augmentation: every operation is a pure function of the pictures and of draws that belong to (seed, epoch, sample, view)."""

from __future__ import annotations

from mmcl.registry import Registry

AUGMENTATIONS = Registry(
    "augmentation",
    {
        "affine": "mmcl.data.augment.affine:Affine",
        "blur": "mmcl.data.augment.neighbourhood:Blur",
        "colour_jitter": "mmcl.data.augment.colour:ColourJitter",
        "crop": "mmcl.data.augment.crop:Crop",
        "erase": "mmcl.data.augment.erase:Erase",
        "greyscale": "mmcl.data.augment.colour:Greyscale",
        "hflip": "mmcl.data.augment.affine:HorizontalFlip",
        "invert": "mmcl.data.augment.colour:Invert",
        "solarise": "mmcl.data.augment.colour:Solarise",
        "stroke": "mmcl.data.augment.neighbourhood:Stroke",
    },
)
