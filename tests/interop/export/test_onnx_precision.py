"""Graphs of ONNX in float16 and with weights of 8 bits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from mmcl.encoders.tower import ImageEncoder
from mmcl.errors import UserError
from mmcl.interop.export.exporting import export
from mmcl.interop.export.onnx_precision import reduced
from mmcl.interop.load import load_model
from mmcl.interop.model import Model
from mmcl.preprocess import Preprocess
from tests.interop.export import models
from tests.interop.export.test_exporting import given

TEXTS = ["a cat", "the red dog on a hill", "one two three and four"]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_smaller_export_stays_within_its_bound(precision: Any, model: Model, tmp_path: Path) -> None:
    path = list(sys.path)
    report = export(model, to="onnx", out=tmp_path / "out", precision=precision)
    assert sys.path == path
    assert report.bound == {"fp16": 5e-3, "int8": 5e-2}[precision]
    assert all(0 < value < report.bound for value in [*report.parity.tensor.values(), *report.parity.end_to_end.values()])
    weights = {
        name: numpy_helper.to_array(one).dtype
        for tower in ("image", "text")
        for graph in [onnx.load(tmp_path / f"out/{tower}.onnx").graph]
        for name, one in ((one.name, one) for one in graph.initializer)
        if np.prod(one.dims) >= 256
    }
    assert set(weights.values()) == {np.dtype(np.float16 if precision == "fp16" else np.int8)}

    ours = load_model(f"onnx:{tmp_path / 'out'}")
    images = [np.full((20, 30, 3), level, np.uint8) for level in (0, 40, 90, 150, 255)]
    one_by_one = np.concatenate([ours.encode_image(image) for image in images])
    np.testing.assert_allclose(ours.encode_image(images), one_by_one, atol=1e-3 if precision == "fp16" else 1e-6)
    rows = ours.encode_text(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=2e-3)
    assert rows.dtype == np.float32


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("name", models.MODELS)
def test_towers_of_every_library(name: str, precision: Any, tmp_path: Path) -> None:
    report = export(models.MODELS[name](tmp_path / "theirs"), to="onnx", out=tmp_path / "out", precision=precision)
    assert 0 < max(report.parity.tensor.values()) < report.bound


def graph_of_products(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Every operator that has weights, one after another: a table, a convolution, products from both sides."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "right"], ["a"]),
        helper.make_node("Gemm", ["a", "plain"], ["b"]),
        helper.make_node("Gemm", ["b", "transposed"], ["c"], transB=1),
        helper.make_node("Transpose", ["stored"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["c", "turned"], ["d"]),
        helper.make_node("Reshape", ["d", "shape"], ["map"]),
        helper.make_node("Conv", ["map", "kernel", "bias"], ["out"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    ]
    constants = {**weights, "shape": np.array([-1, 16, 2, 2])}
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["maps", 8, 2, 2])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


SHAPES = {"table": (50, 16), "right": (16, 32), "plain": (32, 24), "transposed": (48, 24), "stored": (64, 48)}
CHANNELS = {"table": 0, "right": 1, "plain": 1, "transposed": 0, "stored": 0, "kernel": 0}


def test_weights_are_rounded_within_their_output_channel() -> None:
    draw = np.random.default_rng(0)
    weights = {name: draw.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    weights["table"] *= np.logspace(-3, 3, 50, dtype=np.float32)[:, None]  # rows of very different sizes
    weights["table"][7] = 0
    weights |= {"kernel": draw.normal(size=(8, 16, 3, 3)).astype(np.float32), "bias": draw.normal(size=8).astype(np.float32)}
    rounded = dict(weights)
    for name, axis in CHANNELS.items():
        channels = np.moveaxis(weights[name], axis, 0)
        expected = np.stack([np.rint(row / max(np.abs(row).max(), 1e-30) * 127) * np.abs(row).max() / 127 for row in channels])
        rounded[name] = np.moveaxis(expected.astype(np.float32), 0, axis)
    small = reduced(graph_of_products(weights), "int8", "text")
    onnx.checker.check_model(small, full_check=True)
    evaluators: list[Any] = [ReferenceEvaluator(graph) for graph in (small, graph_of_products(rounded))]
    found, expected = (one.run(None, {"ids": np.arange(50)})[0] for one in evaluators)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max()))
    names = {one.name for one in small.graph.initializer}
    assert not names & CHANNELS.keys()
    assert {"bias", "shape"} <= names


class Scaled(ImageEncoder):
    """Features whose squares are far beyond float16."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.preprocess = Preprocess(size=8)
        self.feature_dim = 3
        self.factor = factor

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW.mean((2, 3)) * self.factor


def test_long_features_do_not_overflow_in_float16(tmp_path: Path) -> None:
    report = export(given(Scaled(2000)), to="onnx", out=tmp_path / "out", precision="fp16")
    assert max(report.parity.end_to_end.values()) < 2e-3


def test_a_tower_without_weights_has_no_8_bits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the image tower has no weights for precision int8: .*; take fp16"):
        export(given(Scaled()), to="onnx", out=tmp_path / "out", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_more_than_one_file_are_refused(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmcl.interop.export.onnx._LARGEST_FILE", 1000)
    with pytest.raises(UserError, match=r"the image tower has .* GB, and fp16 is for up to 2 GB; take fp32"):
        export(model, to="onnx", out=tmp_path / "out", precision="fp16")
