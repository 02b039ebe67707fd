"""Rows that were drawn together, such as the images of a patient, in the intervals of the evaluators."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mmcl import evaluate
from mmcl.evaluate import EVALUATORS, CachedModel, Report, Task
from mmcl.evaluate.evaluators.zero_shot import macro_f1
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.measures.paired_tests import paired_test
from mmcl.testing.patterns import CLASSES, PatternModel, PatternSource
from tests.evaluate.toys import ARGS, bounds, unit
from tests.narrow import present

ROWS, GROUPS = 240, 30
OVER_RUNS = ("few_shot", "few_label")
"""Evaluators whose intervals are over training runs, not over rows."""


def grouped() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of images and classes, labels, and groups of unequal sizes whose images are alike."""
    rng = np.random.default_rng(0)
    classes, labels = unit((4, 8), 1), rng.integers(4, size=ROWS)
    groups = np.sort(rng.integers(GROUPS, size=ROWS))
    images = classes[labels] + 1.2 * unit((GROUPS, 8), 2)[groups] + 0.6 * unit((ROWS, 8), 3)
    return images.astype(np.float32), classes, labels, groups


def cameron_and_miller(outcomes: np.ndarray, groups: np.ndarray) -> float:
    """Standard error of a mean ("A practitioner's guide to cluster-robust inference", 2015, equation 11), in a slow loop."""
    value, total, names = outcomes.mean(), 0.0, np.unique(groups)
    for name in names:
        score = 0.0
        for row in np.flatnonzero(groups == name):
            score += float(outcomes[row]) - value
        total += score * score
    n, g = len(outcomes), len(names)
    correction = g / (g - 1) * (n - 1) / (n - 1)
    return float(np.sqrt(correction * total)) / n


def bootstrap(statistic: Callable[[np.ndarray], float], groups: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """Percentiles of a statistic of the rows of groups that are drawn with replacement."""
    rng, rows = np.random.default_rng(0), [np.flatnonzero(groups == name) for name in np.unique(groups)]
    found = [statistic(np.concatenate([rows[n] for n in rng.integers(len(rows), size=len(rows))])) for _ in range(draws)]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def zero_shot(clusters: np.ndarray | Sequence[str] | None) -> Report:
    images, classes, labels, _ = grouped()
    return evaluate.zero_shot(images, labels, classes, top_k=[1], logit_scale=10.0, clusters=clusters)


def knn(clusters: np.ndarray | Sequence[str] | None) -> Report:
    images, classes, labels, _ = grouped()
    return evaluate.knn(classes, np.arange(4), images, labels, ks=[1], clusters=clusters)


def linear_probe(clusters: np.ndarray | Sequence[str] | None) -> Report:
    images, classes, labels, _ = grouped()
    return evaluate.linear_probe(classes.repeat(3, axis=0), np.arange(4).repeat(3), images, labels, clusters=clusters)


def retrieval(clusters: np.ndarray | Sequence[str] | None) -> Report:
    images, classes, labels, _ = grouped()
    ids = np.arange(ROWS)
    return evaluate.retrieval(images, classes[labels], image_ids=ids, text_image_ids=ids, ties="index", clusters=clusters)


BY_ROWS = (zero_shot, knn, linear_probe, retrieval)


@pytest.mark.parametrize("evaluator", BY_ROWS)
def test_the_mean_of_rows_in_groups_has_the_cluster_robust_interval(evaluator: Callable[..., Report]) -> None:
    groups = grouped()[-1]
    plain, found = evaluator(None), evaluator(groups)
    values = [[(row.metric, row.value, row.n) for row in report.metrics] for report in (plain, found)]
    assert values[0] == values[1]
    with_one = {row.metric: row for row in found.metrics if row.outcomes is not None and row.low is not None}
    means = {name: row for name, row in with_one.items() if present(row.outcomes).statistic == "mean"}
    assert means
    for name, row in means.items():
        outcomes = present(row.outcomes).values.astype(np.float64)
        low, high = bounds(row)
        half = 1.96 * cameron_and_miller(outcomes, groups)
        size = np.ptp(present(present(row.outcomes).within))
        if half > 0.05 * size:  # else the unseen decides
            assert (high - low) / 2 == pytest.approx(half, rel=0.25), name
        if half > 0.05 * size and evaluator is not retrieval:  # whose rare hits are skewed
            assert (low, high) == pytest.approx(bootstrap_of_mean(outcomes, groups), abs=0.5 * half), name


def bootstrap_of_mean(outcomes: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    return bootstrap(lambda rows: float(outcomes[rows].mean()), groups)


@pytest.mark.parametrize("evaluator", BY_ROWS)
def test_names_of_groups_do_not_matter_and_groups_of_one_row_are_none(evaluator: Callable[..., Report]) -> None:
    groups = grouped()[-1]
    names = [f"patient {group}" for group in groups]
    for one, other in ((names, groups), (np.arange(ROWS)[::-1], None)):
        found, expected = (
            [number for row in evaluator(by).metrics for number in (row.value, row.low, row.high)] for by in (one, other)
        )
        assert np.array(found, float) == pytest.approx(np.array(expected, float), rel=1e-9, nan_ok=True)


def test_groups_that_are_alike_widen_the_intervals() -> None:
    groups = grouped()[-1]
    for evaluator in BY_ROWS[:3]:
        plain, found = (evaluator(own).metrics[0] for own in (None, groups))
        assert np.subtract(*bounds(found)[::-1]) > 1.3 * np.subtract(*bounds(plain)[::-1])


def test_the_report_says_what_the_intervals_are_over() -> None:
    groups = grouped()[-1]
    for evaluator in BY_ROWS:
        assert evaluator(groups).notes == (f"{evaluator.__name__}: intervals by group (30 groups).",)
        assert evaluator(None).notes == ()
        few = evaluator(groups // 4)
        assert few.notes == (f"{evaluator.__name__}: no interval by group (8 groups, worth 7.8 of equal size); it needs 10.",)
        assert all(row.low is None for row in few.metrics)


def test_captions_of_an_image_are_one_draw_and_those_of_a_group() -> None:
    image, text = unit((40, 8), 0), unit((40, 8), 0).repeat(5, axis=0) + unit((200, 8), 1)
    ids = np.arange(40)

    def by(clusters: np.ndarray | None) -> Report:
        return evaluate.retrieval(image, text, image_ids=ids, text_image_ids=ids.repeat(5), ks=[1], clusters=clusters)

    assert by(None).notes == ("retrieval: intervals by image (40 images).",)
    outcomes = present(by(ids // 2).metrics[0].outcomes)
    assert present(outcomes.clusters).tolist() == (ids // 2).repeat(5).tolist()
    assert by(ids // 2).notes == ("retrieval: intervals by group (20 groups).",)


def test_groups_that_share_a_caption_are_one() -> None:
    image, ids = unit((40, 8), 0), np.r_[np.arange(39), 0]
    found = evaluate.retrieval(image, image[:39], image_ids=ids, text_image_ids=np.arange(39), clusters=np.arange(40) // 2)
    assert found.notes == ("retrieval: intervals by group (19 groups; those that share a caption or an id count as one).",)


@pytest.mark.parametrize("kind", ["a class for each group", "all classes in each group"])
def test_the_mean_over_classes_has_the_interval_of_the_bootstrap_of_groups(kind: str) -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(90), rng.integers(2, 9, 90))
    labels = groups % 3 if kind.startswith("a class") else rng.integers(3, size=len(groups))
    right = rng.random(len(groups)) < (0.5 + 0.4 * rng.random(90))[groups]
    predicted = np.where(right, labels, (labels + 1) % 3)

    def recall(rows: np.ndarray) -> float:
        return float(np.mean([right[rows][labels[rows] == label].mean() for label in range(3)]))

    def f1(rows: np.ndarray) -> float:
        return present(macro_f1(labels[rows], predicted[rows], 3).value)

    found = {
        recall: statistics.class_mean(right.astype(float), labels, clusters=groups),
        f1: macro_f1(labels, predicted, 3, groups),
    }
    for statistic, estimate in found.items():
        low, high = bounds(estimate)
        assert estimate.value == statistic(np.arange(len(groups)))
        assert (low, high) == pytest.approx(bootstrap(statistic, groups, 1000), abs=0.15 * (high - low))


def test_the_jackknife_over_classes_leaves_out_one_group_at_a_time() -> None:
    rng = np.random.default_rng(2)
    groups, labels = np.repeat(np.arange(40), rng.integers(2, 9, 40)), None
    labels = rng.integers(3, size=len(groups))
    outcomes = rng.random(len(groups))

    def value(rows: np.ndarray) -> float:
        return float(np.mean([outcomes[rows & (labels == label)].mean() for label in range(3)]))

    every = np.ones(len(groups), bool)
    changes = [value(every & (groups != name)) - value(every) for name in range(40)]
    variance, _ = present(statistics._clustered_class_spread(outcomes, labels, groups))
    assert variance == pytest.approx(39 / 40 * np.square(changes).sum())


def test_a_class_of_one_group_has_no_interval() -> None:
    labels, groups = np.repeat([0, 1], [60, 3]), np.r_[np.arange(60) // 2, [99] * 3]
    right = np.arange(63) % 3 > 0
    assert statistics.class_mean(right.astype(float), labels, clusters=groups).low is None
    assert macro_f1(labels, labels, 2, groups).low is None


def test_a_comparison_is_by_group_too() -> None:
    groups = grouped()[-1]
    for name in ("zero_shot_top1", "zero_shot_mean_class_recall"):
        one, other = (
            next(present(row.outcomes) for row in zero_shot(own).metrics if row.metric == name) for own in (groups, groups)
        )
        found, p = paired_test(one, other)
        assert (found.value, p) == (0, 1)
    by_groups, by_rows = (present(zero_shot(own).metrics[0].outcomes) for own in (groups, None))
    with pytest.raises(ValueError, match="clusters"):
        paired_test(by_groups, by_rows)


@pytest.mark.parametrize("name", EVALUATORS)
def test_no_evaluator_takes_the_images_of_a_group_as_independent(name: str) -> None:
    source, bank = PatternSource(36, seed=0), PatternSource(60, seed=1)
    source.groups, bank.groups = np.arange(36) // 3, np.arange(100, 160)
    report: Report = EVALUATORS.build(name, ARGS.get(name, {}), CachedModel(PatternModel()), Task("patterns", source, bank))
    for row in report.metrics:
        has_clusters = row.outcomes is not None and row.outcomes.clusters is not None
        assert row.low is None or has_clusters or name in OVER_RUNS, row.metric
        if has_clusters and name != "retrieval":  # whose captions link groups
            assert len(np.unique(present(present(row.outcomes).clusters))) == 12, row.metric


def test_groups_in_training_and_test_data_are_told() -> None:
    source, bank = PatternSource(36, seed=0), PatternSource(60, seed=1)
    source.groups, bank.groups = np.arange(36) // CLASSES, np.arange(60) // 30
    report: Report = EVALUATORS["knn"](CachedModel(PatternModel()), Task("patterns", source, bank), examples=0)
    assert "knn, patterns: 2 of 6 groups are in the training data too: the results do not hold for new groups." in report.notes
