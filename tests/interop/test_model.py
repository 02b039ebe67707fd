"""Properties of a loaded model: forms of input, unit length, order, logits, errors that name the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmcl.data.sample import Sample
from mmcl.data.source import Source
from mmcl.encoders.tokenizers import from_transformers
from mmcl.encoders.tower import TowerSpec, build_tower
from mmcl.errors import UserError
from mmcl.interop.model import Model
from tests.arithmetic import network_tolerance, sum_tolerance
from tests.encoders import tiny

TOKENIZER = from_transformers(tiny.word_tokenizer())


def make_towers(*, head: str = "linear") -> nn.ModuleDict:
    torch.manual_seed(0)
    head_args = {} if head == "none" else {"embed_dim": 8}
    image = TowerSpec(
        modality="image", encoder="small_cnn", encoder_args={"channels": 3, "feature_dim": 16}, head=head, head_args=head_args
    )
    text = TowerSpec(
        modality="text", encoder="small_text", encoder_args={"width": 24, "layers": 1}, head=head, head_args=head_args
    )
    return nn.ModuleDict({"image": build_tower(image), "text": build_tower(text, tokenizer=TOKENIZER)})


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(make_towers(), logit_scale=10.0, device="cpu")


@pytest.fixture
def arrays(rng: torch.Generator) -> list[np.ndarray]:
    return [torch.randint(0, 256, (40, 30 + i, 3), generator=rng, dtype=torch.uint8).numpy() for i in range(5)]


class _Images(Source):
    def __init__(self, images: list[Any]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return Sample(f"image {index}", self.images[index])

    @property
    def fingerprint(self) -> str:
        return "images"


def test_every_form_of_image_gives_the_same_rows(model: Model, arrays: list[np.ndarray], tmp_path: Path) -> None:
    pictures = [Image.fromarray(array) for array in arrays]
    paths = [tmp_path / f"{i}.png" for i in range(len(pictures))]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    expected = model.encode_image(arrays)
    assert expected.shape == (5, 8)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=sum_tolerance(8))
    forms: list[Any] = [
        pictures,
        paths,
        [str(p) for p in paths],
        [p.read_bytes() for p in paths],
        _Images(paths),
        tuple(arrays),
    ]
    for form in forms:
        np.testing.assert_array_equal(model.encode_image(form), expected)
    for single in (pictures[0], paths[0], str(paths[0]), arrays[0], paths[0].read_bytes()):
        np.testing.assert_allclose(model.encode_image(single), expected[:1], atol=network_tolerance(model.towers))
    repeated = model.encode_image(np.stack([arrays[0]] * 3))
    np.testing.assert_allclose(repeated, expected[[0, 0, 0]], atol=network_tolerance(model.towers))


def test_batch_size_changes_nothing(model: Model, arrays: list[np.ndarray]) -> None:
    texts = ["a cat", "", "one photo of a dog on a hill and a bird", "dog", "x"]
    images_ND, texts_ND, tolerance = model.encode_image(arrays), model.encode_text(texts), network_tolerance(model.towers)
    for size in (1, 2, 5, 64):
        np.testing.assert_allclose(model.encode_image(arrays, batch_size=size), images_ND, atol=tolerance)
        np.testing.assert_allclose(model.encode_text(texts, batch_size=size), texts_ND, atol=tolerance)


def test_nothing_in_gives_no_rows(model: Model) -> None:
    assert model.encode_image([]).shape == (0, 8)
    assert model.encode_text([]).shape == (0, 8)
    assert model.similarity(model.encode_image([]), model.encode_text("a")).shape == (0, 1)


def test_a_string_is_a_path_for_images_and_a_text_for_texts(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    Image.new("RGB", (8, 8)).save(path)
    assert model.encode_text(str(path)).shape == (1, 8)
    with pytest.raises(UserError, match="a photo of a cat: no such file"):
        model.encode_image("a photo of a cat")


def test_an_image_that_cannot_be_read_is_named(model: Model, arrays: list[np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"broken\.jpg"):
        model.encode_image([arrays[0], tmp_path / "broken.jpg"])
    with pytest.raises(UserError, match="image 1"):
        model.encode_image([arrays[0], b"not an image"])
    with pytest.raises(UserError, match="image 1"):
        model.encode_image(_Images([arrays[0], b"not an image"]))
    with pytest.raises(UserError, match="image 0: has no image"):
        model.encode_image(_Images([None]))


def test_a_missing_tower_is_named(arrays: list[np.ndarray]) -> None:
    towers = make_towers()
    images, texts = (Model(nn.ModuleDict({name: towers[name]}), device="cpu") for name in ("image", "text"))
    assert (images.has_image, images.has_text, texts.has_image, texts.has_text) == (True, False, False, True)
    with pytest.raises(UserError, match="no text tower"):
        images.encode_text("a cat")
    with pytest.raises(UserError, match="no image tower"):
        texts.encode_image(arrays)


def test_features_are_what_comes_before_the_head(arrays: list[np.ndarray]) -> None:
    features = Model(make_towers(), embedding="features", device="cpu")
    headless = Model(make_towers(head="none"), device="cpu")
    headless.towers.load_state_dict(features.towers.state_dict(), strict=False)
    assert features.encode_image(arrays).shape == (5, features.embed_dim) == (5, 16)
    assert features.encode_text("a cat").shape == (1, 24)
    tolerance = network_tolerance(headless.towers)
    np.testing.assert_allclose(features.encode_image(arrays), headless.encode_image(arrays), atol=tolerance)
    np.testing.assert_allclose(features.encode_text("a cat"), headless.encode_text("a cat"), atol=tolerance)


def test_encoding_is_in_evaluation_mode() -> None:
    spec = TowerSpec(modality="text", encoder="small_text", encoder_args={"width": 16, "layers": 1, "dropout": 0.9})
    model = Model(nn.ModuleDict({"text": build_tower(spec, tokenizer=TOKENIZER).train()}), device="cpu")
    np.testing.assert_array_equal(model.encode_text("a cat"), model.encode_text("a cat"))


def test_probs_follow_the_models_own_logits(model: Model, arrays: list[np.ndarray]) -> None:
    image, text = model.encode_image(arrays), model.encode_text(["a cat", "dog", "red bird"])
    logits = 10.0 * (image.astype(np.float64) @ text.astype(np.float64).T)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(model.similarity(image, text), logits / 10, atol=sum_tolerance(8))
    np.testing.assert_allclose(model.probs(image, text), softmax, atol=10 * sum_tolerance(8))
    sigmoid = Model(make_towers(), logit_scale=10.0, logit_bias=-4.0, device="cpu")
    np.testing.assert_allclose(sigmoid.probs(image, text), 1 / (1 + np.exp(4 - logits)), atol=10 * sum_tolerance(8))


def test_the_fingerprint_follows_weights_preprocessing_and_embedding() -> None:
    def fingerprint(**changes: Any) -> str:
        model = Model(make_towers(), device="cpu", **changes)
        return model.fingerprint

    changed = make_towers()
    with torch.no_grad():
        changed["image"].get_parameter("encoder.layers.1.bias")[0] += 1e-6
    assert fingerprint() == fingerprint(logit_scale=5.0, provenance={"a": 1})
    assert fingerprint(embedding="features") != fingerprint()
    assert Model(changed, device="cpu").fingerprint != fingerprint()
    text_only = Model(nn.ModuleDict({"text": make_towers()["text"]}), device="cpu")
    assert text_only.fingerprint != fingerprint()


@pytest.mark.parametrize("embedding", ["projection", "features"])
def test_non_finite_embeddings_are_an_error(embedding: Any, arrays: list[np.ndarray]) -> None:
    towers = make_towers()
    with torch.no_grad():
        next(towers["image"].get_submodule("encoder").parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="5 of 5 embeddings not finite, the first in row 0"):
        Model(towers, embedding=embedding, device="cpu").encode_image(arrays)
