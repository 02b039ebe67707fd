"""Exporting as such: what is written, checked, refused, and that nothing is left behind."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mmcl.cli.main import main
from mmcl.encoders.tower import GIVEN, ImageEncoder
from mmcl.errors import UserError
from mmcl.interop.export import EXPORTS
from mmcl.interop.export.exporting import ExportReport, export
from mmcl.interop.export.own import OwnExport
from mmcl.interop.export.parity import generated_images
from mmcl.interop.export.target import LoadedExport, LoadedModel
from mmcl.interop.load import load_model
from mmcl.interop.model import Model
from mmcl.interop.save import save_model
from mmcl.preprocess import Preprocess
from tests.engine.tiny import make_folder
from tests.interop.export import models
from tests.narrow import of_type


class Crooked(OwnExport):
    """A format that adds something to every embedding."""

    error = 1e-3

    def load(self, folder: Path) -> LoadedExport:
        class Loaded(LoadedModel):
            def encode_text(self, texts: Sequence[str]) -> np.ndarray:
                return super().encode_text(texts) + np.float32(Crooked.error)

        return Loaded(load_model(folder, device="cpu"))


@pytest.fixture
def crooked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPORTS._table, "crooked", Crooked)


@pytest.mark.parametrize("to", ["own", "pt2"])
def test_an_export_agrees_with_its_model(model: Model, to: str, tmp_path: Path) -> None:
    report = export(model, to=to, out=tmp_path / "out")
    content = json.loads((tmp_path / "out/export.json").read_text())
    assert content["parity"] == {"tensor": dict(report.parity.tensor), "end_to_end": dict(report.parity.end_to_end)}
    assert set(content["parity"]["tensor"]) == {"pixels", "tokens"}
    assert set(content["parity"]["end_to_end"]) == {"images", "landscape", "portrait", "odd", "texts"}
    assert max(report.parity.tensor.values()) < 1e-5
    assert content["fingerprint"] == model.fingerprint
    assert content["towers"] == {"image": "strided_cnn", "text": "small_text"}
    assert str(tmp_path) not in json.dumps(content)


def test_the_report_of_onnx(onnx_report: ExportReport) -> None:
    assert max(onnx_report.parity.tensor.values()) < 1e-5
    assert max(onnx_report.parity.end_to_end.values()) < 1e-5
    size = sum(path.stat().st_size for path in onnx_report.folder.iterdir() if path.name != "export.json")
    assert onnx_report.megabytes == pytest.approx(size / 1e6)


def test_an_export_that_differs_is_not_kept(model: Model, crooked: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"export to crooked: texts differ by 0\.001, more than 0\.0001 .*nothing was written"):
        export(model, to="crooked", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_rows_that_are_no_numbers_differ(model: Model, crooked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Crooked, "error", float("nan"))
    with pytest.raises(UserError, match="texts differ by nan"):
        export(model, to="crooked", out=tmp_path / "out")


def test_what_a_library_cannot_load_is_a_line(
    model: Model, crooked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(target: OwnExport, folder: Path) -> LoadedExport:
        raise RuntimeError("size mismatch\nfor a.weight")

    monkeypatch.setattr(Crooked, "load", fail)
    with pytest.raises(
        UserError, match=r"export to crooked: its library cannot take this model \(.*size mismatch.*try --to"
    ) as caught:
        export(model, to="crooked", out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_small_difference_is_reported(model: Model, crooked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Crooked, "error", 5e-5)
    report = export(model, to="crooked", out=tmp_path / "out")
    assert report.parity.end_to_end["texts"] == pytest.approx(5e-5, rel=0.01)


def test_the_photos_of_the_user_are_compared_too(model: Model, tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos")
    report = export(model, to="own", out=tmp_path / "out", check=photos)
    assert report.parity.end_to_end["photos"] == 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images to check with"):
        export(model, to="own", out=tmp_path / "other", check=tmp_path / "empty")


@pytest.mark.parametrize("name", ["file", "full"])
def test_what_is_there_is_not_touched(name: str, model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(UserError, match=f"{name} exists already; give a new folder"):
        export(model, to="own", out=tmp_path / name)
    assert (tmp_path / "full/mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_adapters_are_merged_before(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    adapted = models.own()
    parametrize.register_parametrization(adapted.towers["image"].encoder.project, "weight", Twice())  # type: ignore[union-attr,arg-type]
    with pytest.raises(UserError, match=r"image\.encoder\.project has adapters .*merge them"):
        export(adapted, to="own", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onx"}, "unknown export target 'onx'; did you mean 'onnx'"),
        ({"to": "own", "precision": "int8"}, "own has no precision int8, only fp32; onnx has all"),
        ({"to": "open_clip", "precision": "int8"}, "open_clip has no precision int8, only fp32 and fp16; onnx has all"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str, model: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        export(model, out=tmp_path / "out", **options)


def test_a_missing_library_names_its_extra(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else find(name, *rest))
    with pytest.raises(UserError, match=r"to onnx needs onnx and onnxscript and onnxruntime: pip install 'mmcl\[onnx\]'"):
        export(model, to="onnx", out=tmp_path / "out")


class Looping(ImageEncoder):
    """An encoder whose code depends on the values of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.preprocess = Preprocess(size=4)
        self.feature_dim = 3
        self.weight = nn.Parameter(torch.rand(3))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        rows = image_BCHW.mean((2, 3)) * self.weight
        return rows + 1 if rows.sum() > 3 else rows - 1


def given(module: nn.Module) -> Model:
    from mmcl.encoders.given import given_encoders

    with given_encoders({"image": module}):
        return models.shaken_model({"image": {"encoder": GIVEN, "encoder_args": {}}})


def test_a_tower_that_cannot_be_traced_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the image tower cannot become a graph .*try --to own") as caught:
        export(given(Looping()), to="pt2", out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_module_from_python_is_exported(tmp_path: Path) -> None:
    assert export(given(Looping()), to="own", out=tmp_path / "own").parity.end_to_end["images"] == 0


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_other_channels_and_sides(channels: int, tmp_path: Path) -> None:
    args = {**models.OWN_IMAGE, "channels": channels, "image_size": [12, 20]}
    model = models.shaken_model({"image": {"encoder": "strided_cnn", "encoder_args": args, **models.LINEAR}})
    assert max(export(model, to="pt2", out=tmp_path / "out").parity.end_to_end.values()) < 1e-5


@pytest.mark.parametrize("preprocess", [Preprocess(size=32), Preprocess(size=32, resize_size=37), Preprocess(size=(20, 32))])
def test_shapes_of_the_generated_images(preprocess: Preprocess) -> None:
    shapes = {
        kind: [of_type(Image.Image, image).size for image in images] for kind, images in generated_images(preprocess).items()
    }
    resize = preprocess.resize_size or preprocess.size
    height, width = resize if isinstance(resize, tuple) else (resize, resize)
    assert shapes["images"] == [(width, height)] * 2
    assert all(image[0] > image[1] for image in shapes["landscape"])
    assert all(image[0] < image[1] for image in shapes["portrait"])
    assert all((image[0] - preprocess.width) % 4 == 3 for image in shapes["odd"])


def test_the_command(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "run/model", model.towers, logit_scale=2.0)
    words = ["export", str(tmp_path / "run"), "--to", "own", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert f"for own in {tmp_path / 'out'} (fp32, " in shown
    assert "same inputs: embeddings differ by 0 (pixels), 0 (tokens)" in shown
    assert f'mmcl.load_model("{tmp_path / "out"}")' in shown
    assert main(words) == 2
    assert "exists already; give a new folder" in capsys.readouterr().err
    assert main([*words[:-1], str(tmp_path / "json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == "own"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "onyx"], "--to: unknown export target 'onyx'; did you mean 'onnx'"),
        (["--to", "own", "--check", "nowhere"], "--check nowhere: no such folder"),
        (["--to", "own", "--precision", "fp8"], "--precision"),
        (["--to", "pt2", "--precision", "fp16"], "pt2 has no precision fp16, only fp32; onnx has all"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "nowhere", "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_model_in_evaluation_of_images_of_the_right_size() -> None:
    """The generated images look like photos: neither noise, which every resize blurs alike, nor flat."""
    [image, _] = generated_images(Preprocess(size=32))["landscape"]
    assert isinstance(image, Image.Image)
    pixels = np.asarray(image).astype(float)
    assert pixels.std() > 20
    assert np.abs(np.diff(pixels, axis=1)).mean() < 20
