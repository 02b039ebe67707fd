"""Preprocessing against each library's own evaluation transform: bit for bit, before normalization."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import PILToTensor, ToTensor

from mmcl.data.images.tensors import to_tensor
from mmcl.encoders import open_clip as our_open_clip
from mmcl.encoders import timm as our_timm
from mmcl.encoders import torchvision as our_torchvision
from mmcl.errors import UserError
from mmcl.preprocess import Preprocess
from tests.narrow import of_type

SHAPES = {
    "portrait": (48, 83),
    "landscape": (131, 48),
    "square": (61, 61),
    "tiny": (3, 2),
    "one pixel": (1, 1),
    "huge": (1000, 700),
    "long": (700, 40),
    "odd": (224, 299),
}


def image(shape: str) -> Image.Image:
    width, height = SHAPES[shape]
    blocks = np.random.default_rng(0).integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((4, 4, 1), np.uint8))[:height, :width])


def levels(transform: Any, shown: Image.Image) -> Tensor:
    """The pixels of a composed transform before its normalization, uint8 [C, H, W]."""
    for step in transform.transforms:
        if isinstance(step, torchvision.transforms.Normalize):
            break
        shown = step(shown)
    return (shown * 255).round().to(torch.uint8) if isinstance(shown, Tensor) else of_type(Tensor, PILToTensor()(shown))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
@pytest.mark.parametrize("size", [32, (24, 40), (40, 24)], ids=str)
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_open_clip(mode: str, size: Any, interpolation: str, shape: str) -> None:
    settings = {"mean": (0.1, 0.2, 0.3), "std": 0.5, "interpolation": interpolation, "resize_mode": mode, "fill_color": 7}
    theirs = levels(open_clip.image_transform(size, is_train=False, **settings), image(shape))
    assert torch.equal(to_tensor(image(shape), our_open_clip._preprocess(settings, size)), theirs)


def test_open_clip_without_settings() -> None:
    theirs = open_clip.image_transform(32, is_train=False)
    ours = our_open_clip._preprocess({}, 32)
    assert torch.equal(to_tensor(image("portrait"), ours), levels(theirs, image("portrait")))
    assert (ours.mean, ours.std) == (theirs.transforms[-1].mean, theirs.transforms[-1].std)


@pytest.mark.parametrize("settings", [{"resize_mode": "stretch"}, {"interpolation": "lanczos"}], ids=str)
def test_open_clip_refuses_what_it_does_not_have(settings: dict[str, str]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        our_open_clip._preprocess(settings, 32)


def _timm_model(**settings: Any) -> nn.Module:
    model = nn.Module()
    model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), **settings}  # type: ignore[assignment]
    return model


def _check_timm(model: nn.Module, preprocess: Preprocess, shapes: list[str]) -> None:
    data = timm.data.resolve_model_data_config(model)
    data["input_size"] = (3, preprocess.height, preprocess.width)
    transform = timm.data.create_transform(**data, is_training=False)
    for shape in shapes:
        assert torch.equal(to_tensor(image(shape), preprocess), levels(transform, image(shape))), (shape, data)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos", "box"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=str)
@pytest.mark.parametrize("crop_pct", [1.0, 0.95, 0.9, 0.875])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_timm(mode: str, crop_pct: float, size: tuple[int, int], interpolation: str) -> None:
    settings = {"crop_pct": crop_pct, "crop_mode": mode, "interpolation": interpolation, "input_size": (3, *size)}
    model = _timm_model(**settings)
    _check_timm(model, our_timm._preprocess(model, 3, None), list(SHAPES))
    _check_timm(model, our_timm._preprocess(model, 3, 28), ["portrait", "odd"])


def _timm_settings() -> dict[str, dict[str, Any]]:
    """One pretrained model for each combination of settings that change pixels."""
    found: dict[str, dict[str, Any]] = {}
    for name in timm.list_pretrained():
        values = timm.get_pretrained_cfg(name).to_dict()  # type: ignore[union-attr]
        keys = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
        found.setdefault(repr([values.get(key) for key in keys]), {key: values[key] for key in keys if key in values})
    return found


@pytest.mark.long
def test_every_released_model_of_timm() -> None:
    settings = _timm_settings()
    assert len(settings) > 20
    for values in settings.values():
        model = _timm_model(**values)
        _check_timm(model, our_timm._preprocess(model, 3, None), ["portrait", "landscape", "square", "tiny"])


@pytest.mark.parametrize("name", ["resnet50", "vit_h_14", "swin_t", "efficientnet_b0", "convnext_tiny", "vgg16"])
def test_torchvision(name: str) -> None:
    _check_torchvision(name, list(SHAPES))


@pytest.mark.long
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_model_of_torchvision(name: str) -> None:
    _check_torchvision(name, ["portrait", "landscape", "square", "tiny"])


def _check_torchvision(name: str, shapes: list[str]) -> None:
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    preprocess = our_torchvision._preprocess(name, None)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preset.mean, preset.std))
    for shape in shapes:
        theirs = ((preset(image(shape)) * std + mean) * 255).round().to(torch.uint8)
        assert torch.equal(to_tensor(image(shape), preprocess), theirs), shape
    assert (list(preprocess.mean), list(preprocess.std)) == (preset.mean, preset.std)


def test_a_torchvision_model_of_another_size_sees_the_same_part() -> None:
    preprocess = our_torchvision._preprocess("resnet50", 112)
    assert (preprocess.size, preprocess.resize_size) == (112, 116)  # 224 of 232


def test_levels_are_those_before_normalization() -> None:
    transform = torchvision.transforms.Compose([ToTensor(), torchvision.transforms.Normalize(0.5, 0.5)])
    assert torch.equal(levels(transform, image("square")), PILToTensor()(image("square")))
