"""Folders of sentence-transformers: its embeddings are those of the exported model."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from torch import nn

from mmcl.encoders import HEADS
from mmcl.encoders.heads import LinearHead, MLPHead, NoHead, TanhHead
from mmcl.errors import UserError
from mmcl.interop.export.exporting import export
from mmcl.interop.export.single_towers import _layers
from mmcl.interop.load import load_model
from mmcl.interop.model import Model
from mmcl.interop.sentence_transformers import Towers
from tests.arithmetic import network_tolerance, sum_tolerance
from tests.encoders import tiny
from tests.interop.export import models
from tests.interop.export.test_exporting import Looping, given
from tests.interop.export.test_transformers import with_heads

TEXTS = ["a cat", "the red dog on a hill", "one two three and four"]
OWN = "mmcl.interop.sentence_transformers.Towers"


def types_of(folder: Path) -> list[str]:
    return [one["type"].rpartition(".")[2] for one in json.loads((folder / "modules.json").read_text())]


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


NATIVE = {
    "hf CLIP": ["Transformer", "Normalize"],
    "hf SigLIP": ["Transformer", "Normalize"],
    "hf SigLIP 2": ["Transformer", "Normalize"],
    "open_clip CLIP": ["Transformer", "Normalize"],
    "timm + BERT": ["Router", "Normalize"],
    "timm + BERT, MLP heads": ["Router", "Normalize"],
    "open_clip ResNet": ["Towers"],
    "torchvision + own": ["Towers"],
    "own + own": ["Towers"],
}


@pytest.mark.parametrize("name", NATIVE)
def test_every_model_becomes_modules(name: str, tmp_path: Path) -> None:
    model = models.MODELS[name](tmp_path / "theirs")
    report = export(model, to="sentence_transformers", out=tmp_path / "ours")
    assert types_of(tmp_path / "ours") == NATIVE[name]
    assert max(report.parity.tensor.values()) < 1e-5
    exact = name.startswith(("timm", "torchvision", "own"))
    assert max(value for kind, value in report.parity.end_to_end.items() if exact or kind in ("images", "texts")) < 1e-5

    trust = NATIVE[name] == ["Towers"]
    loaded = SentenceTransformer(str(tmp_path / "ours"), device="cpu", trust_remote_code=trust)
    side = model.preprocess.height
    images = pictures((side, side), (side, side))
    tolerance = network_tolerance(model.towers)
    np.testing.assert_allclose(loaded.encode(images), model.encode_image(images), atol=tolerance)
    np.testing.assert_allclose(loaded.encode(TEXTS), model.encode_text(TEXTS), atol=tolerance)


HEADS_OF_BERT: Mapping[str, nn.Module] = {
    "none": NoHead(16),
    "linear": LinearHead(16, embed_dim=6),
    "tanh": TanhHead(16),
    **{f"mlp {final}": MLPHead(16, embed_dim=6, layers=3, final=final) for final in ("norm", "fixed_norm", "bias", "plain")},
    "mlp without norms": MLPHead(16, embed_dim=6, hidden_norm=False, final="bias"),
}


@pytest.mark.parametrize("name", HEADS_OF_BERT)
def test_a_head_is_a_row_of_layers(name: str) -> None:
    head = HEADS_OF_BERT[name]
    torch.manual_seed(0)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -1, 1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.2, 3)  # type: ignore[arg-type]
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.uniform_(module.bias, -1, 1)
    rows = expected = torch.randn(7, 16)
    with torch.no_grad():
        expected = head.eval()(expected)
        for layer in _layers(head):
            rows = layer.activation(nn.functional.linear(rows, layer.weight, layer.bias))
    scale = float(expected.abs().max())
    torch.testing.assert_close(rows, expected, atol=scale * 4 * sum_tolerance(16), rtol=0)


def test_every_registered_head_is_known_or_refused() -> None:
    for name in HEADS:
        list(_layers(HEADS.build(name, {}, 16)))
    with pytest.raises(UserError, match="the head Dropout is not a sequence of linear layers"):
        list(_layers(nn.Dropout()))


TOWERS: Mapping[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "pooler, pooler": ({"kind": "vit", "pooling": "pooler"}, {"kind": "bert", "pooling": "pooler"}, "Router"),
    "cls, cls": ({"kind": "vit", "pooling": "cls"}, {"kind": "bert", "pooling": "cls"}, "Router"),
    "mean, last": ({"kind": "dinov2", "pooling": "mean"}, {"kind": "gpt2", "pooling": "last"}, "Router"),
    "maps, mean": ({"kind": "resnet", "pooling": "pooler"}, {"kind": "distilbert", "pooling": "mean"}, "Router"),
    "cls, end token": ({"kind": "vit", "pooling": "cls"}, {"kind": "bert", "pooling": "eot"}, "Towers"),
    "cls, encoder and decoder": ({"kind": "vit", "pooling": "cls"}, {"kind": "t5", "pooling": "mean"}, "Towers"),
}


@pytest.mark.parametrize("name", TOWERS)
def test_towers_of_transformers(name: str, tmp_path: Path) -> None:
    image, text, form = TOWERS[name]
    shown = {"size": 32, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "resize": "squash"}
    specs = {
        "image": {"config": tiny.config(image["kind"]), "pooling": image["pooling"], "preprocess": shown},
        "text": {"config": tiny.config(text["kind"]), "pooling": text["pooling"]},
    }
    towers = {side: {"encoder": "transformers", "encoder_args": args, **models.LINEAR} for side, args in specs.items()}
    report = export(models.shaken_model(towers), to="sentence_transformers", out=tmp_path / "ours")
    assert types_of(tmp_path / "ours")[0] == form
    assert max(report.parity.tensor.values()) < 1e-5
    assert report.parity.end_to_end["texts"] < 1e-5


@pytest.mark.parametrize(
    "shown",
    [
        {"resize_size": 37, "fill": 0},
        {"resize": "squash", "interpolation": "bilinear"},
        {"resize": "pad", "mean": [0.5] * 3, "std": [0.5] * 3, "fill": 128},
    ],
)
def test_images_of_timm_are_shown_as_in_training(shown: dict[str, Any], tmp_path: Path) -> None:
    args = {"name": "test_resnet", "image_size": 32, "preprocess": {"size": 32, **shown}}
    image = {"encoder": "timm", "encoder_args": args, **models.LINEAR}
    text = {"encoder": "transformers", "encoder_args": {"config": tiny.config("bert")}, **models.LINEAR}
    report = export(models.shaken_model({"image": image, "text": text}), to="sentence_transformers", out=tmp_path / "ours")
    assert types_of(tmp_path / "ours")[0] == "Router"
    assert report.lost == []
    assert max(report.parity.end_to_end.values()) < 1e-5


def test_a_clip_under_other_heads_takes_the_module_of_mmcl(tmp_path: Path) -> None:
    model = models.of_transformers("clip", tmp_path / "theirs")
    headed = with_heads(model, image=MLPHead(8, embed_dim=4), text=MLPHead(8, embed_dim=4))
    report = export(headed, to="sentence_transformers", out=tmp_path / "ours")
    assert types_of(tmp_path / "ours") == ["Towers"]
    assert max(report.parity.end_to_end.values()) < 1e-5


@pytest.fixture(scope="module")
def loaded(model: Model, tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    folder = tmp_path_factory.mktemp("st") / "out"
    export(model, to="sentence_transformers", out=folder)
    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)


class TestOwnModule:
    def test_images_of_every_shape_and_kind(self, model: Model, loaded: SentenceTransformer, tmp_path: Path) -> None:
        images = pictures((40, 70), (70, 40), (16, 19))
        images[0].save(tmp_path / "a.png")
        expected, tolerance = model.encode_image(images), network_tolerance(model.towers)
        np.testing.assert_allclose(loaded.encode(images, batch_size=2), expected, atol=tolerance)
        np.testing.assert_allclose(loaded.encode([str(tmp_path / "a.png")]), expected[:1], atol=tolerance)
        np.testing.assert_allclose(loaded.encode([{"image": images[1]}]), expected[1:2], atol=tolerance)
        prompted = model.encode_text([f"a {text}" for text in TEXTS])
        np.testing.assert_allclose(loaded.encode(TEXTS, prompt="a "), prompted, atol=tolerance)
        assert loaded.get_embedding_dimension() == model.embed_dim

    def test_a_batch_is_of_one_kind(self, model: Model) -> None:
        with pytest.raises(UserError, match="a batch has image or text inputs, not both"):
            Towers(model).preprocess([pictures((9, 9))[0], "a cat"])

    def test_it_is_saved_again_and_is_a_model_of_mmcl(self, model: Model, loaded: SentenceTransformer, tmp_path: Path) -> None:
        loaded.save(str(tmp_path / "again"))
        again = SentenceTransformer(str(tmp_path / "again"), device="cpu", trust_remote_code=True)
        np.testing.assert_allclose(again.encode(TEXTS), model.encode_text(TEXTS), atol=network_tolerance(model.towers))
        assert load_model(tmp_path / "again/0_Towers", device="cpu").fingerprint == model.fingerprint

    def test_it_asks_for_trust(self, loaded: SentenceTransformer, tmp_path: Path) -> None:
        loaded.save(str(tmp_path / "again"))
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            SentenceTransformer(str(tmp_path / "again"), device="cpu")

    def test_one_tower_alone(self, tmp_path: Path) -> None:
        image = {"encoder": "strided_cnn", "encoder_args": models.OWN_IMAGE, **models.LINEAR}
        model = models.shaken_model({"image": image})
        assert max(export(model, to="sentence_transformers", out=tmp_path / "out").parity.end_to_end.values()) == 0
        module = Towers(model)
        assert module.modalities == ["image"]
        with pytest.raises(UserError, match="a batch has image inputs"):
            module.preprocess([{"text": "a cat"}])


def test_a_module_from_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image encoder is a module from Python, which no folder builds again; try --to onnx"):
        export(given(Looping()), to="sentence_transformers", out=tmp_path / "out")


def test_a_missing_library_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    missing = "sentence_transformers"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    with pytest.raises(UserError, match=r"needs sentence_transformers: pip install 'mmcl\[sentence-transf"):
        export(models.own(), to="sentence_transformers", out=tmp_path / "out")
