"""Views of methods with two large crops of every image and any number of small ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from mmcl.errors import UserError

LARGE: Mapping[str, Literal["image", "text"]] = {"a": "image", "b": "image"}


def crop_views(small_crops: int) -> dict[str, Literal["image", "text"]]:
    """Return the large views and `small_0`, `small_1`, ..., as `Method.views`. Raise UserError for a negative number."""
    if small_crops < 0:
        raise UserError(f"small_crops is {small_crops}: give a number of views, 0 or more")
    return {**LARGE, **{f"small_{number}": "image" for number in range(small_crops)}}
