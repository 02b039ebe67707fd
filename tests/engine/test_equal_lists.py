"""With noise in place of the training images under equal names, every evaluation sees the noise, despite all caches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import mmcl
from mmcl.cli.main import main
from mmcl.data.open import open_source
from mmcl.data.source import Source
from mmcl.engine.log import EVALUATION, read_log
from mmcl.errors import UserError
from mmcl.evaluate import CachedModel, Task, compare, run
from mmcl.evaluate.cache import EmbeddingCache
from mmcl.evaluate.embedding_file import stored_task, write_embeddings
from mmcl.runs import suite as suite_module
from mmcl.runs.suite import load_suite, run_suite
from mmcl.testing.patterns import PatternModel
from tests.engine.tiny import tiny_config
from tests.narrow import present

ROWS = 40
CHANCE = 0.8
"""What the share of hits among 40 draws of two classes stays below, but for once in 10,000 times."""


def write_set(folder: Path, seed: int) -> Path:
    """Noise, with the classes 0, 1, 0, 1, ...: no image says anything about another one."""
    folder.mkdir()
    noise = np.random.default_rng(seed).integers(256, size=(ROWS, 8, 8, 3)).astype(np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{number}.bmp")
    lines = (f"{number}.bmp,a caption {number},{number % 2}\n" for number in range(ROWS))
    (folder / "captions.csv").write_text("image,caption,label\n" + "".join(lines))
    return folder


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    return write_set(tmp_path / "bank", 1)


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    return write_set(tmp_path / "noise", 2)


def as_table(folder: Path) -> Source:
    return open_source("table", str(folder / "captions.csv"))


KNN = ("knn", {"ks": [1]})


@pytest.mark.parametrize("cached", [False, True])
def test_nearest_neighbors_of_noise_are_chance(cached: bool, bank: Path, noise: Path, tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache") if cached else None
    for _ in range(2):
        report = run([KNN], [CachedModel(PatternModel(), cache=cache)], [Task("noise", as_table(noise), as_table(bank))])
        scores = {metric.model: present(metric.value) for metric in report.metrics if metric.metric == "knn1_top1"}
        assert all(value < CHANCE for value in scores.values())
        assert {"trained", "raw pixels", "PCA-50"} <= scores.keys()
    own = run([KNN], [CachedModel(PatternModel(), cache=cache)], [Task("bank", as_table(bank), as_table(bank))])
    assert {metric.value for metric in own.metrics if metric.model == "trained"} == {1.0}, "the images themselves are found"


@pytest.mark.parametrize("flags", [[], ["--no_cache"]])
def test_on_the_command_line(
    flags: list[str], bank: Path, noise: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mmcl.interop.load.load_model", lambda name, device=None: PatternModel())
    data = ["--data", str(noise / "captions.csv"), "--bank", str(bank / "captions.csv")]
    for _ in range(2):
        main(["eval", "knn", "--model", "patterns", *data, "--args", "{ks: [1]}", "--json", *flags])
        metrics = json.loads(capsys.readouterr().out)
        assert {one["value"] < CHANCE for one in metrics if one["metric"] == "knn1_top1"} == {True}


def test_in_a_suite(bank: Path, noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_module, "load_model", lambda name, device=None: PatternModel())
    path, out = tmp_path / "suite.yaml", tmp_path / "out"
    evaluators = [
        {"name": "knn", "label": folder.name, "args": KNN[1], "data": at(folder), "bank": at(bank)} for folder in (bank, noise)
    ]
    path.write_text(yaml.safe_dump({"models": ["patterns"], "evaluate": evaluators}))
    cache = EmbeddingCache(tmp_path / "cache")

    def scores() -> dict[str, float]:
        report = run_suite(load_suite([path]), out, cache=cache)
        return {metric.data: present(metric.value) for metric in report.metrics if metric.model == "patterns"}

    for _ in range(2):
        found = scores()
        assert found["bank"] == 1.0
        assert found["noise"] < CHANCE
    shutil.rmtree(noise)
    shutil.copytree(bank, noise)
    assert scores()["noise"] == 1.0, "other images at the same place are evaluated again"


def at(folder: Path) -> dict[str, str]:
    return {"name": "table", "path": str(folder / "captions.csv")}


def test_while_training(bank: Path, noise: Path, tmp_path: Path) -> None:
    evaluators = [
        {"name": "knn", "label": folder.name, "every": 1, "args": KNN[1], "data": at(folder), "bank": at(bank)}
        for folder in (bank, noise)
    ]
    mmcl.train(tiny_config(bank, tmp_path / "run", "--evaluate", yaml.safe_dump(evaluators), "--train.steps", "1"))
    (scores,) = (row for row in read_log(tmp_path / "run/metrics.jsonl") if EVALUATION in row)
    assert scores["bank/knn1_top1"] == 1.0
    assert scores["noise/knn1_top1"] < CHANCE


def test_reports_of_other_images_are_not_compared(bank: Path, noise: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bank, tmp_path / "copy")

    def report(folder: Path, against: Path = bank):  # type: ignore[no-untyped-def]
        return run([KNN], [CachedModel(PatternModel())], [Task("one label", as_table(folder), as_table(against))])

    with pytest.raises(UserError, match="made on different data"):
        compare(report(bank), report(noise))
    same = compare(report(bank), report(copy))
    assert same["knn1_top1"].difference == 0, "a copied folder is the same data, though its files have other names"
    assert not [note for note in same.notes if "bank" in note]
    assert [note for note in compare(report(bank), report(bank, noise)).notes if "different training samples" in note]


def test_files_of_embeddings(bank: Path, noise: Path, tmp_path: Path) -> None:
    model = CachedModel(PatternModel())
    for folder in (bank, noise):
        write_embeddings(tmp_path / f"{folder.name}.parquet", as_table(folder), model)
    stored, task = stored_task(tmp_path / "noise.parquet", tmp_path / "bank.parquet")
    report = run([KNN], [CachedModel(stored)], [task])
    assert present(report["knn1_top1"]) < CHANCE
    of_images = run([KNN], [model], [Task("noise", as_table(noise), as_table(bank))])
    assert {(one.data_identity, one.bank_identity) for one in (*report.provenance, *of_images.provenance)} == {
        (as_table(noise).identity, as_table(bank).identity)
    }
