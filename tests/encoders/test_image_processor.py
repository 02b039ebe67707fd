"""The image processors of transformers against the libraries' own pixels: every processor that is installed, by its defaults
and with other settings."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from mmcl.data.images.tensors import to_tensor
from mmcl.encoders import IMAGE_ENCODERS
from mmcl.encoders.image_processor import preprocess_of
from mmcl.encoders.tower import PixelNorm, TowerSpec, wrap_encoder
from mmcl.errors import UserError
from mmcl.interop.load import load_model
from mmcl.interop.model import Model
from mmcl.preprocess import Preprocess
from tests.encoders import tiny

SHAPES = {"portrait": (48, 83), "landscape": (131, 48), "square": (61, 61), "tiny": (3, 2), "huge": (1000, 700)}
_HW, _EDGE = {"size": {"height": 40, "width": 40}}, {"size": {"shortest_edge": 40}}
_CROP = {"do_center_crop": True, "crop_size": {"height": 33, "width": 33}}
VARIANTS: dict[str, dict[str, Any]] = {
    "squash": {**_HW, "do_center_crop": False},
    "squash and crop": {**_HW, **_CROP},
    "squash to a frame": {"size": {"height": 24, "width": 40}, "do_center_crop": False},
    "shortest and crop": {**_EDGE, **_CROP},
    "shortest and crop, an odd number of pixels": {"size": {"shortest_edge": 37}, **_CROP},
    "shortest and fill": {**_EDGE, "do_center_crop": True, "crop_size": {"height": 51, "width": 47}},
    "shortest alone": {**_EDGE, "do_center_crop": False},
    "shortest of 384": {"size": {"shortest_edge": 384}, "do_center_crop": False},
    "longest": {"size": {"shortest_edge": 40, "longest_edge": 60}, **_CROP},
    "fit": {"size": {"max_height": 40, "max_width": 60}, "do_center_crop": False},
    "crop alone": {"do_resize": False, **_CROP},
    "nothing": {"do_resize": False, "do_center_crop": False},
    "bilinear": {**_HW, "resample": 2},
    "nearest": {**_HW, "resample": 0},
    "lanczos": {**_HW, "resample": 1},
    "another scale": {**_HW, "rescale_factor": 1 / 127.5},
    "no scale": {**_HW, "do_rescale": False},
    "no norm": {**_HW, "do_normalize": False},
    "neither": {**_HW, "do_normalize": False, "do_rescale": False},
    "one constant": {**_HW, "image_mean": [0.5], "image_std": [0.5]},
    "crop_pct": {**_EDGE, "crop_pct": 0.75},
    "crop_pct of a crop": {**_EDGE, **_CROP, "crop_pct": 0.75},
    "crop_pct of a square": {**_HW, **_CROP, "crop_pct": 0.75},
    "rgb": {**_EDGE, **_CROP, "do_flip_channel_order": False},
    "bgr": {**_EDGE, **_CROP, "do_flip_channel_order": True},
    "offset": {**_HW, "rescale_offset": True, "rescale_factor": 1 / 127.5},
    "offset, no scale": {**_HW, "rescale_offset": True, "do_rescale": False},
    "one deviation": {**_HW, "include_top": False},
    "patches": {**_HW, "crop_to_patches": True},
    "pan and scan": {**_HW, "do_pan_and_scan": True},
    "pad": {**_HW, "do_pad": True},
    "pad to a size": {**_HW, "do_pad": True, "pad_size": {"height": 64, "width": 64}},
    "labels": {**_HW, "do_reduce_labels": True},
    "as it is": {**_HW, "do_convert_rgb": False},
}
QUICK = ("CLIPImageProcessor", "CLIPImageProcessorPil", "ConvNextImageProcessor", "EfficientNetImageProcessor")


def _processors() -> list[str]:
    return sorted({name for backends in IMAGE_PROCESSOR_MAPPING_NAMES.values() for name in backends.values() if name})


@cache
def _image(shape: str) -> Image.Image:
    """Blocks of four pixels, so that no resize is far from any other and none is equal."""
    width, height = SHAPES[shape]
    blocks = np.random.default_rng(0).integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((4, 4, 1), np.uint8))[:height, :width])


def _levels(preprocess: Preprocess, normalized_CHW: Tensor) -> Tensor:
    """What was normalized, back in levels from 0 to 255."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    return (normalized_CHW * std + mean) * 255


def _check_equal(processor: Any, preprocess: Preprocess, shape: str) -> None:
    image = _image(shape)
    theirs = torch.as_tensor(np.asarray(processor(images=[image], return_tensors="pt")["pixel_values"]))[0]
    ours = PixelNorm(preprocess)(to_tensor(image, preprocess).float().div(255)[None])[0]
    assert ours.shape == theirs.shape
    difference = (_levels(preprocess, ours) - _levels(preprocess, theirs)).abs().max()
    # Normalization in float32, in another order of operations: a few units in the last place of a level of 255, times the
    # largest mean in units of the deviation. One level would be 1.
    assert float(difference) < 2e-3, shape


def _check(name: str, settings: dict[str, Any], shapes: list[str]) -> bool:
    """True if the processor works and is supported; if so, it must be equal."""
    try:
        processor = getattr(transformers, name)(**settings)
        preprocess = preprocess_of(processor, "model")
    except ValueError:  # the processor's own, or ours: see `test_what_is_refused_is_named`
        return False
    if preprocess.backend == "pillow" and getattr(processor, "backend", "") == "torchvision":
        if not hasattr(transformers, f"{name}Pil"):
            return False
        processor = getattr(transformers, f"{name}Pil")(**settings)  # what older versions of torch cannot do on tensors
    try:
        processor(images=[_image("square")], return_tensors="pt")
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return False  # with these settings it does not work itself
    for shape in shapes:
        _check_equal(processor, preprocess, shape)
    return True


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", QUICK)
def test_pixels_are_those_of_the_processor_or_it_is_refused(name: str, variant: str) -> None:
    _check(name, VARIANTS[variant], ["portrait", "landscape"])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", QUICK)
def test_images_of_every_shape(name: str, shape: str) -> None:
    assert _check(name, {}, [shape])


@pytest.mark.parametrize("name", ["CLIPImageProcessor", "ViTImageProcessor"])
def test_lanczos_on_tensors_is_pillows_where_torch_has_none(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.11.0"))
    assert _check(name, VARIANTS["lanczos"], list(SHAPES))
    assert f"as {name} asks, and 2.12 does; images are resized by Pillow" in caplog.text


def test_a_saved_lanczos_on_tensors_is_refused_at_once_where_torch_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = IMAGE_ENCODERS.build("small_cnn", {})
    encoder.preprocess = replace(encoder.preprocess, interpolation="lanczos", backend="torchvision")
    towers = torch.nn.ModuleDict({"image": wrap_encoder(encoder, TowerSpec(modality="image", encoder="small_cnn"))})
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.11.0"))
    with pytest.raises(UserError, match=r"needs torch 2\.12, and 2\.11\.0 is installed; install it, or give backend 'pillow'"):
        Model(towers)


@pytest.mark.long
@pytest.mark.parametrize("name", _processors())
def test_every_processor_is_equal_or_refused(name: str) -> None:
    if name == "TimmWrapperImageProcessor":
        pytest.skip("is built from a model's configuration")
    shapes = ["portrait", "landscape", "square", "huge", *(["tiny"] if name.endswith("Processor") else [])]
    _check(name, {}, shapes)
    for settings in VARIANTS.values():
        _check(name, settings, ["portrait", "landscape"])


SUPPORTED = (
    "CLIP",
    "Siglip",
    "Bit",
    "ViT",
    "ConvNext",
    "DeiT",
    "Beit",
    "DINOv3ViT",
    "MobileViT",
    "PoolFormer",
    "Levit",
    "Flava",
)


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_processors_of_common_backbones_are_supported(name: str) -> None:
    assert _check(f"{name}ImageProcessor", {}, ["portrait"])


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("ViltImageProcessor", {}, "ViltImageProcessor"),
        ("CLIPImageProcessor", {"size": {"longest_edge": 224}}, "size"),
        ("CLIPImageProcessor", {"do_center_crop": False}, "do_center_crop"),
        ("ViTImageProcessor", {"do_resize": False}, "do_resize"),
        ("ViTImageProcessor", {"do_pad": True}, "do_pad"),
        ("GotOcr2ImageProcessor", {"crop_to_patches": True}, "crop_to_patches"),
        ("Siglip2ImageProcessor", {}, "NaFlex"),
    ],
)
def test_what_is_refused_is_named(name: str, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        preprocess_of(getattr(transformers, name)(**settings), "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "settings", "processor"),
    [
        ("vit", {"size": 24}, "ViTImageProcessor"),
        ("vit", {"feature_extractor_type": "ViTFeatureExtractor", "size": 24}, "ViTImageProcessor"),
        ("clip", {"size": 30, "crop_size": 24, "do_center_crop": True}, "CLIPImageProcessor"),
        ("clip", {"image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 30}}, "CLIPImageProcessor"),
        ("dinov2", {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 36}}, "BitImageProcessor"),
        ("resnet", {"size": {"shortest_edge": 32}, "crop_pct": 0.8}, "ConvNextImageProcessor"),
    ],
)
def test_the_files_of_a_model_say_the_same_as_its_processor(
    kind: str, settings: dict[str, Any], processor: str, tmp_path: Path
) -> None:
    tiny.transformers_model(kind, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert type(theirs).__name__ == processor
    _check_equal(theirs, preprocess_of(theirs, "model"), "portrait")


def test_an_encoder_takes_the_processor_of_its_folder(tmp_path: Path) -> None:
    tiny.transformers_model("resnet", tmp_path)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    encoder = IMAGE_ENCODERS.build("transformers", {"name": str(tmp_path)})
    assert encoder.preprocess == preprocess_of(theirs, "model")
    assert encoder.preprocess.resize_size != encoder.preprocess.size


class Downloaded(Exception):
    """Weights were asked for."""


@pytest.fixture
def naflex(tmp_path: Path) -> Path:
    tiny.transformers_model("siglip2", tmp_path)
    (tmp_path / "processor_config.json").unlink(missing_ok=True)
    return tmp_path


@pytest.mark.parametrize("way", ["load_model", "image_encoder"])
def test_native_resolution_is_refused_before_weights_are_downloaded(
    way: str, naflex: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*args: Any, **kwargs: Any) -> None:
        raise Downloaded

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", download)
    with pytest.raises(UserError, match="NaFlex"):
        load_model(f"hf:{naflex}") if way == "load_model" else IMAGE_ENCODERS.build("transformers", {"name": str(naflex)})


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_a_model_of_another_kind_is_refused_before_weights_are_downloaded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.transformers_model(kind, tmp_path)
    monkeypatch.delattr(transformers.AutoModel, "from_pretrained")
    with pytest.raises(UserError, match="is not a CLIP-like model of image and text"):
        load_model(f"hf:{tmp_path}")


def test_a_processor_that_is_not_supported_can_be_replaced(naflex: Path) -> None:
    shown = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "resize": "squash"}
    assert load_model(f"hf:{naflex}", device="cpu", preprocess=shown).preprocess == Preprocess.from_json(shown)
    with pytest.raises(UserError, match="give preprocess with size, mean and std"):
        load_model(f"hf:{naflex}", device="cpu", preprocess={"size": 32})
