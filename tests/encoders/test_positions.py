"""Images of another size: what the library makes of them with a table of positions that was resampled for this size."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from mmcl.encoders import IMAGE_ENCODERS
from mmcl.encoders.patches import encode_patches
from mmcl.types import ImagePatches
from tests.encoders import tiny
from tests.encoders.test_patches import (
    ENCODERS,
    EVA,
    PATCH,
    SIDE,
    SIZES,
    TABLES,
    open_clip,
    shaken,
    timm_model,
    torchvision_model,
)

SMALL = 16
COARSE = [name for name in ENCODERS if name.startswith("transformers") and "registers" not in name]
"""Of libraries that resample without antialiasing."""


def images(rows: int, height: int = SMALL, width: int = SMALL, channels: int = 3) -> Tensor:
    return torch.rand(rows, channels, height, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def resnet(side: int) -> Any:
    """It has a position for every 32 pixels."""
    config = {**copy.deepcopy(tiny._OPEN_CLIP), "vision_cfg": {"image_size": side, "layers": [1, 1, 1, 1], "width": 16}}
    return IMAGE_ENCODERS.build("open_clip", {"config": config})


def resampled(encoder: Any, small: Any, old: int, new: int, *, antialias: bool) -> Any:
    """The encoder of small images with the weights of the other, and with its table resampled by timm."""
    state = encoder.state_dict()
    [table] = [key for key in state if key.endswith(TABLES)]
    shape = small.state_dict()[table].shape
    positions = state[table].reshape(1, -1, shape[-1])
    extra = positions.shape[1] - old**2
    sizes = {"new_size": [new, new], "old_size": [old, old], "num_prefix_tokens": extra}
    positions = resample_abs_pos_embed(positions, **sizes, antialias=antialias).reshape(shape)
    small.load_state_dict({**state, table: positions})
    return small


@pytest.mark.parametrize("name", [*ENCODERS, "open_clip, resnet"])
def test_features_are_those_of_an_encoder_of_this_size(name: str) -> None:
    """Some of the patches, too; and the table that is stored learns from it."""
    build, side, small_side, stride = (
        (resnet, 128, 64, 32) if name == "open_clip, resnet" else (ENCODERS[name], SIDE, SMALL, PATCH)
    )
    encoder, small = shaken(build(side)), shaken(build(small_side))
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)  # timm resamples in float32
    resampled(encoder, small, side // stride, small_side // stride, antialias=name not in COARSE)
    before = copy.deepcopy(encoder.state_dict())
    pixels = images(3, small_side, small_side)
    close(encoder(pixels), small(pixels))
    if encoder.patch_tokens() is not None:
        some = ImagePatches(pixels, torch.tensor([[0, 3], [1, 2], [3, 0]]), 4)
        close(encode_patches(encoder, some), encode_patches(small, some))
    own = images(2, side, side)
    expected = encoder(own)
    encoder(pixels).square().sum().backward()
    [table] = [part for key, part in encoder.named_parameters() if key.endswith(TABLES)]
    assert table.grad is not None
    assert table.grad.any()
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    assert torch.equal(encoder(own), expected)


@pytest.mark.parametrize("name", EVA)
def test_rotary_positions_are_those_of_timm(name: str) -> None:
    """Of a model that timm builds for images of any size, wide ones and small ones with fewer patches among them."""
    args = {**SIZES, "use_rot_pos_emb": False, **EVA[name]}
    encoder = shaken(timm_model(SIDE, "eva02_tiny_patch14_224", **args))
    dynamic = shaken(timm_model(SIDE, "eva02_tiny_patch14_224", **args, dynamic_img_size=True))
    dynamic.load_state_dict(encoder.state_dict())
    own, wide = images(2, SIDE, SIDE), images(2, 16, 48)
    expected = encoder(own)
    torch.testing.assert_close(encoder(wide), dynamic(wide), rtol=1e-6, atol=1e-7)  # positions may be float32
    some = ImagePatches(wide, torch.tensor([[0, 7, 3], [11, 2, 4]]), 12)
    torch.testing.assert_close(encode_patches(encoder, some), encode_patches(dynamic, some), rtol=1e-6, atol=1e-7)
    assert torch.equal(encoder(own), expected)


def test_a_trunk_of_timm_in_open_clip() -> None:
    vision = {"timm_model_name": "test_vit", "timm_pool": "avg", "image_size": 160}
    encoder = shaken(IMAGE_ENCODERS.build("open_clip", {"config": {**copy.deepcopy(tiny._OPEN_CLIP), "vision_cfg": vision}}))
    theirs = copy.deepcopy(encoder.visual)
    theirs.trunk.set_input_size((96, 96))
    pixels = images(2, 96, 96)
    torch.testing.assert_close(encoder(pixels), theirs(encoder.norm(pixels)), rtol=1e-5, atol=1e-6)


def test_maps_of_the_strided_cnn_are_enlarged() -> None:
    """Its linear layer sees them on its own grid, which is 4 x 5 here."""
    args = {"image_size": [32, 40], "widths": [4, 6, 8], "feature_dim": 5}
    encoder = shaken(IMAGE_ENCODERS.build("strided_cnn", args))
    for height, width in ((16, 20), (20, 12), (48, 56)):
        pixels = images(3, height, width)
        maps = nn.functional.interpolate(encoder.stages(pixels), size=(4, 5), mode="bilinear", antialias=True)
        expected = encoder.norm(encoder.project(maps.flatten(1))).relu()
        torch.testing.assert_close(encoder(pixels), expected, rtol=1e-9, atol=1e-11)
        assert expected.any()


@pytest.mark.parametrize("build", [open_clip, timm_model, torchvision_model], ids=["open_clip", "timm", "torchvision"])
def test_parts_of_patches_are_refused(build: Any) -> None:
    with pytest.raises((ValueError, AssertionError), match=r"no whole patches of 8 x 8|divisible by patch size"):
        shaken(build(SIDE))(images(1, 20, 20))
