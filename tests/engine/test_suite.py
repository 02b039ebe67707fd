"""A suite continues after an interruption, computes only new results, and combines all in one table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmcl.errors import UserError
from mmcl.evaluate import CachedModel, Report, Task, run
from mmcl.runs import suite as suite_module
from mmcl.runs.suite import load_suite, run_suite
from mmcl.testing.patterns import PatternModel

CONFIGS = Path(__file__).parents[2] / "configs" / "eval"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was really evaluated, as "model evaluator"; models are made up."""
    calls: list[str] = []

    def counted(evaluators: Any, models: Sequence[CachedModel], tasks: Sequence[Task]) -> Report:
        calls.append(f"{models[0].name} {evaluators[0][0]}")
        return run(evaluators, models, tasks)

    class Digits(PatternModel):
        def __init__(self, name: str, device: str | None = None) -> None:
            super().__init__(has_text="image" not in name)
            self.fingerprint = name

    monkeypatch.setattr(suite_module, "run", counted)
    monkeypatch.setattr(suite_module, "load_model", Digits)
    return calls


def digits(fold: str) -> dict[str, object]:
    return {"name": "digits", "args": {"fold": fold}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    entries = [
        {"name": "zero_shot", "label": "digits", "data": digits("test")},
        {"name": "knn", "label": "digits", "data": digits("test"), "bank": digits("train"), "args": {"ks": [1]}},
    ]
    path = tmp_path / "digits.yaml"
    path.write_text(yaml.safe_dump({"models": ["one", "two"], "evaluate": entries}))
    return path


def test_one_table_of_all_models_and_nothing_twice(file: Path, tmp_path: Path, computed: list[str]) -> None:
    report = run_suite(load_suite([file]), tmp_path / "out")
    assert computed == ["one zero_shot", "one knn", "two zero_shot", "two knn"]
    assert {metric.model for metric in report.metrics} == {"one", "two", "raw pixels", "PCA-50", "majority", "chance"}
    assert {one.model for one in report.provenance} == {"one", "two"}
    again = run_suite(load_suite([file]), tmp_path / "out")
    assert len(computed) == 4
    assert again == report
    more = run_suite(load_suite([file], models=["one", "two", "three"]), tmp_path / "out")
    assert computed[4:] == ["three zero_shot", "three knn"]
    assert len(more.metrics) > len(report.metrics)
    more.write(tmp_path / "out")
    with (tmp_path / "out" / "metrics.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["model"] for row in rows] == [metric.model for metric in more.metrics]
    assert "zero_shot: digits" in (tmp_path / "out" / "report.md").read_text()


def test_a_stopped_suite_continues(file: Path, tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    counted = vars(suite_module)["run"]

    def stopped(*args: Any) -> Any:
        if len(computed) == 2:
            raise KeyboardInterrupt
        return counted(*args)

    monkeypatch.setattr(suite_module, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_suite(load_suite([file]), tmp_path / "out")
    monkeypatch.setattr(suite_module, "run", counted)
    resumed = run_suite(load_suite([file]), tmp_path / "out")
    assert computed == ["one zero_shot", "one knn", "two zero_shot", "two knn"]
    assert resumed == run_suite(load_suite([file]), tmp_path / "whole")


def test_other_arguments_and_a_damaged_result_are_computed_again(
    file: Path, tmp_path: Path, computed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    suite = load_suite([file], models=["one"])
    run_suite(suite, tmp_path / "out")
    file.write_text(file.read_text().replace("- 1", "- 2"))
    run_suite(load_suite([file], models=["one"]), tmp_path / "out")
    assert computed[2:] == ["one knn"]
    for metrics in (tmp_path / "out" / "results").glob("*/metrics.json"):
        metrics.write_text("[")
    run_suite(suite, tmp_path / "out")
    assert computed[3:] == ["one zero_shot", "one knn"]
    assert "is not of the same report" in caplog.text


def test_what_a_model_cannot_do_is_a_note(file: Path, tmp_path: Path, computed: list[str]) -> None:
    report = run_suite(load_suite([file], models=["image only"]), tmp_path / "out")
    assert {metric.evaluator for metric in report.metrics} == {"knn"}
    assert any("zero_shot of digits: not evaluated" in note for note in report.notes)


def test_a_model_that_cannot_be_loaded_leaves_the_others(
    file: Path, tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of them it is."""
    whole, load = run_suite(load_suite([file]), tmp_path / "whole"), vars(suite_module)["load_model"]

    def lost(name: str, device: str | None = None) -> Any:
        if name == "lost":
            raise UserError("lost: no such folder")
        return load(name)

    monkeypatch.setattr(suite_module, "load_model", lost)
    for number in range(3):
        models = ["one", "two"]
        models.insert(number, "lost")
        report = run_suite(load_suite([file], models=models), tmp_path / str(number))
        assert report.metrics == whole.metrics
        assert report.failures == ("lost: not loaded: lost: no such folder",)
    with pytest.raises(UserError, match="nothing could be evaluated: lost: not loaded: lost: no such folder"):
        run_suite(load_suite([file], models=["lost"]), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("evaluate: [{name: knnn, label: x}]", "did you mean 'knn'"),
        ("evaluate: [{name: knn, label: x}]", "data is missing"),
        ("evaluat: []", "did you mean 'evaluate'"),
        ("- 3", "must contain a mapping"),
        ("a: [", "not valid YAML"),
        ("a: 2001-99-99", "not valid YAML"),
        ("&a {models: [*a]}", "contains itself|must be"),
        ("evaluate: []", "names no model"),
        (
            "{models: [m], evaluate: [&a {name: knn, label: x, data: {name: digits}}, *a]}",
            "evaluate.1 and .*evaluate.0 are both knn, of 'x'",
        ),
    ],
)
def test_mistakes_are_named(content: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=named):
        load_suite([path])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_bundled_suite_loads(path: Path) -> None:
    assert load_suite([path]).evaluate
