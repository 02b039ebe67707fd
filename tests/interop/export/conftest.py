"""A model and its ONNX graphs, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmcl.interop.export.exporting import ExportReport, export
from mmcl.interop.model import Model
from tests.interop.export import models


@pytest.fixture(scope="session")
def model() -> Model:
    return models.own()


@pytest.fixture(scope="session")
def onnx_report(model: Model, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return export(model, to="onnx", out=tmp_path_factory.mktemp("graphs") / "onnx")


@pytest.fixture(scope="session")
def onnx_folder(onnx_report: ExportReport) -> Path:
    return onnx_report.folder
