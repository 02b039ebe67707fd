"""Every registered evaluator on a model and a source with a known result, and the baselines against loops."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmcl.data.captions import NotText
from mmcl.data.sample import Sample
from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS, CachedModel, Report, Task, check, run
from mmcl.evaluate.captions import captions_of
from mmcl.evaluate.task import NeedsTexts
from mmcl.testing.patterns import CLASSES, NAMES, PatternModel, PatternSource
from tests.evaluate.toys import ARGS
from tests.narrow import present

HEADLINES = {
    "retrieval": "text_to_image_R@1",
    "zero_shot": "zero_shot_top1",
    "knn": "knn5_top1",
    "linear_probe": "linear_top1",
}


def usual_task() -> Task:
    return Task("patterns", PatternSource(36, seed=0), PatternSource(60, seed=1))


@pytest.fixture
def task() -> Task:
    return usual_task()


@functools.cache
def usual(name: str) -> Report:
    """Of an evaluator on the task."""
    report: Report = EVALUATORS.build(name, ARGS.get(name, {}), CachedModel(PatternModel()), usual_task())
    return report


def by_model(report: Report, metric: str) -> dict[str, float | None]:
    return {row.model: row.value for row in report.metrics if row.metric == metric}


@pytest.mark.parametrize("name", EVALUATORS)
def test_metrics_are_of_every_query(name: str) -> None:
    for row in usual(name).metrics:
        assert row.evaluator == name
        assert row.n == CLASSES if row.metric.startswith("text_to_image") else row.n == 36


@pytest.mark.parametrize("name", HEADLINES)
def test_headlines_of_a_perfect_model_and_of_the_baselines(name: str) -> None:
    found = by_model(usual(name), HEADLINES[name])
    assert found["trained"] == 1
    assert present(found["labeled pixels" if name == "zero_shot" else "raw pixels"]) > 0.9
    assert found["chance"] == pytest.approx(1 / CLASSES)
    if name in ("knn", "linear_probe"):
        assert present(found["PCA-50"]) > 0.9
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
    # Images are drawn of the first model alone.
    assert set(report.figures) == {"embedding_map_patterns_trained"}
    assert [(one.data, one.model, one.title) for one in report.examples] == [
        ("patterns", "trained", "text to image"),
        ("patterns", "trained", "image to text"),
        ("patterns", "trained", "nearest training images"),
    ]


def test_raw_pixel_retrieval_equals_a_loop(task: Task) -> None:
    bank = PatternSource(9, seed=3)  # Patterns 0 to 2 twice, 3 to 5 once.
    task = replace(task, bank=bank)
    report = EVALUATORS["retrieval"](CachedModel(PatternModel()), task, ks=(1, 3, 7), examples=0)
    test, train = (task.pixels(CachedModel(PatternModel())).images(source).astype(np.float64) for source in (task.source, bank))
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


def test_images_that_share_a_caption_have_equal_ids() -> None:
    class Shared(PatternSource):
        def __getitem__(self, index: int) -> Sample:
            captions = [("a", "b"), ("c",), ("b",), (), ("c", "d")][index]
            return replace(super().__getitem__(index), captions=captions)

    found = captions_of(Shared(5, seed=0))
    first, second, third, fourth, fifth = found.image_ids
    assert first == third
    assert second == fifth
    assert len({first, second, fourth}) == 3
    assert dict(zip(found.texts, found.text_ids, strict=True)) == {"a": first, "b": first, "c": second, "d": second}


def test_images_whose_captions_differ_in_case_or_white_space_share_them() -> None:
    class Shared(PatternSource):
        def __getitem__(self, index: int) -> Sample:
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
    ("caption", "problem"),
    [(NotText("dict", "{'k': 1}"), "is of type dict, not a text"), (" ", "is empty"), ("\udc80", "is not valid Unicode")],
)
def test_a_caption_that_cannot_be_read_is_named_with_its_sample(caption: str, problem: str) -> None:
    class Damaged(PatternSource):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            return replace(sample, captions=("a", caption)) if index == 4 else sample

    with pytest.raises(UserError, match=f"^row 4: .*{problem}"):
        _ = Task("damaged", Damaged(6, seed=0)).captions
    assert caption in captions_of(Damaged(6, seed=0)).texts


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("retrieval", {"source": PatternSource(6, seed=0, captions=False)}, "patterns: no sample has a caption"),
        ("knn", {"source": PatternSource(6, seed=0, labels=False)}, "patterns: row 0 has no label"),
        ("knn", {"bank": None}, "patterns: this evaluator needs labeled data"),
        ("linear_probe", {"bank": PatternSource(6, seed=0, labels=False)}, "the training data of patterns: row 0 has no label"),
        ("zero_shot", {"source": PatternSource(6, seed=0, labels=False)}, "patterns: has no class names"),
    ],
)
def test_data_that_do_not_fit_are_user_errors(name: str, change: dict[str, Any], message: str, task: Task) -> None:
    with pytest.raises(UserError, match=message):
        EVALUATORS[name](CachedModel(PatternModel()), replace(task, **change))


class Renamed(PatternSource):
    """The same images, whose classes have other numbers or names."""

    def __init__(self, rows: int, seed: int, names: list[str]):
        super().__init__(rows, seed)
        kept = [sample for sample in self._samples if NAMES[sample.label or 0] in names]
        self._samples = [replace(sample, label=names.index(NAMES[sample.label or 0])) for sample in kept]
        self.class_names = names


@pytest.mark.parametrize("name", ["knn", "linear_probe", "few_shot"])
def test_classes_of_the_bank_are_found_by_name(name: str, task: Task) -> None:
    for names in (NAMES[::-1], ["unheard of", *NAMES]):
        renamed = replace(task, bank=Renamed(60, 1, names))
        found = EVALUATORS.build(name, ARGS.get(name, {}), CachedModel(PatternModel()), renamed)
        assert [row.value for row in found.metrics] == [row.value for row in usual(name).metrics]


def test_images_of_classes_that_the_bank_lacks_are_wrong_and_reported(task: Task) -> None:
    fewer = replace(task, bank=Renamed(60, 1, NAMES[:1:-1]))
    for name in ("knn", "linear_probe", "few_label", "zero_shot"):
        report = EVALUATORS.build(name, ARGS.get(name, {}), CachedModel(PatternModel()), fewer)
        assert all(row.value is None or row.value <= 4 / 6 for row in report.metrics) or name == "zero_shot"
        if name != "zero_shot":
            assert any("12 of 36 samples are of classes that the training data lack" in note for note in report.notes)
    assert by_model(EVALUATORS["knn"](CachedModel(PatternModel()), fewer, ks=(1,)), "knn1_top1")["trained"] == 4 / 6


def test_no_class_in_common_is_a_user_error(task: Task) -> None:
    assert task.bank is not None
    task.bank.class_names = [f"other {number}" for number in range(CLASSES)]
    with pytest.raises(UserError, match="different classes"):
        EVALUATORS["knn"](CachedModel(PatternModel()), task)


class Never(PatternModel):
    """Fails where anything is embedded."""

    def encode_image(self, images: Any, **options: Any) -> np.ndarray:
        raise AssertionError("embeds images")

    def encode_text(self, texts: Any, **options: Any) -> np.ndarray:
        raise AssertionError("embeds texts")


@pytest.mark.parametrize("name", EVALUATORS)
def test_every_evaluator_checks_its_needs_before_anything_is_embedded(name: str, task: Task) -> None:
    args = ARGS.get(name, {})
    check(name, args, task, has_text=True)
    bare = PatternSource(1, seed=0, labels=False, captions=False, scores=False)
    if name == "embedding_map":
        with pytest.raises(UserError, match="method"):
            check(name, {"method": "drawing"}, task, has_text=True)
        return
    if name == "geometry":
        assert not EVALUATORS[name](CachedModel(Never()), replace(task, source=bare)).metrics
        return
    with pytest.raises(UserError):
        check(name, args, replace(task, source=bare, bank=bare), has_text=True)
    with pytest.raises(UserError):
        EVALUATORS.build(name, args, CachedModel(Never()), replace(task, source=bare, bank=bare))


@pytest.mark.parametrize("name", ["retrieval", "zero_shot", "zero_shot_reject", "pairs", "sts"])
def test_a_missing_text_tower_is_reported_beforehand(name: str, task: Task) -> None:
    with pytest.raises(NeedsTexts, match="text tower"):
        check(name, ARGS.get(name, {}), task, has_text=False)


@pytest.mark.parametrize("name", ["linear_probe", "few_shot", "few_label"])
def test_a_bank_of_one_class_is_refused_beforehand(name: str, task: Task) -> None:
    with pytest.raises(UserError, match="one class only"):
        check(name, ARGS.get(name, {}), replace(task, bank=PatternSource(1, seed=1)), has_text=True)


@pytest.mark.parametrize("rows", [1, 2, 6, 12])
def test_a_small_bank_is_enough_for_the_usual_arguments(rows: int, task: Task) -> None:
    small = replace(task, bank=PatternSource(rows, seed=1))
    knn = by_model(EVALUATORS["knn"](CachedModel(PatternModel()), small), "knn20_top1")
    assert set(knn.values()) <= {None}
    assert by_model(EVALUATORS["knn"](CachedModel(PatternModel()), small), "knn1_top1")["trained"] is not None
    if rows > 1:
        EVALUATORS["linear_probe"](CachedModel(PatternModel()), small)
        shots = EVALUATORS["few_shot"](CachedModel(PatternModel()), small, seeds=1)
        assert by_model(shots, "few_shot_1_top1")["trained"] is not None
        assert by_model(shots, "few_shot_16_top1")["trained"] is None


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_a_map_of_few_images_is_left_out_with_a_note(rows: int, task: Task) -> None:
    report = run([("embedding_map", {})], [CachedModel(PatternModel())], [replace(task, source=PatternSource(rows, seed=0))])
    assert not report.figures
    assert f"there are {rows}" in report.notes[0]


def test_a_failing_evaluator_does_not_affect_the_others(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(model: CachedModel, task: Task) -> Report:
        return Report(notes=(str(1 / 0),))

    monkeypatch.setitem(EVALUATORS._entries, "broken", broken)
    one_class = replace(task, bank=PatternSource(1, seed=1))
    names: list[tuple[str, dict[str, Any]]] = [("linear_probe", {}), ("broken", {}), ("knn", {"ks": [1]})]
    report = run(names, [CachedModel(PatternModel())], [one_class])
    assert {row.evaluator for row in report.metrics} == {"knn"}
    probe, bug = report.failures
    assert probe.startswith("linear_probe, patterns, trained: linear_probe: the training data of patterns have one class")
    assert bug == "broken, patterns, trained: ZeroDivisionError: division by zero"
    assert "Traceback" in caplog.text
    report.write(tmp_path)
    assert Report.load(tmp_path).failures == report.failures
    for shown in (report.to_text(), report.to_markdown(), report.to_html()):
        assert "NOT EVALUATED: linear_probe" in shown.replace("\\_", "_")
    with pytest.raises(UserError, match="one class"):
        run(names[:2], [CachedModel(PatternModel())], [one_class])


@pytest.mark.parametrize("name", ["retrieval", "zero_shot"])
def test_a_model_without_texts_is_a_user_error(name: str, task: Task) -> None:
    with pytest.raises(UserError, match="text tower"):
        EVALUATORS[name](CachedModel(PatternModel(has_text=False)), task)


def test_arguments_are_checked_by_the_registry() -> None:
    with pytest.raises(UserError, match="did you mean 'temperature'"):
        EVALUATORS.check("knn", {"temprature": 1})


def test_a_metric_names_its_evaluator() -> None:
    """Scores of a run are called by label and metric: no two evaluators have one of a name."""
    seen: dict[str, str] = {}
    for name in EVALUATORS:
        for row in usual(name).metrics:
            assert seen.setdefault(row.metric, name) == name


@pytest.mark.parametrize("kind", ["evaluators", "models", "tasks"])
def test_results_that_would_replace_each_other_are_refused(kind: str, task: Task) -> None:
    given: dict[str, list[Any]] = {"evaluators": [("geometry", {})], "models": [CachedModel(PatternModel())], "tasks": [task]}
    given[kind] *= 2
    with pytest.raises(UserError, match=f"two {kind} are called"):
        run(given["evaluators"], given["models"], given["tasks"])


class LowerCaseModel(PatternModel):
    """A model that takes a name for another one if the text has a capital."""

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 256, progress: bool = False) -> np.ndarray:
        right = super().encode_text([text.lower() for text in texts])
        return np.stack([row if text.islower() else np.roll(row, 1) for row, text in zip(right, texts, strict=True)])


def test_the_worst_template_is_the_one_with_the_lowest_accuracy_alone(task: Task) -> None:
    task, templates = replace(task, baselines=False), ["{}", "A {}"]
    alone = [
        EVALUATORS.build("zero_shot", {"templates": [template]}, CachedModel(LowerCaseModel()), task)["zero_shot_top1"]
        for template in templates
    ]
    report = EVALUATORS.build("zero_shot", {"templates": templates}, CachedModel(LowerCaseModel()), task)
    assert alone[0] == 1 > alone[1]
    assert report["zero_shot_top1_worst_template"] == min(alone)
    assert report.details["per template: zero_shot, patterns, trained"] == dict(zip(templates, alone, strict=True))


@pytest.mark.parametrize("templates", ["{}", {name: [name, f"a {name}"] for name in NAMES}])
def test_one_template_or_sentences_by_class_have_no_worst(task: Task, templates: object) -> None:
    report = EVALUATORS.build("zero_shot", {"templates": templates}, CachedModel(PatternModel()), task)
    assert "zero_shot_top1_worst_template" not in {metric.metric for metric in report.metrics}
