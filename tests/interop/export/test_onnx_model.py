"""Models of ONNX: what the exported model gives, without torch, under every command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from mmcl.cli.main import main
from mmcl.config import load_config
from mmcl.data.open import open_source
from mmcl.errors import UserError
from mmcl.interop.export import onnx
from mmcl.interop.export.exporting import export
from mmcl.interop.load import load_model
from mmcl.interop.model import Model
from mmcl.interop.onnx_model import OnnxModel
from mmcl.runs.run import train
from tests.arithmetic import network_tolerance
from tests.encoders import tiny
from tests.engine.tiny import YAML, make_folder
from tests.interop.export import models
from tests.narrow import of_type

TEXTS = ["a cat", "the red dog on a hill with one bird and two cats in a photo", ""]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photos"))


def test_it_embeds_as_the_exported_model(model: Model, onnx_folder: Path, photos: Path) -> None:
    ours = of_type(OnnxModel, load_model(f"onnx:{onnx_folder}"))
    paths = sorted(photos.glob("*.png"))
    arrays = [np.asarray(Image.open(path)) for path in paths]
    tolerance = network_tolerance(model.towers)
    for images in (paths[0], paths, [Image.open(path) for path in paths], arrays, open_source("auto", str(photos))):
        np.testing.assert_allclose(ours.encode_image(images), model.encode_image(images), atol=tolerance)
    for texts in ("a cat", TEXTS, TEXTS * 90, []):
        np.testing.assert_allclose(ours.encode_text(texts), model.encode_text(texts), atol=tolerance)
    image, text = ours.encode_image(paths), ours.encode_text(TEXTS)
    np.testing.assert_allclose(ours.probs(image, text), model.probs(image, text), atol=1e-6)
    assert (ours.logit_scale, ours.logit_bias, ours.embed_dim) == (model.logit_scale, model.logit_bias, model.embed_dim)
    assert ours.preprocess == model.preprocess


def test_it_runs_without_torch(onnx_folder: Path, photos: Path, tmp_path: Path) -> None:
    code = f"""
import sys
import numpy as np
import mmcl
model = mmcl.load_model("onnx:{onnx_folder}")
image = model.encode_image({sorted(map(str, photos.glob("*.png")))!r})
text = model.encode_text({TEXTS!r})
assert model.probs(image, text).shape == (25, 3) and model.fingerprint and model.has_text
assert "torch" not in sys.modules, "torch was imported"
np.savez("{tmp_path}/rows.npz", image=image, text=text)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here = load_model(f"onnx:{onnx_folder}")
    with np.load(tmp_path / "rows.npz") as rows:
        np.testing.assert_array_equal(rows["image"], here.encode_image(sorted(photos.glob("*.png"))))
        np.testing.assert_array_equal(rows["text"], here.encode_text(TEXTS))


def test_anything_else_can_run_the_graphs(model: Model, onnx_folder: Path) -> None:
    """By their names and the files beside them, as in another language."""
    shown = json.loads((onnx_folder / "preprocess.json").read_text())
    pixels = torch.rand(3, 3, shown["size"], shown["size"], generator=torch.Generator().manual_seed(1))
    image = onnxruntime.InferenceSession(onnx_folder / "image.onnx")
    assert [one.name for one in image.get_inputs()] == ["pixels"]
    assert image.get_inputs()[0].shape == ["batch", 3, 16, 16]
    with torch.no_grad():
        expected = model.towers["image"](pixels)
    [rows] = image.run(["image_embeds"], {"pixels": pixels.numpy()})
    np.testing.assert_allclose(rows, expected, atol=network_tolerance(model.towers))
    text = onnxruntime.InferenceSession(onnx_folder / "text.onnx")
    assert {one.name: one.shape for one in text.get_inputs()} == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "sequence"],
    }


def test_every_command_takes_it(
    onnx_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name, image = f"onnx:{onnx_folder}", str(photos / "red_huge.png")
    commands = (
        ["classify", image, "--model", name, "--labels", "cat", "dog"],
        ["search", name, "a cat", "--images", str(photos), "--save", "index", "--top_k", "2"],
        ["search", name, "--image", image, "--images", "index", "--top_k", "2"],
        ["embed", str(photos), "--model", name, "--out", "rows.parquet"],
        ["eval", "retrieval", "--model", name, "--data", str(photos)],
    )
    for words in commands:
        assert main(words) == 0, capsys.readouterr().err
    assert "red_huge" in capsys.readouterr().out


def test_weights_are_not_taken_from_it(onnx_folder: Path, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(YAML)
    flags = ["--data.train.path", str(photos), "--run_dir", str(tmp_path / "run"), "--image", "null", "--text", "null"]
    with pytest.raises(UserError, match="without weights to train; give the run that it was exported from"):
        train(load_config(path, [*flags, "--init", f"onnx:{onnx_folder}"]))


def test_a_classifier_keeps_its_classes_and_logits(tmp_path: Path) -> None:
    image = {"encoder": "strided_cnn", "encoder_args": models.OWN_IMAGE, "head": "linear", "head_args": {"embed_dim": 3}}
    classifier = models.shaken_model({"image": image}, class_names=["a", "b", "c"], embedding="features")
    report = export(classifier, to="onnx", out=tmp_path / "graphs")
    assert report.parity.tensor["logits"] < network_tolerance(classifier.towers)
    ours = load_model(f"onnx:{tmp_path / 'graphs'}")
    images = [np.full((20, 30, 3), level, np.uint8) for level in (0, 100, 255)]
    assert ours.class_names == ["a", "b", "c"]
    assert not ours.has_text
    scale = float(np.abs(classifier.image_logits(images)).max())
    np.testing.assert_allclose(
        ours.image_logits(images), classifier.image_logits(images), atol=scale * network_tolerance(classifier.towers)
    )
    np.testing.assert_allclose(
        ours.encode_image(images), classifier.encode_image(images), atol=network_tolerance(classifier.towers)
    )
    with pytest.raises(UserError, match="no text tower"):
        ours.encode_text(["a"])


@pytest.mark.parametrize("embedding", [pytest.param("features", marks=pytest.mark.long), "projection"])
def test_wrong_logits_are_no_export(embedding: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be wrong where the embeddings are right."""
    image = {"encoder": "strided_cnn", "encoder_args": models.OWN_IMAGE, "head": "linear", "head_args": {"embed_dim": 3}}
    classifier = models.shaken_model({"image": image}, class_names=["a", "b", "c"], embedding=embedding)
    assert max(export(classifier, to="pt2", out=tmp_path / "right").parity.tensor.values()) < 1e-5
    right = onnx._LoadedOnnx.pixel_logits
    monkeypatch.setattr(onnx._LoadedOnnx, "pixel_logits", lambda self, pixels: 1.001 * right(self, pixels))
    with pytest.raises(UserError, match=r"logits differ by 0\.001"):
        export(classifier, to="onnx", out=tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def changed(folder: Path, **values: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **values}))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no graph": (lambda folder: (folder / "text.onnx").unlink(), r"text\.onnx: no such file"),
    "half a graph": (lambda folder: cut(folder / "image.onnx"), r"image\.onnx: onnxruntime cannot load it"),
    "no settings": (lambda folder: (folder / "config.json").unlink(), r"config\.json: no such file"),
    "another version": (lambda folder: changed(folder, graphs_version=9), "format version 1; export the model again"),
    "no towers": (lambda folder: changed(folder, towers=[]), "towers are image, text or both"),
    "a width of zero": (lambda folder: changed(folder, embed_dim=0), "embed_dim is 0"),
    "another width": (lambda folder: changed(folder, embed_dim=9), "rows of 8 numbers, and config.json says 9"),
    "no scale": (lambda folder: changed(folder, logit_scale=-1), "logit_scale is -1"),
    "no preprocessing": (lambda folder: (folder / "preprocess.json").write_text('{"size": -3}'), "size is -3"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), r"tokenizer\.json: damaged tokenizer"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_in_a_line(kind: str, onnx_folder: Path, tmp_path: Path) -> None:
    damage, message = DAMAGE[kind]
    shutil.copytree(onnx_folder, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(UserError, match=message) as caught:
        load_model(f"onnx:{tmp_path / 'copy'}").encode_text(["a cat"])
    assert "\n" not in str(caught.value)


def test_the_fingerprint_is_that_of_the_files(onnx_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(onnx_folder, tmp_path / "copy")
    before = load_model(f"onnx:{onnx_folder}").fingerprint
    assert load_model(f"onnx:{tmp_path / 'copy'}").fingerprint == before
    changed(tmp_path / "copy", logit_scale=3.0)
    assert load_model(f"onnx:{tmp_path / 'copy'}").fingerprint != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:7"}, "onnxruntime has no device 'cuda:7' here"),
        ({"preprocess": {"size": 8}}, "was saved with its preprocessing; remove preprocess"),
    ],
)
def test_arguments_that_it_does_not_take(options: dict[str, Any], message: str, onnx_folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_model(f"onnx:{onnx_folder}", **options)


def test_the_folder_alone_is_told_from_a_model(onnx_folder: Path) -> None:
    with pytest.raises(UserError, match=f"give onnx:{onnx_folder}"):
        load_model(onnx_folder)


def test_a_long_text_is_cut_as_in_training(model: Model, onnx_folder: Path) -> None:
    long = " ".join(tiny.WORDS * 3)
    tolerance = network_tolerance(model.towers)
    np.testing.assert_allclose(load_model(f"onnx:{onnx_folder}").encode_text(long), model.encode_text(long), atol=tolerance)
