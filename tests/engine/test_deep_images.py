"""Images that are readable only with the model's intensity and channels, from training to every figure of the report."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmcl.config import SourceConfig, load_config
from mmcl.evaluate import compare
from mmcl.evaluate.baselines import RawPixels
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.reporting.thumbnails import from_data_uri
from mmcl.interop.load import load_model
from mmcl.preprocess import Preprocess
from mmcl.runs.build_data import build_source
from mmcl.runs.comparison import METRIC, with_changes
from mmcl.runs.run import train
from mmcl.search import Index

COUNT = 24


def bands(rng: np.random.Generator, file: Path) -> str:
    np.save(file.with_suffix(".npy"), rng.uniform(-1, 1, (20, 18, 5)).astype(np.float32))
    return f"{file.name}.npy"


def two_bands(rng: np.random.Generator, file: Path) -> str:
    np.save(file.with_suffix(".npy"), rng.uniform(-1, 1, (2, 20, 18)))
    return f"{file.name}.npy"


def grays_of_12_bits(rng: np.random.Generator, file: Path) -> str:
    Image.fromarray(rng.integers(0, 4096, (20, 18)).astype(np.uint16)).save(file.with_suffix(".png"))
    return f"{file.name}.png"


def float_tiff(rng: np.random.Generator, file: Path) -> str:
    Image.fromarray(rng.uniform(-1, 1, (20, 18)).astype(np.float32)).save(file.with_suffix(".tiff"))
    return f"{file.name}.tiff"


KINDS = {
    bands: (5, "[-1, 1]"),
    two_bands: (2, "{percentiles: [1, 99]}"),
    grays_of_12_bits: (1, "[0, 4095]"),
    float_tiff: (3, "{percentiles: [1, 99]}"),
}


def make(kind: Any, folder: Path, seed: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    names = [kind(rng, folder / f"image{number}") for number in range(COUNT)]
    with (folder / "table.csv").open("w", newline="") as file:
        rows = [(name, f"thing number {number % 12}", f"class {number % 3}") for number, name in enumerate(names)]
        csv.writer(file).writerows([("image", "caption", "label"), *rows])
    return folder / "table.csv"


def config_of(kind: Any, tmp_path: Path) -> Path:
    """Two steps of CLIP on images of a kind, written to a file."""
    channels, intensity = KINDS[kind]
    train_table, test_table = make(kind, tmp_path / "train", 0), make(kind, tmp_path / "test", 1)
    data = f"{{name: table, path: {json.dumps(str(test_table))}}}"
    (tmp_path / "c.yaml").write_text(f"""
method: {{name: clip}}
image:
  encoder: {{name: small_cnn, args: {{image_size: 16, channels: {channels}, feature_dim: 16}}}}
  head: {{name: linear, args: {{embed_dim: 8}}}}
  preprocess: {{intensity: {intensity}}}
text:
  encoder: {{name: small_text, args: {{width: 16, layers: 1, heads: 2}}}}
  head: {{name: linear, args: {{embed_dim: 8}}}}
data: {{train: {{name: table, path: {json.dumps(str(train_table))}}}}}
train: {{batch_size: 8, steps: 2, threads: 1}}
evaluate:
  - {{name: retrieval, label: test, data: &test {data}}}
  - {{name: knn, label: test, data: *test, args: {{ks: [3]}}}}
  - {{name: zero_shot, label: test, data: *test}}
  - {{name: embedding_map, label: test, data: *test, args: {{method: pca}}}}
""")
    return tmp_path / "c.yaml"


def trained(config: Path, seed: int) -> Path:
    run = config.parent / f"run{seed}"
    train(load_config(config, ["--run_dir", str(run), "--train.seed", str(seed)]))
    return run


@pytest.fixture(autouse=True, scope="module")
def _blank_figures() -> None:
    """They are drawn here, as what they show is looked at."""


SLOW = tuple(KINDS)[1:]


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.long] if kind in SLOW else [], id=kind.__name__) for kind in KINDS]
)
def test_a_run_reports_with_all_its_images(kind: Any, tmp_path: Path) -> None:
    run = trained(config_of(kind, tmp_path), 0)
    report = Report.load(run / "report")
    assert not report.failures
    assert "embedding_map_test_trained" in report.figures
    assert (run / "report" / "retrieval_test_trained.png").is_file()
    shown = [hit.image for one in report.examples for query in one.queries for hit in query.hits if hit.image]
    assert all(np.asarray(from_data_uri(image)).std() > 20 for image in shown), "neither black nor white"
    assert shown
    assert report.pages
    raw = {metric.evaluator for metric in report.metrics if metric.model in ("raw pixels", "labeled pixels")}
    assert raw == {"retrieval", "knn", "zero_shot"}

    hits = Index.build(tmp_path / "test" / "table.csv", load_model(run)).search("thing number 1", top_k=4)
    hits.save(tmp_path / "hits.png")
    sheet = np.asarray(Image.open(tmp_path / "hits.png").convert("L"))
    assert sheet[90:240, 40:190].std() > 20  # noise, neither black nor white


@pytest.mark.long
def test_a_comparison_shows_what_two_runs_found(tmp_path: Path) -> None:
    run = trained(config_of(bands, tmp_path), 0)
    report = Report.load(run / "report")
    found = compare(report, report, names=("a", "b"))
    # After two steps the result may be the same for all queries, so some are made to differ.
    differences = tuple(
        dataclasses.replace(one, won=("thing number 1",), lost=("thing number 2",)) if one.metric == METRIC else one
        for one in found.differences
    )
    shown = with_changes(dataclasses.replace(found, differences=differences), run, run)
    assert [(a.group, b.text, len(b.hits)) for a, b in shown.changes["test"]] == [
        ("better", "thing number 1", 3),
        ("worse", "thing number 2", 3),
    ]


def test_raw_pixels_have_the_levels_and_bands_of_the_model(tmp_path: Path) -> None:
    source = build_source(SourceConfig(name="table", path=str(make(bands, tmp_path / "data", 0))), None, "data")
    seen = Preprocess(size=16, channels=5, intensity=(-1.0, 1.0))
    rows = RawPixels.like(source, seen).encode_image(source)
    assert rows.shape == (COUNT, 5 * 18 * 18)
    first = np.load(tmp_path / "data" / "image0.npy")[1:19].transpose(2, 0, 1)  # cropped around the center
    expected = np.rint((first + 1) / 2 * 255).ravel()
    np.testing.assert_allclose(rows[0], expected / np.linalg.norm(expected), atol=2e-5)
    assert dataclasses.replace(seen, size=18) == RawPixels.like(source, seen).preprocess
