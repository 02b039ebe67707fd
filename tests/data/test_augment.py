"""Every augmentation against torchvision or a loop, one image at a time, and as a pure function of its draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from mmcl.config import ComponentConfig
from mmcl.data.augment import AUGMENTATIONS
from mmcl.data.augment.affine import Affine
from mmcl.data.augment.color import turn_hue
from mmcl.data.augment.crop import random_boxes
from mmcl.data.augment.pipeline import Augmentation, AugmentationPipeline
from mmcl.data.images.crop import BOX_DRAWS, random_box
from mmcl.errors import UserError
from tests.narrow import of_type

STRONG: dict[str, dict[str, Any]] = {
    "affine": {"rotation": 30, "scale": [0.7, 1.4], "translation": 0.2, "shear": 10, "elastic": 0.1, "fill": 0.3},
    "blur": {"p": 1.0},
    "color_jitter": {"p": 1.0},
    "crop": {"scale": [0.2, 0.8]},
    "erase": {"p": 1.0},
    "grayscale": {"p": 0.5},
    "hflip": {"p": 0.5},
    "invert": {"p": 0.5},
    "solarize": {"p": 0.5},
    "stroke": {"strength": 1.0},
}
ZERO: dict[str, dict[str, Any]] = {
    "affine": {},
    "blur": {"sigma": [0.01, 0.01]},
    "color_jitter": {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0},
    "crop": {"scale": [1, 1], "ratio": [11 / 13, 11 / 13]},
    "erase": {"area": [0, 0]},
    "grayscale": {"p": 0},
    "hflip": {"p": 0},
    "invert": {"p": 0},
    "solarize": {"p": 0},
    "stroke": {"strength": 0},
}
COLOR_ONLY = {"grayscale"}


def build(name: str, **args: Any) -> Augmentation:
    augmentation: Augmentation = AUGMENTATIONS.build(name, args)
    return augmentation


def pipeline(*names: str, settings: Mapping[str, dict[str, Any]] = STRONG) -> AugmentationPipeline:
    return AugmentationPipeline.build([ComponentConfig(name=name, args=settings[name]) for name in names])


def pictures(batch: int = 7, channels: int = 3, height: int = 13, width: int = 11) -> Tensor:
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


def draws(batch: int, operation: Augmentation) -> Tensor:
    return torch.rand(batch, operation.draws, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def run(one: AugmentationPipeline, images: Tensor, rows: list[int], *, seed: int = 0, epoch: int = 0, view: int = 0) -> Tensor:
    index = np.array(rows)
    return one(images[rows], seed=seed, epoch=np.full(len(rows), epoch), index=index, view=view)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ZERO)
def test_nothing_happens_at_zero_strength(name: str, channels: int) -> None:
    images = pictures(channels=channels)
    assert torch.allclose(run(pipeline(name, settings=ZERO), images, list(range(7))), images, atol=1e-5)


@pytest.mark.parametrize("name", STRONG)
def test_some_images_are_changed_after_all_were(name: str) -> None:
    images, rows = pictures(20, height=11), list(range(20))
    both = AugmentationPipeline((build(name, **STRONG[name] | {"p": 1.0}), build("invert", p=0.5)))
    first = run(AugmentationPipeline(both.operations[:1]), images, rows)
    inverted = [torch.equal(row, 1 - before) for row, before in zip(run(both, images, rows), first, strict=True)]
    kept = [torch.equal(row, before) for row, before in zip(run(both, images, rows), first, strict=True)]
    assert all(a != b for a, b in zip(inverted, kept, strict=True))
    assert any(inverted)
    assert any(kept)


def test_large_images_are_done_in_parts() -> None:
    images, one = pictures(5, 3, 200, 200), pipeline("color_jitter", "affine")
    whole = run(one, images, list(range(5)))
    assert all(torch.equal(run(one, images, [row])[0], whole[row]) for row in range(5))


def test_an_operation_twice_in_a_policy_draws_twice() -> None:
    images = torch.ones(200, 1, 1, 1)
    once, twice = pipeline("invert"), pipeline("invert", "invert")
    rows = list(range(200))
    assert run(once, images, rows).mean() == pytest.approx(0.5, abs=0.15)
    assert 0.2 < run(twice, images, rows).mean() < 0.8, "equal draws would undo each other, always"


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_p_is_the_share_of_images_that_change(p: float) -> None:
    changed = run(AugmentationPipeline((build("invert", p=p),)), torch.ones(2000, 1, 1, 1), list(range(2000))) == 0
    assert changed.float().mean() == pytest.approx(p, abs=0.04)


@pytest.mark.parametrize("shape", [(13, 11), (16, 16)])
def test_affine_is_torchvisions(shape: tuple[int, int]) -> None:
    operation = build("affine", rotation=40, scale=[0.6, 1.5], translation=0.3, shear=20, fill=0.25)
    images = pictures(9, 3, *shape)
    draw = draws(9, operation)
    for image, (angle, scale, x, y, shear), ours in zip(images, draw.tolist(), operation(images, draw), strict=True):
        # torchvision brings in black.
        expected = F.affine(
            image - 0.25,
            angle=(2 * angle - 1) * 40,
            translate=[(2 * x - 1) * 0.3 * shape[1], (2 * y - 1) * 0.3 * shape[0]],
            scale=0.6 + scale * 0.9,
            shear=[(2 * shear - 1) * 20, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        assert torch.allclose(ours, expected + 0.25, atol=1e-4)


def test_elastic_moves_by_the_grids_points() -> None:
    operation = of_type(Affine, build("affine", elastic=0.25, elastic_grid=2, fill=0.0))
    images = pictures(3, 1, 8, 8)
    draw = draws(3, operation)
    draw[0, 5:] = torch.tensor([1.0] * 4 + [0.5] * 4)  # All points a quarter to the right: 2 of 8 pixels.
    assert torch.allclose(operation(images, draw)[0, :, :, :6], images[0, :, :, 2:], atol=1e-5)
    expected = torch.nn.functional.interpolate(
        (draw[1:2, 5:].float().reshape(1, 2, 2, 2) * 2 - 1) * 0.5, size=(8, 8), mode="bicubic", align_corners=True
    )
    assert torch.allclose(operation._displacement(draw[1:2, 5:], 8, 8).permute(0, 3, 1, 2), expected, atol=1e-6)


def test_hflip() -> None:
    images = pictures()
    assert torch.equal(build("hflip")(images, draws(7, build("hflip"))), F.horizontal_flip(images))


def test_color_jitter_is_torchvisions() -> None:
    operation = build("color_jitter", brightness=0.5, contrast=0.6, saturation=0.7, hue=0.3)
    images, draw = pictures(), draws(7, operation)
    for image, (b, c, s, h), ours in zip(images, draw.tolist(), operation(images, draw), strict=True):
        expected = F.adjust_brightness(image, 0.5 + b)
        expected = F.adjust_contrast(expected, 0.4 + 1.2 * c)
        expected = F.adjust_saturation(expected, 0.3 + 1.4 * s)
        expected = F.adjust_hue(expected, (2 * h - 1) * 0.3)
        assert torch.allclose(ours, expected, atol=1e-4)


def test_gray_images_have_brightness_and_contrast_only() -> None:
    operation = build("color_jitter", saturation=0, hue=0)
    images, draw = pictures(channels=1), draws(7, operation)
    for image, (b, c, _, _), ours in zip(images, draw.tolist(), operation(images, draw), strict=True):
        expected = F.adjust_contrast(F.adjust_brightness(image, 0.6 + 0.8 * b), 0.6 + 0.8 * c)
        assert torch.allclose(ours, expected, atol=1e-5)
    for name, args in (("color_jitter", {"hue": 0}), ("color_jitter", {"saturation": 0}), ("grayscale", {})):
        with pytest.raises(UserError, match="3 channels"):
            build(name, **args)(images, draw)


def test_hue_of_grays_and_a_full_turn() -> None:
    grays = pictures(channels=1).expand(-1, 3, -1, -1)
    assert torch.equal(turn_hue(grays, torch.full((7,), 0.3)), grays)
    assert torch.allclose(turn_hue(pictures(), torch.ones(7)), pictures(), atol=1e-5)


def test_grayscale_solarize_invert_are_torchvisions() -> None:
    images = pictures()
    nothing = torch.empty(7, 0)
    assert torch.allclose(build("grayscale")(images, nothing), F.rgb_to_grayscale(images, 3), atol=1e-6)
    assert torch.equal(build("solarize", threshold=0.3)(images, nothing), F.solarize(images, 0.3))
    assert torch.equal(build("invert")(images, nothing), F.invert(images))


def test_blur_is_torchvisions() -> None:
    operation = build("blur", sigma=[0.2, 1.5])
    images, draw = pictures(), draws(7, operation)
    for image, (s,), ours in zip(images, draw.tolist(), operation(images, draw), strict=True):
        expected = F.gaussian_blur(image, kernel_size=[11, 11], sigma=[0.2 + 1.3 * s] * 2)
        assert torch.allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("size", [None, 5, 8, 30])
def test_crop_is_pillows_resize_of_a_box(size: int | None) -> None:
    """The same triangle filter, averaging where it shrinks; the boxes are those of the crop at decoding."""
    operation = build("crop", scale=[0.1, 0.9], ratio=[0.5, 2.0], size=size)
    images, draw = pictures(32, channels=1), draws(32, operation)
    boxes = [random_box(row.__getitem__, 11, 13, (0.1, 0.9), (0.5, 2.0)) for row in draw.tolist()]
    cropped = operation(images, draw)
    assert cropped.shape == (32, 1, size or 13, size or 11)
    for image, box, ours in zip(images, boxes, cropped, strict=True):
        pillow = Image.fromarray(image[0].numpy())
        expected = pillow.resize((size or 11, size or 13), Image.Resampling.BILINEAR, box=box)
        assert np.allclose(ours[0], np.asarray(expected), atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.08, 1.0), (0.75, 1.3333)), ((1.0, 1.0), (0.5, 2.0)), ((0.9, 1.0), (1.0, 1.0))]
)
@pytest.mark.parametrize(("width", "height"), [(640, 480), (9, 100)])
def test_boxes_of_a_batch_are_those_of_single_images(
    scale: tuple[float, float], ratio: tuple[float, float], width: int, height: int
) -> None:
    draw = np.random.default_rng(0).random((500, BOX_DRAWS))
    ours = random_boxes(draw, width, height, scale, ratio)
    expected = [random_box(row.__getitem__, width, height, scale, ratio) for row in draw.tolist()]
    assert np.allclose(ours, expected, rtol=0, atol=1e-9)


def test_erase_against_a_loop() -> None:
    operation = build("erase", area=[0.1, 0.9], ratio=[0.2, 5.0], fill=0.7)
    images, draw = pictures(32), draws(32, operation)
    expected = images.clone()
    for image, (a, r, y, x) in zip(expected, draw.tolist(), strict=True):
        area, ratio = (0.1 + 0.8 * a) * 13 * 11, math.exp(math.log(0.2) + r * math.log(25))
        height, width = min(13, round(math.sqrt(area * ratio))), min(11, round(math.sqrt(area / ratio)))
        top, left = int(y * (13 - height + 1)), int(x * (11 - width + 1))
        image[:, top : top + height, left : left + width] = 0.7
    assert torch.equal(operation(images, draw), expected)


def test_stroke_against_a_loop() -> None:
    operation = build("stroke", strength=0.8)
    images, draw = pictures(channels=1), draws(7, operation)
    for image, (u,), ours in zip(images, draw.tolist(), operation(images, draw), strict=True):
        amount = (2 * u - 1) * 0.8
        for y in range(13):
            for x in range(11):
                around = image[0, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                goal = around.max() if amount > 0 else around.min()
                expected = image[0, y, x] + abs(amount) * (goal - image[0, y, x])
                assert ours[0, y, x] == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("affine", {"rotation": -1}, "rotation is -1; give degrees"),
        ("affine", {"scale": [1.2, 0.8]}, "scale is .*give .from, to"),
        ("affine", {"fill": 255}, "fill is 255; give a gray value from 0 to 1"),
        ("blur", {"sigma": [0, 1]}, "sigma"),
        ("color_jitter", {"hue": 0.7}, "hue"),
        ("crop", {"scale": [0, 1]}, "scale is .*give .from, to"),
        ("crop", {"p": 0.5, "size": 9}, "p is 0.5; give 1 where `size` is set"),
        ("erase", {"area": [0.5]}, "area"),
        ("stroke", {"strength": 2}, "strength"),
        ("hflip", {"p": 1.5}, "p is 1.5; give a probability"),
        ("hflip", {"probability": 0.5}, "unknown argument"),
        ("flip", {}, "did you mean 'hflip'"),
    ],
)
def test_bad_arguments_are_named(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AugmentationPipeline.build([ComponentConfig(name=name, args=args)])
