"""Encoders of some of the patches: what the library itself makes of an image of these patches alone, at their positions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torchvision
from timm.layers.patch_dropout import PatchDropoutWithIndices
from torch import Tensor

from mmcl.encoders import IMAGE_ENCODERS
from mmcl.encoders.patches import encode_patches
from mmcl.errors import UserError
from mmcl.types import ImagePatches
from tests.encoders import tiny

PATCH, SIDE, KEPT_SIDE = 8, 32, 16
ALL, KEPT = (SIDE // PATCH) ** 2, (KEPT_SIDE // PATCH) ** 2


def open_clip(side: int, **vision: Any) -> Any:
    config = copy.deepcopy(tiny._OPEN_CLIP)
    config["vision_cfg"].update(patch_size=PATCH, image_size=side, **vision)
    return IMAGE_ENCODERS.build("open_clip", {"config": config})


def timm_model(side: int, name: str = "test_vit", **args: Any) -> Any:
    return IMAGE_ENCODERS.build("timm", {"name": name, "image_size": side, "model_args": {"patch_size": PATCH, **args}})


def torchvision_model(side: int) -> Any:
    """The library's own sizes have 86 million parameters."""
    encoder = IMAGE_ENCODERS.build("torchvision", {"name": "mobilenet_v3_small", "image_size": side})
    encoder.model = torchvision.models.VisionTransformer(
        image_size=side, patch_size=PATCH, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    encoder.model.heads = torch.nn.Identity()
    return encoder


def transformers_model(side: int, kind: str, **more: Any) -> Any:
    vision = {**tiny._VISION, "patch_size": PATCH, "image_size": side, **more}
    dual = {"text_config": tiny._TEXT, "vision_config": vision}
    config = {"model_type": kind, **(dual if kind in ("clip", "siglip") else vision)}
    shown = {"size": side, "mean": [0.5] * 3, "std": [0.5] * 3}
    return IMAGE_ENCODERS.build("transformers", {"config": config, "preprocess": shown})


ENCODERS: dict[str, Callable[[int], Any]] = {
    "open_clip": open_clip,
    "open_clip, mean of the patches": lambda side: open_clip(side, pool_type="avg", final_ln_after_pool=True),
    "open_clip, attention pool": lambda side: open_clip(side, attentional_pool=True, attn_pooler_heads=4, output_tokens=True),
    "timm": timm_model,
    "timm, registers": lambda side: timm_model(side, reg_tokens=2, no_embed_class=True, global_pool="avg"),
    "timm, no class token": lambda side: timm_model(side, class_token=False, global_pool="map"),
    "timm, distilled": lambda side: timm_model(side, "deit_tiny_distilled_patch16_224", embed_dim=16, depth=2, num_heads=2),
    "torchvision": torchvision_model,
    **{f"transformers {kind}": partial(transformers_model, kind=kind) for kind in ("clip", "siglip", "vit", "deit", "dinov2")},
    "transformers dinov2_with_registers": lambda side: transformers_model(side, "dinov2_with_registers", num_register_tokens=3),
    "transformers chinese_clip_vision_model": lambda side: transformers_model(side, "chinese_clip_vision_model"),
}
"""By name: an encoder of images of a size, with positions in a table."""

TABLES = ("positional_embedding", "pos_embed", "pos_embedding", "position_embedding.weight", "position_embeddings")


def shaken(encoder: Any) -> Any:
    return tiny.shaken(encoder).double()


def draws(rows: int) -> tuple[Tensor, Tensor]:
    """Images in float64, and the patches kept of each, in no order."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(rows, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return pixels, torch.stack([torch.randperm(ALL, generator=generator)[:KEPT] for _ in range(rows)])


def image_of(pixels_CHW: Tensor, kept: list[int]) -> Tensor:
    """A small image that is made of some patches of a large one, [1, C, H, W]."""
    across = SIDE // PATCH
    corners = [(PATCH * (number // across), PATCH * (number % across)) for number in kept]
    cut = [pixels_CHW[:, y : y + PATCH, x : x + PATCH] for y, x in corners]
    side = KEPT_SIDE // PATCH
    return torch.cat([torch.cat(cut[row * side : (row + 1) * side], 2) for row in range(side)], 1)[None]


@pytest.mark.parametrize("name", ENCODERS)
def test_features_are_those_of_an_image_of_these_patches(name: str) -> None:
    """The library encodes, one by one, small images made of the kept patches, with a table of their positions."""
    encoder, small = shaken(ENCODERS[name](SIDE)), shaken(ENCODERS[name](KEPT_SIDE))
    state = encoder.state_dict()
    [table] = [key for key in state if key.endswith(TABLES)]
    pixels_BCHW, kept_BK = draws(3)
    with torch.no_grad():
        found_BF = encode_patches(encoder, ImagePatches(pixels_BCHW, kept_BK, ALL))
        for pixels_CHW, kept, found in zip(pixels_BCHW, kept_BK.tolist(), found_BF, strict=True):
            extra = state[table].shape[-2] - ALL
            rows = [*range(extra), *(extra + number for number in kept)]
            small.load_state_dict({**state, table: state[table][..., rows, :]})
            torch.testing.assert_close(found, small(image_of(pixels_CHW, kept))[0], rtol=1e-9, atol=1e-11)
        again = encode_patches(encoder, ImagePatches(pixels_BCHW, torch.arange(ALL).expand(3, -1), ALL))
        torch.testing.assert_close(again, encoder(pixels_BCHW), rtol=1e-12, atol=0)
        assert (found_BF - again).abs().max() > 1e-3, "patches count"


EVA: dict[str, dict[str, Any]] = {
    "eva, rotary": {"use_rot_pos_emb": True, "num_reg_tokens": 2},
    "eva, rotary alone": {"use_rot_pos_emb": True, "use_abs_pos_emb": False, "class_token": False, "global_pool": "avg"},
    "eva, rotary of every layer": {"use_rot_pos_emb": True, "rope_type": "mixed"},
    "eva, a table": {},
}
SIZES: dict[str, Any] = {"patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("name", EVA)
def test_rotary_positions_are_those_of_timm(name: str) -> None:
    """timm drops patches itself, in the order of numbers that are drawn for them."""
    encoder = shaken(timm_model(SIDE, "eva02_tiny_patch14_224", **{**SIZES, "use_rot_pos_emb": False, **EVA[name]}))
    theirs = copy.deepcopy(encoder.model).train()
    theirs.patch_drop = PatchDropoutWithIndices(1 - KEPT / ALL, num_prefix_tokens=theirs.num_prefix_tokens, ordered=True)
    pixels_BCHW, kept_BK = draws(3)
    rank_BL = torch.ones(3, ALL).scatter(1, kept_BK, 0.0)
    with torch.no_grad():
        found = encode_patches(encoder, ImagePatches(pixels_BCHW, kept_BK, ALL))
        with mock.patch("torch.randn", return_value=rank_BL):
            expected = theirs(encoder.norm(pixels_BCHW))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(encoder(pixels_BCHW), theirs.eval()(encoder.norm(pixels_BCHW)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("vision", [{"timm_model_name": "test_vit", "timm_pool": "avg", "image_size": 160}])
def test_a_trunk_of_timm_in_open_clip(vision: dict[str, Any]) -> None:
    """Patches that are left out may have any pixels."""
    config = {**copy.deepcopy(tiny._OPEN_CLIP), "vision_cfg": vision}
    encoder = shaken(IMAGE_ENCODERS.build("open_clip", {"config": config}))
    pixels = torch.rand(2, 3, 160, 160, dtype=torch.float64)
    kept = torch.tensor([[3, 50, 99], [0, 9, 10]])
    others = torch.rand_like(pixels)
    for row, numbers in enumerate(kept.tolist()):
        for number in numbers:
            y, x = 16 * (number // 10), 16 * (number % 10)
            others[row, :, y : y + 16, x : x + 16] = pixels[row, :, y : y + 16, x : x + 16]
    with torch.no_grad():
        found, again = (encode_patches(encoder, ImagePatches(one, kept, 100)) for one in (pixels, others))
        torch.testing.assert_close(found, again, rtol=1e-12, atol=1e-14)
        assert (encoder(pixels) - encoder(others)).abs().max() > 1e-3


WITHOUT: dict[str, Callable[[], Any]] = {
    "small_cnn": lambda: IMAGE_ENCODERS.build("small_cnn", {}),
    "open_clip resnet": lambda: IMAGE_ENCODERS.build("open_clip", {"arch": "RN50"}),
    "timm resnet": lambda: IMAGE_ENCODERS.build("timm", {"name": "test_resnet"}),
    "timm, windows": lambda: IMAGE_ENCODERS.build("timm", {"name": "swin_tiny_patch4_window7_224"}),
    "timm, padded": lambda: timm_model(SIDE, dynamic_img_size=True, dynamic_img_pad=True),
    "torchvision": lambda: IMAGE_ENCODERS.build("torchvision", {"name": "resnet18"}),
    "transformers beit": lambda: transformers_model(SIDE, "beit", use_relative_position_bias=True),
    "transformers ijepa": lambda: transformers_model(SIDE, "ijepa"),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_other_encoders_say_that_they_need_all(name: str) -> None:
    assert WITHOUT[name]().patch_tokens() is None


def test_a_patch_dropout_of_the_library_is_in_the_way() -> None:
    with pytest.raises(UserError, match=r"a patch dropout of its own, vision_cfg\.patch_dropout: remove that"):
        open_clip(SIDE, patch_dropout=0.5).patch_tokens()
    for name in ("test_vit", "eva02_tiny_patch14_224"):
        with pytest.raises(UserError, match="a patch dropout of its own, patch_drop_rate: remove that"):
            timm_model(SIDE, name, patch_drop_rate=0.5).patch_tokens()


def test_other_numbers_of_patches_are_refused() -> None:
    pixels, kept = draws(2)
    with pytest.raises(ValueError, match="it has 17 tokens, not 1 and those of 25 patches"):
        encode_patches(shaken(timm_model(SIDE)), ImagePatches(pixels, kept, 25))
