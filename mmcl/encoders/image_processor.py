"""The preprocessor_config.json of a transformers model, whose meaning differs from one processor class to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmcl.errors import UserError
from mmcl.types import Preprocess


def preprocess_of(values: Mapping[str, Any], name: str) -> Preprocess:
    """Reads the settings of an image processor.

    Args:
        values: the content of preprocessor_config.json.
        name: of the model, for the error.

    Raises:
        UserError: they make no square picture.
    """
    crops = bool(values.get("do_center_crop"))
    size = values.get("crop_size") if crops else values.get("size")
    if "max_num_patches" in values:  # SigLIP 2 in native resolution, here at its square one
        size = int(values["patch_size"] * math.sqrt(values["max_num_patches"]))
    if isinstance(size, Mapping):
        sides = {size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))}
        size = sides.pop() if len(sides) == 1 else None
    if not isinstance(size, int):
        raise UserError(f"{name}: its image processor states no square size ({size}); give preprocess")
    normalises = values.get("do_normalize", True)
    mean = tuple(values.get("image_mean") or ()) if normalises else ()
    keeps_aspect = crops or (isinstance(values.get("size"), Mapping) and "shortest_edge" in values["size"])
    return Preprocess(
        size=size,
        channels=len(mean) or 3,
        mean=mean or (0.0, 0.0, 0.0),
        std=tuple(values["image_std"]) if mean else (1.0, 1.0, 1.0),
        # Pillow's numbers; Lanczos (1) is nearest to bicubic of what there is.
        interpolation={0: "nearest", 2: "bilinear"}.get(values.get("resample", 3), "bicubic"),  # type: ignore[arg-type]
        resize="shortest" if keeps_aspect else "squash",
    )
