"""Paired comparison of yes/no questions: of AUROC, average precision and decisions, which are no means over rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from mmcl.evaluate import CachedModel, Report, Task, compare, decisions, prompt_pairs, run
from mmcl.evaluate.measures import detection
from mmcl.evaluate.measures.detection import Clusters
from mmcl.evaluate.measures.outcomes import Outcomes
from mmcl.evaluate.measures.paired_tests import paired_difference, paired_test
from mmcl.evaluate.measures.thresholds import calibration_part
from mmcl.evaluate.reporting.metric import ALWAYS_YES
from mmcl.testing.patterns import PatternModel, PatternSource
from tests.evaluate.toys import bounds
from tests.narrow import present

SKLEARN = {"auroc": roc_auc_score, "average_precision": average_precision_score, "f1": f1_score}
IMAGES, CLASSES = 600, 3
IDS = [f"image {n}" for n in range(IMAGES)]


def two_models(rows: int, gain: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answers, and the scores of two models that find the same images hard."""
    rng = np.random.default_rng(seed)
    target, shared = rng.random(rows) < 0.3, rng.normal(size=rows)
    first, second = (apart * target + shared + 0.5 * rng.normal(size=rows) for apart in (1.0, 1.0 + gain))
    return target, first, second


def outcomes(name: str, score: np.ndarray, target: np.ndarray, clusters: np.ndarray | None = None) -> Outcomes:
    given = score > 0.8 if name == "f1" else score
    rows = Clusters.of(clusters, len(target))
    one = present(getattr(detection, name)(given, target, rows))
    return present(detection.comparable(one.estimate(rows), one, target.astype(np.int64), rows).outcomes)


@pytest.mark.parametrize("name", SKLEARN)
def test_the_interval_is_that_of_a_slow_bootstrap(name: str) -> None:
    target, *scores = two_models(1500)
    found = paired_difference(*(outcomes(name, score, target) for score in scores))
    given = [score > 0.8 if name == "f1" else score for score in scores]
    first, second = (SKLEARN[name](target, score) for score in given)
    assert found.value == pytest.approx(second - first)
    rng, drawn = np.random.default_rng(1), []
    for _ in range(1000):
        rows = rng.integers(len(target), size=len(target))
        first, second = (SKLEARN[name](target[rows], score[rows]) for score in given)
        drawn.append(second - first)
    low, high = bounds(found)
    assert (low, high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.1 * (high - low))


def test_the_variance_of_an_auroc_is_delongs() -> None:
    """By the covariances of the structural components (DeLong et al., 1988), in loops."""
    target, *scores = two_models(120)
    m, n = target.sum(), (~target).sum()
    over, under = np.zeros((2, m)), np.zeros((2, n))
    for model, score in enumerate(scores):
        for i, positive in enumerate(score[target]):
            for j, negative in enumerate(score[~target]):
                won = float(positive > negative) + 0.5 * float(positive == negative)
                over[model, i] += won / n
                under[model, j] += won / m
    (aa, ab), (_, bb) = np.cov(over) / m + np.cov(under) / n
    first, second = (present(outcomes("auroc", score, target).influence) for score in scores)
    change = second.row_N.astype(np.float64) - first.row_N
    assert (change**2).sum() == pytest.approx(aa + bb - 2 * ab, rel=1e-5)


@pytest.mark.parametrize("name", SKLEARN)
def test_pairing_is_narrower_than_two_intervals_and_agrees_with_p(name: str) -> None:
    for gain in (0.0, 0.1, 0.2, 0.4):
        target, *scores = two_models(800, gain, seed=3)
        pair = [outcomes(name, score, target) for score in scores]
        found, p = paired_test(pair[0], pair[1])
        low, high = bounds(found)
        assert (low > 0 or high < 0) == (p < 0.05)
        widths = [2 * 1.96 * np.sqrt((present(one.influence).row_N ** 2).sum()) for one in pair]
        assert high - low < 0.9 * np.hypot(*widths)
        back = paired_difference(pair[1], pair[0])
        assert bounds(back) == pytest.approx((-high, -low))


def test_rows_of_one_cluster_count_once() -> None:
    target, *scores = two_models(200)
    one = paired_difference(*(outcomes("auroc", score, target) for score in scores))
    groups = np.arange(200).repeat(4)
    four = paired_difference(*(outcomes("auroc", score.repeat(4), target.repeat(4), groups) for score in scores))
    assert bounds(four) == pytest.approx(bounds(one), abs=1e-6)


def asked(classes: int = CLASSES, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    pairs = [two_models(IMAGES, seed=seed + number) for number in range(classes)]
    target = np.stack([one[0] for one in pairs], axis=1).astype(int)
    target[::7, 0] = -1
    return target, [np.stack([one[model] for one in pairs], axis=1) for model in (1, 2)]


def decided(score: np.ndarray, target: np.ndarray, **options: object) -> Report:
    return decisions(score, target, ids=IDS, **options)  # type: ignore[arg-type]


def test_decisions_of_every_class_and_their_means_are_compared() -> None:
    target, scores = asked()
    a, b = (decided(score, target) for score in scores)
    found = compare(a, b)
    metrics = [f"decision_{name}" for name in ("precision", "recall", "specificity", "f1")]
    assert [one.metric for one in found.differences] == [
        *metrics,
        *(f"{metric}[{number}]" for number in range(CLASSES) for metric in metrics),
    ]
    for one in found.differences:
        assert one.difference == pytest.approx(present(b[one.metric]) - present(a[one.metric]), abs=1e-9)
    assert not any("Not compared" in note for note in found.notes)


def test_images_that_changed_are_those_whose_answer_did() -> None:
    """Precision can only lose by a wrong yes, recall by a missed one; the images thresholds were fitted on do not count."""
    target, scores = asked(1)
    target[target < 0] = 0
    a, b = (decided(score, target) for score in scores)
    said = []
    for report, score in zip((a, b), scores, strict=True):
        (columns,) = report.details.values()
        said.append(score[:, 0] >= columns["threshold"][0])
    rest, yes = ~calibration_part(IDS, IMAGES, 0.5), target[:, 0] == 1
    found = {one.metric: one for one in compare(a, b).differences}
    wrong = {
        "decision_recall": [yes & ~own for own in said],
        "decision_specificity": [~yes & own for own in said],
        "decision_precision": [~yes & own for own in said],
        "decision_f1": [yes != own for own in said],
    }
    for metric, (before, after) in wrong.items():
        assert {int(row) for row in found[metric].won} == set(np.flatnonzero(before & ~after & rest))
        assert {int(row) for row in found[metric].lost} == set(np.flatnonzero(after & ~before & rest))


def test_a_class_without_a_threshold_in_one_model_leaves_the_mean_out() -> None:
    target, (first, second) = asked()
    constant = second.copy()
    constant[:, 2] = 0.0
    found = compare(decided(first, target), decided(constant, target), names=("runs/a", "runs/b"))
    metrics = [one.metric for one in found.differences]
    assert "decision_f1[0]" in metrics
    assert "decision_f1" not in metrics
    (note,) = (note for note in found.notes if "other classes or images" in note)
    assert "decision_f1" in note
    assert "runs/b than in runs/a" in note


def other_answers(target: np.ndarray) -> np.ndarray:
    changed, row = target.copy(), np.flatnonzero(~calibration_part(IDS, IMAGES, 0.5))[0]
    changed[row, 1] = 1 - changed[row, 1]
    return changed


@pytest.mark.parametrize(
    "change",
    [lambda target: (other_answers(target), {}), lambda target: (target, {"calibration": 0.4})],
    ids=["other answers", "another part"],
)
def test_other_questions_are_not_compared(change: Callable[[np.ndarray], tuple[np.ndarray, dict[str, object]]]) -> None:
    target, (first, second) = asked()
    changed, options = change(target)
    found = compare(decided(first, target), decided(second, changed, **options))
    assert "decision_f1" not in [one.metric for one in found.differences]


def test_a_column_is_compared_with_its_baseline() -> None:
    target, (first, _) = asked(1)
    report = decided(first, target, baselines=True)
    found = compare(report, report, names=("always yes", "model"), models=(ALWAYS_YES, "trained"))
    assert found["decision_precision"].difference > 0
    assert found["decision_specificity"].difference > 0


def test_many_classes_are_compared_by_their_mean_alone() -> None:
    classes = detection.MOST_COMPARED + 1
    target, scores = asked(classes)
    texts = np.eye(classes)
    reports = [prompt_pairs(score, target, texts, -texts) for score in scores]
    assert [one.metric for one in compare(*reports).differences] == ["pair_auroc", "pair_AP"]
    few = [prompt_pairs(score, target[:, :-1], texts[:-1], -texts[:-1]) for score in scores]
    assert len(compare(*few).differences) == 2 * classes


def test_a_report_of_prompt_pairs_is_compared_from_disk_with_names_of_images(tmp_path: Path) -> None:
    class Mistaken(PatternModel):
        def encode_text(self, texts, **options):  # type: ignore[no-untyped-def]
            rows = super().encode_text(texts, **options)
            return np.concatenate([np.roll(rows[:2], 1, axis=0), rows[2:]])

    negative = {f"pattern {n}": [f"pattern {(n + 1) % 6}"] for n in range(6)}
    for name, model in (("a", PatternModel()), ("b", Mistaken())):
        task = Task("patterns", PatternSource(240, seed=0))
        run([("prompt_pairs", {"negative": negative})], [CachedModel(model)], [task]).write(tmp_path / name)
    found = compare(Report.load(tmp_path / "a"), Report.load(tmp_path / "b"))
    overall = found["pair_auroc"]
    assert overall.n == 240
    assert all("pattern" in name for name in overall.won + overall.lost)
    assert overall.won + overall.lost
