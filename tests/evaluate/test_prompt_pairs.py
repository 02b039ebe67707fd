"""Yes/no questions: scores against scikit-learn, thresholds against a loop, and the two parts of the images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score, roc_curve

from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS, CachedModel, Report, Task, check, decisions, prompt_pairs
from mmcl.evaluate.measures.detection import Clusters, Detection, auroc, average_precision, f1
from mmcl.evaluate.measures.thresholds import Criterion, CriterionName, calibration_part
from mmcl.evaluate.reporting.metric import bare_name, lower_is_better
from mmcl.testing.patterns import NAMES, PatternModel, PatternSource
from tests.evaluate.toys import ARGS, bounds, unit
from tests.narrow import present

ROWS = 400
CRITERIA: list[tuple[CriterionName, float | None]] = [
    ("f1", None),
    ("youden", None),
    ("recall", 0.9),
    ("precision", 0.7),
    ("specificity", 0.8),
]


def scored(decimals: int = 8, rows: int = ROWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores, with more ties the fewer decimals, and answers."""
    rng = np.random.default_rng(seed)
    target = rng.random(rows) < 0.3
    return (target + rng.normal(size=rows)).round(decimals), target


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_scores_equal_scikit_learn_ties_and_unknown_answers_included(decimals: int) -> None:
    image, positive, negative = unit((60, 3), 0).round(decimals), unit((4, 3), 1), unit((4, 3), 2)
    image[np.linalg.norm(image, axis=1) == 0] = 1
    target = np.random.default_rng(0).choice([-1, 0, 1], (60, 4), p=[0.2, 0.5, 0.3])
    report = prompt_pairs(image, target, positive, negative, class_names=list("abcd"), baselines=True)
    found = {(row.metric, row.model): row for row in report.metrics}
    own = image / np.linalg.norm(image, axis=1, keepdims=True)
    cosine = [(own.astype(np.float32).astype(np.float64) @ side.astype(np.float64).T) for side in (positive, negative)]
    score = (cosine[0] - cosine[1]).astype(np.float32)
    for metric, expected in {"pair_auroc": roc_auc_score, "pair_AP": average_precision_score}.items():
        values = []
        for number, name in enumerate("abcd"):
            known = target[:, number] >= 0
            values.append(expected(target[known, number], score[known, number]))
            row = found[f"{metric}[{name}]", "trained"]
            assert row.value == pytest.approx(values[-1])
            assert row.n == known.sum()
            share = (target[known, number] == 1).mean()
            assert found[f"{metric}[{name}]", "chance"].value == pytest.approx(share if metric == "pair_AP" else 0.5)
        assert found[metric, "trained"].value == pytest.approx(np.mean(values))


def test_the_temperature_of_the_softmax_changes_no_ranking() -> None:
    image, positive, negative = unit((90, 6), 0), unit((1, 6), 1), unit((1, 6), 2)
    target = (np.random.default_rng(0).random((90, 1)) < 0.4).astype(int)
    found = prompt_pairs(image, target, positive, negative)["pair_auroc"]
    for scale in (1.0, 20.0):  # that of CheXzero's code, and that of a model
        logits = scale * np.stack(
            [(image.astype(np.float64) @ side.T.astype(np.float64))[:, 0] for side in (positive, negative)]
        )
        assert found == pytest.approx(roc_auc_score(target, np.exp(logits[0]) / np.exp(logits).sum(0)))


@pytest.mark.parametrize("decimals", [0, 8])
@pytest.mark.parametrize("statistic", [auroc, average_precision, f1])
def test_influences_are_derivatives_by_the_weights_of_rows(statistic: Any, decimals: int) -> None:
    score, target = scored(decimals, 40)
    said = score > 0.6
    weighted = {auroc: roc_auc_score, average_precision: average_precision_score, f1: f1_score}[statistic]
    given = said if statistic is f1 else score
    first, second = (target, given) if statistic is f1 else (target, score)
    rows = Clusters.of(None, 40)
    found: Detection = statistic(given, target, rows)
    value = weighted(first, second)
    assert found.value == pytest.approx(value)
    part = rows.without_bias(np.ones(40), said.astype(float) + target if statistic is f1 else target)
    if statistic is auroc:
        part = np.where(target, part, rows.without_bias(np.ones(40), ~target))
    for row in range(40):
        weight = np.ones(40)
        weight[row] += 1e-6
        slope = (weighted(first, second, sample_weight=weight) - value) / 1e-6
        assert found.influence_N[row] / part[row] == pytest.approx(slope, abs=1e-5)


@pytest.mark.parametrize("statistic", [auroc, average_precision])
def test_clusters_of_equal_rows_are_as_many_rows(statistic: Any) -> None:
    score, target = scored(rows=150)
    rows, several = Clusters.of(None, 150), Clusters.of(np.arange(150).repeat(4), 600)
    one, four = statistic(score, target, rows), statistic(score.repeat(4), target.repeat(4), several)
    if statistic is auroc:  # average precision counts the copies of a positive, too
        assert four.value == pytest.approx(one.value)
        assert bounds(four.estimate(several)) == pytest.approx(bounds(one.estimate(rows)), abs=1e-9)
    assert four.draws == pytest.approx(one.draws)
    free = Clusters.of(None, 600)
    low, high = bounds(statistic(score.repeat(4), target.repeat(4), free).estimate(free))
    assert -np.subtract(*bounds(four.estimate(several))) > 1.6 * (high - low)


@pytest.mark.parametrize("decimals", [0, 1, 8])
@pytest.mark.parametrize(("name", "floor"), CRITERIA)
def test_a_threshold_is_the_best_of_all(name: CriterionName, floor: float | None, decimals: int) -> None:
    score, target = scored(decimals)
    found = present(Criterion(name, floor).fit(score, target))
    precision, recall, edges = precision_recall_curve(target, score)
    fpr, tpr, cuts = roc_curve(target, score, drop_intermediate=False)
    said = score >= found
    own = {"recall": said[target].mean(), "precision": target[said].mean(), "specificity": (~said[~target]).mean()}
    if name == "f1":
        best = max(2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True) if p + r)
        assert f1_score(target, said) == pytest.approx(best)
    elif name == "youden":
        assert own["recall"] + own["specificity"] - 1 == pytest.approx((tpr - fpr).max())
    elif name == "recall":
        assert own["recall"] >= 0.9
        assert own["specificity"] == pytest.approx(1 - fpr[tpr >= 0.9].min())
    else:
        assert floor is not None
        assert own[name] >= floor
        kept = recall[:-1][precision[:-1] >= floor] if name == "precision" else tpr[1 - fpr >= floor]
        assert own["recall"] == pytest.approx(kept.max())
    assert not np.isin(found, score).any() or found == score.min(), "rounding of a score decides nothing"
    assert len(edges) == len(np.unique(score)) >= len(cuts) - 1


def test_equal_scores_and_a_floor_that_nothing_keeps_have_no_threshold() -> None:
    score, target = scored()
    assert Criterion("f1").fit(np.zeros(ROWS), target) is None
    assert Criterion("precision", 1.0).fit(np.where(target, 0.0, score), target) is None


def decided(score: np.ndarray, target: np.ndarray, ids: Any = None, **options: Any) -> Report:
    given = np.arange(len(score)) if ids is None and "clusters" not in options else ids
    return decisions(score, target, ids=given, class_names=list("ab"), baselines=True, **options)


def several(rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    columns = [scored(2, rows, seed) for seed in (0, 1)]
    return np.stack([score for score, _ in columns], 1), np.stack([target for _, target in columns], 1).astype(int)


def table(report: Report) -> dict[str, list[Any]]:
    [found] = report.details.values()
    return dict(found)


def test_decisions_are_of_the_part_that_thresholds_were_not_fitted_on() -> None:
    score, target = several()
    ids = np.arange(ROWS) + 77
    part = calibration_part(ids, ROWS, 0.5)
    report = decided(score, target, ids)
    rows = {(row.metric, row.model): row.value for row in report.metrics}
    means = []
    for number, name in enumerate("ab"):
        threshold = present(Criterion("f1").fit(score[part, number], target[part, number] == 1))
        said, answer = score[~part, number] >= threshold, target[~part, number]
        assert table(report)["threshold"][number] == threshold
        assert table(report)["fitted_on"][number] == part.sum()
        counts = [table(report)[key][number] for key in ("true_positives", "false_positives", "false_negatives")]
        assert counts == [(said & (answer == 1)).sum(), (said & (answer == 0)).sum(), (~said & (answer == 1)).sum()]
        means.append(f1_score(answer, said))
        assert rows[f"decision_f1[{name}]", "trained"] == pytest.approx(means[-1])
        assert rows[f"decision_recall[{name}]", "trained"] == pytest.approx(said[answer == 1].mean())
        assert rows[f"decision_specificity[{name}]", "trained"] == pytest.approx((~said)[answer == 0].mean())
        assert rows[f"decision_precision[{name}]", "always yes"] == pytest.approx(answer.mean())
        assert rows[f"decision_f1[{name}]", "always yes"] == pytest.approx(f1_score(answer, np.ones_like(answer)))
    assert rows["decision_f1", "trained"] == pytest.approx(np.mean(means))
    assert all(bounds(row)[0] <= present(row.value) <= bounds(row)[1] for row in report.metrics)


def test_a_threshold_does_not_depend_on_the_other_part() -> None:
    score, target = several()
    part = calibration_part(np.arange(ROWS), ROWS, 0.5)
    other, flipped = score.copy(), target.copy()
    other[~part] += 9 * np.random.default_rng(5).normal(size=other[~part].shape)
    flipped[~part] = 1 - flipped[~part]
    assert table(decided(score, target))["threshold"] == table(decided(other, flipped))["threshold"]
    fewer = np.flatnonzero(part | (np.arange(ROWS) < 200))  # rows that come or go move no other row
    assert table(decided(score[fewer], target[fewer], fewer))["threshold"] == table(decided(score, target))["threshold"]


@pytest.mark.parametrize("as_text", [False, True])
def test_the_order_of_the_rows_changes_nothing(as_text: bool) -> None:
    score, target = several()
    order = np.random.default_rng(3).permutation(ROWS)
    group = np.arange(ROWS) // 4
    names: Any = [f"patient {one}" for one in group] if as_text else group
    moved = [names[row] for row in order] if as_text else group[order]
    ours, theirs = decided(score, target, clusters=names), decided(score[order], target[order], clusters=moved)
    assert table(ours) == table(theirs)
    for one, other in zip(ours.metrics, theirs.metrics, strict=True):
        numbers = [[row.value, row.low, row.high] for row in (one, other)]
        assert np.array(numbers[0], float) == pytest.approx(np.array(numbers[1], float), rel=1e-9, nan_ok=True)


def test_groups_stay_whole_and_intervals_are_by_group() -> None:
    group = np.random.default_rng(0).integers(60, size=ROWS)
    part = calibration_part(group, ROWS, 0.5)
    assert not set(group[part]) & set(group[~part])
    assert 0.3 < part.mean() < 0.7
    score, target = several()
    found = decided(score, target, clusters=group)
    assert f"decisions: intervals by group ({len(set(group))} groups)." in found.notes
    assert [row.value for row in found.metrics] == [row.value for row in decided(score, target, group).metrics]


def test_too_few_positives_give_no_threshold_and_the_report_says_so() -> None:
    score, target = several()
    target[np.flatnonzero(target[:, 1])[15:], 1] = 0
    report = decided(score, target)
    assert table(report)["threshold"][1] is None
    assert "decisions: no threshold for b: fewer than 10 images with or without it in a part." in report.notes
    assert not any(row.metric.endswith("[b]") for row in report.metrics)
    nothing = decided(score[:30], target[:30])
    assert nothing.metrics == ()
    assert len(nothing.notes) == 1
    collapsed = decided(np.zeros_like(score), several()[1])
    assert collapsed.notes == ("decisions: no threshold for a and b: all scores are equal.",)


class Crowd(PatternSource):
    """Patterns with two questions about each image and groups of unequal sizes."""

    def __init__(self, rows: int = 600):
        super().__init__(rows, 0, captions=False)
        number = np.arange(rows) % len(NAMES)
        self.groups = np.arange(rows) // 7
        self.targets = np.stack([number == 1, (number == 2) | (number == 1)], axis=1).astype(np.int8)
        self.targets[::9] = -1
        self.target_names = NAMES[1:3]


def test_the_evaluator_asks_the_questions_of_the_source_and_says_what_was_fitted_on_what() -> None:
    args = {"negative": {name: [NAMES[5]] for name in NAMES[1:3]}}
    source = Crowd()
    report = EVALUATORS.build("prompt_pairs", args, CachedModel(PatternModel()), Task("crowd", source))
    found = {(row.metric, row.model): row.value for row in report.metrics}
    assert found["pair_auroc[pattern 1]", "trained"] == 1
    assert 0.5 < present(found["pair_AP[pattern 2]", "trained"]) < 1
    assert found["decision_f1", "trained"] > present(found["decision_f1", "always yes"])
    part = calibration_part(present(source.groups), len(source), 0.5)
    about = f"prompt_pairs, crowd: thresholds have the largest F1 on {part.sum()} images, chosen by a hash"
    assert any(note.startswith(about) for note in report.notes)
    assert "prompt_pairs, crowd: intervals by group (86 groups)." in report.notes
    text = report.to_text(brief=True, width=80)
    assert "pair_auroc" in text
    assert "[pattern 1]" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert any(line.startswith("prompt_pairs, crowd: an image with the class scores above") for line in report.verdict())
    alone = EVALUATORS.build("prompt_pairs", {**args, "criterion": None}, CachedModel(PatternModel()), Task("crowd", source))
    assert {bare_name(row.metric) for row in alone.metrics} == {"pair_auroc", "pair_AP"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"negative": {"pattern 1": ["no pattern"]}}, "the templates have no sentences for class 'pattern 2'"),
        ({"negative": {"pattern 7": ["a"]}}, "templates: unknown class 'pattern 7'; did you mean"),
        ({"classes": ["patern 1"]}, "unknown class 'patern 1'; did you mean 'pattern 1'"),
        ({"classes": []}, r"classes must be a list of one or more names, not \[\]"),
        ({"negative": "{}"}, "the prompts with and without 'pattern 1' are the same"),
        ({"criterion": "f2"}, "unknown criterion 'f2'; did you mean 'f1'"),
        ({"criterion": "recall"}, "criterion recall needs a floor above 0 and at most 1"),
        ({"criterion": "recall", "floor": 95}, "needs a floor above 0 and at most 1, such as floor: 0.9, not 95"),
        ({"floor": 0.9}, "criterion f1 has no floor"),
        ({"criterion": None, "floor": 0.9}, "floor needs a criterion"),
        ({"calibration": 1}, "calibration must be a share above 0 and below 1, not 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_embedded(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check("prompt_pairs", args, Task("crowd", Crowd()), has_text=True)


def test_sources_without_questions_or_positives_are_refused() -> None:
    args = ARGS["prompt_pairs"]
    with pytest.raises(UserError, match="has neither target_columns nor class names"):
        check("prompt_pairs", args, Task("bare", PatternSource(9, 0, labels=False)), has_text=True)
    nobody = Crowd()
    nobody.targets = np.zeros_like(present(nobody.targets))
    with pytest.raises(UserError, match="crowd: no class has both images with it and images without it"):
        check("prompt_pairs", {}, Task("crowd", nobody), has_text=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": np.full((ROWS, 2), np.nan)}, "score_NC has 400 rows that are not finite"),
        ({"target": np.full((ROWS, 2), 2)}, "target_NC must be 400 x 2 of 1, 0 and -1"),
        ({"target": np.zeros((ROWS, 2), int)}, "target_NC: no class has both images with it and images without it"),
        ({"ids": np.arange(ROWS) + 0.5}, "ids must be 400 integers or texts"),
        ({"ids": np.arange(3)}, r"ids must be 400 integers or texts, one for each row, not int64 \[3\]"),
    ],
)
def test_bad_arrays_are_refused(change: dict[str, Any], message: str) -> None:
    score, target = several()
    given = {"score": score, "target": target, "ids": np.arange(ROWS)} | change
    with pytest.raises(UserError, match=message):
        decided(given["score"], given["target"], given["ids"])
    with pytest.raises(UserError, match="give ids or clusters"):
        decisions(score, target)


def test_the_name_of_a_class_is_not_that_of_a_metric() -> None:
    assert not lower_is_better("held_out/decision_f1[weight_loss/b]")
    assert lower_is_better("held_out/text_to_image_mean_rank")
    assert bare_name("decision_f1[a/b [c]]") == bare_name("x/y/decision_f1[d]") == "decision_f1"


def test_a_model_without_a_temperature_is_evaluated_too() -> None:
    model = PatternModel()
    model.logit_scale = None  # type: ignore[assignment]
    report = EVALUATORS.build(
        "prompt_pairs", ARGS["prompt_pairs"], CachedModel(model), replace(Task("p", PatternSource(36, 0)))
    )
    assert report.metrics
