"""What transformers' image processors state, read as they mean it."""

from __future__ import annotations

from typing import Any

import pytest

from mmcl.encoders.image_processor import preprocess_of
from mmcl.errors import UserError
from mmcl.types import Preprocess

_NORM = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
_MEAN, _STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(
            {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "resample": 3},
            Preprocess(size=224, mean=_MEAN, std=_STD, resize="shortest"),
            id="clip",
        ),
        pytest.param(
            {"size": 224, "crop_size": 224, "do_center_crop": True},
            Preprocess(size=224, mean=_MEAN, std=_STD, resize="shortest"),
            id="clip-old",
        ),
        pytest.param(
            {"size": {"height": 384, "width": 384}, "resample": 2},
            Preprocess(size=384, mean=_MEAN, std=_STD, interpolation="bilinear", resize="squash"),
            id="vit-siglip",
        ),
        pytest.param(
            {"size": 224, "crop_size": 299, "do_center_crop": False, "resample": 0},
            Preprocess(size=224, mean=_MEAN, std=_STD, interpolation="nearest", resize="squash"),
            id="old-without-crop",
        ),
        pytest.param(
            {"patch_size": 16, "max_num_patches": 256},
            Preprocess(size=256, mean=_MEAN, std=_STD, resize="squash"),
            id="siglip2",
        ),
        pytest.param({"size": 8, "do_normalize": False}, Preprocess(size=8, resize="squash"), id="no-norm"),
    ],
)
def test_settings_are_read_as_they_are_meant(values: dict[str, Any], expected: Preprocess) -> None:
    assert preprocess_of({**_NORM, **values}, "model") == expected


@pytest.mark.parametrize("values", [{}, {"size": {"height": 224, "width": 112}}, {"size": {"longest_edge": 224}}])
def test_no_square_size_is_an_error(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="model: its image processor states no square size"):
        preprocess_of({**_NORM, **values}, "model")
