"""Models of transformers for images of another size: what the library's own interpolation gives."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mmcl.encoders import IMAGE_ENCODERS
from mmcl.errors import UserError
from mmcl.interop.load import load_model
from tests.arithmetic import network_tolerance
from tests.encoders import tiny
from tests.grid import grid
from tests.narrow import of_type

SQUARE = {"resize": "squash", "mean": [0.5] * 3, "std": [0.5] * 3}


def image(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize(("kind", "side"), grid(["clip", "siglip"], [16, 32, 64, 80]))
def test_a_clip_of_another_size_gives_the_librarys_embeddings(
    kind: str, side: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs: Any = tiny.transformers_model(kind, tmp_path / "theirs")
    model = load_model(f"hf:{tmp_path / 'theirs'}", device="cpu", preprocess={"size": side}, resize_positions=True)
    encoder: Any = model.towers["image"].encoder
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs.get_image_features(pixel_values=encoder.norm(pixels), interpolate_pos_encoding=True)
        found = encoder(pixels)
    expected = getattr(expected, "pooler_output", expected)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, atol=scale * network_tolerance(theirs), rtol=0)
    assert ("is resampled from [" in caplog.text) == (side != 32)

    model.save(tmp_path / "saved")
    again = load_model(tmp_path / "saved", device="cpu")
    original = load_model(f"hf:{tmp_path / 'theirs'}", device="cpu")
    # Where its weights lie in memory may change the order of a sum.
    limit = network_tolerance(theirs)
    np.testing.assert_allclose(again.encode_image(image(side)), model.encode_image(image(side)), atol=limit, rtol=0)
    np.testing.assert_allclose(model.encode_text(["a cat"]), original.encode_text(["a cat"]), atol=limit, rtol=0)
    assert all(torch.equal(again.towers.state_dict()[name], weight) for name, weight in model.towers.state_dict().items())
    texts = original.towers["text"].state_dict()
    assert all(torch.equal(texts[name], weight) for name, weight in model.towers["text"].state_dict().items())


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_a_vision_model_of_another_size(kind: str, tmp_path: Path) -> None:
    theirs: Any = tiny.transformers_model(kind, tmp_path)
    args = {"name": str(tmp_path), "preprocess": {"size": 48, "mean": [0.5] * 3, "std": [0.5] * 3}, "resize_positions": True}
    encoder = IMAGE_ENCODERS.build("transformers", {**args, "pooling": "cls"})
    pixels = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        options = {"interpolate_pos_encoding": True} if kind == "vit" else {}
        expected = theirs(pixel_values=encoder.norm(pixels), **options).last_hidden_state[:, 0]
        found = encoder.eval()(pixels)
    torch.testing.assert_close(found, expected, atol=float(expected.abs().max()) * network_tolerance(theirs), rtol=0)


def test_the_model_that_was_given_is_not_changed(tmp_path: Path) -> None:
    from mmcl.encoders.transformers_positions import resample_positions
    from mmcl.preprocess import Preprocess

    theirs = of_type(transformers.CLIPModel, tiny.transformers_model("clip", tmp_path))
    before = copy.deepcopy(theirs.state_dict())
    assert resample_positions(theirs, Preprocess(size=32), "theirs") is theirs
    resample_positions(theirs, Preprocess(size=48), "theirs")
    assert theirs.config.vision_config.image_size == 32
    assert all(torch.equal(before[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("clip", {"preprocess": {"size": 40}, "resize_positions": True}, "size 40 x 40 is no square of whole patches of 16"),
        ("clip", {"preprocess": {"size": [32, 48]}, "resize_positions": True}, "size 32 x 48 is no square of whole patches"),
        ("clip", {"resize_positions": True}, r"resize_positions needs the new size: preprocess=\{'size': 336\}"),
        (
            "clip",
            {"preprocess": {"size": 48}},
            "images of 48 x 48, and position embeddings of 32 x 32 .*, or set resize_positions",
        ),
        ("siglip2", {"preprocess": {**SQUARE, "size": 48}, "resize_positions": True}, "has no position embeddings to resample"),
    ],
)
def test_what_does_not_fit_is_a_line(kind: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    tiny.transformers_model(kind, tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_model(f"hf:{tmp_path}", device="cpu", **options)
    assert "\n" not in str(caught.value)


def test_a_model_of_mmcl_has_its_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has the size that it was trained with; remove resize_positions"):
        load_model(tmp_path, resize_positions=True)
