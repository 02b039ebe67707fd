"""The search for the best mean, against the definitions, and `mmcl merge` from the command line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmcl import load_model, train
from mmcl.cli.main import main
from mmcl.errors import UserError
from mmcl.evaluate import Metric, Report
from mmcl.interop.merge import merge
from mmcl.interop.model import Model
from mmcl.runs.merging import search_between, search_soup
from tests.engine.tiny import make_folder, tiny_config
from tests.interop.test_model import make_towers


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {name: Model(make_towers(), device="cpu") for name in "abcd"}


class Scores:
    """Evaluates by a table; counts what was asked for."""

    def __init__(self, score: Callable[[str], float], metric: str = "text_to_image_R@1"):
        self.score, self.metric, self.asked = score, metric, list[str]()

    def __call__(self, named: Mapping[str, Callable[[], Model]]) -> Report:
        self.asked += named
        rows = [Metric("retrieval", "new", self.metric, name, self.score(name), None, None, 10) for name in named]
        return Report(metrics=tuple(rows))


def _naive_soup(alone: dict[str, float], score: Callable[[tuple[str, ...]], float]) -> tuple[str, ...]:
    """Algorithm 1 of the paper, as it stands there."""
    soup: tuple[str, ...] = ()
    best = -1.0
    for name in sorted(alone, key=lambda one: -alone[one]):
        if score((*soup, name)) >= best:
            soup, best = (*soup, name), score((*soup, name))
    return soup


@pytest.mark.parametrize("case", range(12))
def test_the_soup_is_the_greedy_one(models: dict[str, Model], case: int) -> None:
    def score(members: tuple[str, ...]) -> float:
        return hash_to_unit((case, *sorted(members)))

    found = search_soup(models, Scores(lambda name: score(tuple(name.split(" + ")))))
    expected = _naive_soup({name: score((name,)) for name in models}, score)
    assert {name for name, weight in zip(models, found.chosen.weights, strict=True) if weight} == {*expected}
    assert set(found.chosen.weights) <= {0.0, 1 / len(expected)}


def hash_to_unit(key: tuple[Any, ...]) -> float:
    """A number in [0, 1), the same in every process; with ties, as it has eight values."""
    return sum(map(ord, repr(key))) * 7919 % 8 / 8


def test_of_equal_means_the_first_is_chosen(models: dict[str, Model]) -> None:
    two = dict(itertools.islice(models.items(), 2))
    table = {"alpha 0": 0.2, "alpha 0.5": 0.7, "alpha 0.75": 0.7, "alpha 1": 0.1}
    scores = Scores(table.__getitem__)
    found = search_between(two, (0, 0.5, 0.75, 1), scores)
    assert (found.chosen.name, found.chosen.weights, scores.asked) == ("alpha 0.5", (0.5, 0.5), list(table))
    assert "so its own score there is optimistic" in found.report.notes[-1]
    assert found.report.figures["merge"].startswith(b"\x89PNG")


def test_a_rank_is_better_when_it_is_low(models: dict[str, Model]) -> None:
    two = dict(itertools.islice(models.items(), 2))
    scores = Scores({"alpha 0": 9.0, "alpha 1": 3.0}.__getitem__, metric="text_to_image_mean_rank")
    assert search_between(two, (0, 1), scores, choose="new/text_to_image_mean_rank").chosen.name == "alpha 1"


def test_a_score_that_nobody_gives(models: dict[str, Model]) -> None:
    two = dict(itertools.islice(models.items(), 2))
    with pytest.raises(UserError, match=r"--choose new/top1: no evaluator gives this; .*such as new/text_to_image_R@1"):
        search_between(two, (0, 1), Scores(lambda name: 0.5), choose="new/top1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, of which the second starts from the first, and a suite."""
    place = tmp_path_factory.mktemp("place")
    folder = make_folder(place / "squares")
    train(tiny_config(folder, place / "start"))
    tuned = ("--init", str(place / "start"), "--image", "null", "--text", "null", "--train.steps", "4")
    train(tiny_config(folder, place / "tuned", *tuned))
    entry = {"name": "retrieval", "label": "squares", "data": {"name": "auto", "path": str(folder)}}
    (place / "suite.yaml").write_text(yaml.safe_dump({"evaluate": [entry]}))
    return place


def run(place: Path, *words: str) -> int:
    return main(["merge", *(word.replace("PLACE", str(place)) for word in words)])


@pytest.mark.long
def test_the_best_mean_is_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("PLACE/start", "PLACE/tuned", "--alpha", "0", "0.5", "1", "--evaluate", "PLACE/suite.yaml", "--out", "PLACE/best")
    assert run(place, *words) == 0
    facts = json.loads((place / "best" / "merge.json").read_text())
    scores = {one["name"]: one["score"] for one in facts["candidates"]}
    assert list(scores) == ["alpha 0", "alpha 0.5", "alpha 1"]
    assert scores[facts["chosen"]] == max(scores.values())
    weights = next(one["weights"] for one in facts["candidates"] if one["name"] == facts["chosen"])
    both = [load_model(place / name) for name in ("start", "tuned")]
    assert load_model(place / "best").fingerprint == merge(both, weights).fingerprint
    report = Report.load(place / "best" / "report")
    assert {"alpha 0", "alpha 0.5", "alpha 1"} <= {metric.model for metric in report.metrics}
    assert f"chosen   {facts['chosen']}, by " in capsys.readouterr().out


def test_a_single_mean_needs_no_data(place: Path) -> None:
    assert run(place, "PLACE/start", "PLACE/tuned", "--alpha", "0.25", "--out", "PLACE/quarter") == 0
    both = [load_model(place / name) for name in ("start", "tuned")]
    assert load_model(place / "quarter").fingerprint == merge(both, [0.75, 0.25]).fingerprint


MISTAKES = {
    ("PLACE/start",): "needs two or more different models",
    ("PLACE/start", "PLACE/start"): "needs two or more different models",
    ("PLACE/start", "PLACE/tuned", "--alpha", "0.5", "--soup"): "--alpha, --weights and --soup exclude each other",
    ("PLACE/start", "PLACE/tuned", "PLACE/third", "--alpha", "0.5"): "--alpha is for two models, but there are 3",
    ("PLACE/start", "PLACE/tuned", "--soup"): "--soup chooses by scores: give --evaluate SUITE",
    ("PLACE/start", "PLACE/tuned", "--alpha", "0", "1"): "give --evaluate SUITE, or a single --alpha",
    ("PLACE/start", "PLACE/tuned", "--weights", "0.5", "0.6"): "the weights 0.5, 0.6 do not sum to 1",
    ("PLACE/start", "PLACE/tuned", "--weights", "1"): "there are 1 weights for 2 models",
    ("PLACE/start", "PLACE/missing"): "missing",
    ("PLACE/start", "PLACE/tuned", "--evaluate", "none.yaml"): "none.yaml: no such suite",
    ("PLACE/start", "PLACE/tuned", "--weights", "0.5", "0.5", "--evaluate", "PLACE/suite.yaml"): "--weights are a choice",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert run(place, *words, "--out", str(tmp_path / "out")) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert MISTAKES[words] in line
    assert not (tmp_path / "out").exists()
