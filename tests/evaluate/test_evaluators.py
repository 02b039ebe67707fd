"""Every registered evaluator, on a model and a source with a known answer; and the baselines against loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS, CachedModel, Report, Task, run
from mmcl.evaluate.task import captions_of
from tests.evaluate.toys import ARGS, CLASSES, NAMES, PatternModel, PatternSource

HEADLINES = {
    "retrieval": "text_to_image_R@1",
    "zero_shot": "zero_shot_top1",
    "knn": "knn5_top1",
    "linear_probe": "linear_top1",
}


@pytest.fixture
def task() -> Task:
    return Task("patterns", PatternSource(36, seed=0), PatternSource(60, seed=1))


def by_model(report: Report, metric: str) -> dict[str, float | None]:
    return {row.model: row.value for row in report.metrics if row.metric == metric}


@pytest.mark.parametrize("name", EVALUATORS)
def test_evaluator_contract(name: str, task: Task) -> None:
    report = EVALUATORS.build(name, ARGS.get(name, {}), CachedModel(PatternModel()), task)
    assert report.metrics or report.figures
    for row in report.metrics:
        assert (row.evaluator, row.data) == (name, "patterns")
        assert row.n == CLASSES if row.metric.startswith("text_to_image") else row.n == 36
        assert row.low is None or row.low <= row.value <= row.high
    alone = EVALUATORS.build(name, ARGS.get(name, {}), CachedModel(PatternModel(), "mine"), replace(task, baselines=False))
    assert {row.model for row in alone.metrics} <= {"mine"}
    assert all("mine" in figure for figure in alone.figures)


@pytest.mark.parametrize("name", HEADLINES)
def test_headlines_of_a_model_that_knows_and_of_the_baselines(name: str, task: Task) -> None:
    found = by_model(EVALUATORS.build(name, ARGS.get(name, {}), CachedModel(PatternModel()), task), HEADLINES[name])
    assert found["trained"] == 1
    assert found["raw pixels"] > 0.9
    assert found["chance"] == pytest.approx(1 / CLASSES)
    if name in ("knn", "linear_probe"):
        assert found["PCA-50"] > 0.9
    if name != "retrieval":
        assert found["majority"] == pytest.approx(1 / CLASSES)


def test_run_encodes_each_source_once_and_each_text_once(task: Task) -> None:
    first, second = PatternModel(), PatternModel()
    names = [(name, ARGS.get(name, {})) for name in EVALUATORS]
    report = run(names, [CachedModel(first, "trained"), CachedModel(second, "untrained")], [task])
    for model in (first, second):
        assert sorted(model.image_calls) == [36, 60]
        assert sum(model.text_calls) == 2 * CLASSES  # The bare names, shared with retrieval, and "a {}".
    assert {"trained", "untrained", "raw pixels", "chance"} <= {row.model for row in report.metrics}
    # Pictures are drawn of the first model alone.
    assert set(report.figures) == {"retrieval_patterns_trained", "embedding_map_patterns_trained"}


def test_raw_pixel_retrieval_equals_a_loop(task: Task) -> None:
    bank = PatternSource(9, seed=3)  # Patterns 0 to 2 twice, 3 to 5 once.
    task = replace(task, bank=bank)
    report = EVALUATORS["retrieval"](CachedModel(PatternModel()), task, ks=(1, 3, 7), examples=0)
    test, train = (task.pixels.images(source).astype(np.float64) for source in (task.source, bank))
    score = np.array([[max(row @ train[j] for j in range(9) if j % CLASSES == c) for c in range(CLASSES)] for row in test])
    labels = np.arange(36) % CLASSES
    image_hits = [labels[n] in np.argsort(-score[n])[:1] for n in range(36)]
    text_hits = [c in labels[np.argsort(-score[:, c])[:3]] for c in range(CLASSES)]
    assert by_model(report, "image_to_text_R@1")["raw pixels"] == pytest.approx(np.mean(image_hits))
    assert by_model(report, "text_to_image_R@3")["raw pixels"] == pytest.approx(np.mean(text_hits))
    assert by_model(report, "image_to_text_R@7")["raw pixels"] is None


def test_raw_pixels_are_left_out_where_no_caption_is_shared(task: Task) -> None:
    task = replace(task, bank=PatternSource(12, seed=1, captions=False))
    report = EVALUATORS["retrieval"](CachedModel(PatternModel()), task, examples=0)
    assert "raw pixels" not in by_model(report, "text_to_image_R@1")
    assert any("no raw pixels" in note for note in report.notes)


def test_pictures_that_share_a_caption_have_equal_ids() -> None:
    class Shared(PatternSource):
        def __getitem__(self, index: int) -> object:
            captions = [("a", "b"), ("c",), ("b",), (), ("c", "d")][index]
            return replace(super().__getitem__(index), captions=captions)

    found = captions_of(Shared(5, seed=0))
    first, second, third, fourth, fifth = found.image_ids
    assert first == third
    assert second == fifth
    assert len({first, second, fourth}) == 3
    assert dict(zip(found.texts, found.text_ids, strict=True)) == {"a": first, "b": first, "c": second, "d": second}
    assert found.first_image.tolist() == [0, 0, 1, 4]


def test_pictures_whose_captions_differ_in_case_or_white_space_share_them() -> None:
    class Shared(PatternSource):
        def __getitem__(self, index: int) -> object:
            captions = [("A cat",), ("a  cat\n",), ("fish &amp; chips",), ("Fish & chips",)][index]
            return replace(super().__getitem__(index), captions=captions)

    first, second, third, fourth = captions_of(Shared(4, seed=0)).image_ids
    assert first == second != third == fourth


def test_given_ids_win_over_captions() -> None:
    source = PatternSource(12, seed=0)
    source.ids = np.arange(12) // 6 * 100
    found = captions_of(source)
    assert found.image_ids.tolist() == [0] * 6 + [100] * 6
    assert found.texts == tuple(NAMES * 2), "the same text of two ids is two queries"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("retrieval", {"source": PatternSource(6, seed=0, captions=False)}, "patterns: no sample has a caption"),
        ("knn", {"source": PatternSource(6, seed=0, labels=False)}, "patterns: row 0 has no label"),
        ("knn", {"bank": None}, "patterns: this evaluator needs training data"),
        ("linear_probe", {"bank": PatternSource(6, seed=0, labels=False)}, "the training data of patterns: row 0 has no label"),
        ("zero_shot", {"source": PatternSource(6, seed=0, labels=False)}, "patterns: has no class names"),
    ],
)
def test_data_that_do_not_fit_are_user_errors(name: str, change: dict[str, object], message: str, task: Task) -> None:
    with pytest.raises(UserError, match=message):
        EVALUATORS[name](CachedModel(PatternModel()), replace(task, **change))


def test_other_classes_in_the_bank_are_a_user_error(task: Task) -> None:
    assert task.bank is not None
    task.bank.class_names = [*NAMES[1:], NAMES[0]]
    with pytest.raises(UserError, match="different classes"):
        EVALUATORS["knn"](CachedModel(PatternModel()), task)


@pytest.mark.parametrize("name", ["retrieval", "zero_shot"])
def test_a_model_without_texts_is_a_user_error(name: str, task: Task) -> None:
    with pytest.raises(UserError, match="text tower"):
        EVALUATORS[name](CachedModel(PatternModel(has_text=False)), task)


def test_arguments_are_checked_by_the_registry() -> None:
    with pytest.raises(UserError, match="did you mean 'temperature'"):
        EVALUATORS.check("knn", {"temprature": 1})


def test_a_metric_says_its_evaluator(task: Task) -> None:
    """Scores of a run are called by label and metric: no two evaluators have one of a name."""
    seen: dict[str, str] = {}
    for name in EVALUATORS:
        for row in EVALUATORS.build(name, ARGS.get(name, {}), CachedModel(PatternModel()), task).metrics:
            assert seen.setdefault(row.metric, name) == name


@pytest.mark.parametrize("kind", ["evaluators", "models", "tasks"])
def test_results_that_would_replace_each_other_are_refused(kind: str, task: Task) -> None:
    given: dict[str, list] = {"evaluators": [("geometry", {})], "models": [CachedModel(PatternModel())], "tasks": [task]}
    given[kind] *= 2
    with pytest.raises(UserError, match=f"two {kind} are called"):
        run(given["evaluators"], given["models"], given["tasks"])
