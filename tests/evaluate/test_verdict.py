"""The verdict in words agrees with the numbers: which side is better, by how much, and what is not significant."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.evaluate import EVALUATORS, CachedModel, Metric, Task, run
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.measures.paired_tests import paired_test
from mmcl.evaluate.reporting.contrasts import contrast
from mmcl.evaluate.reporting.metric import BASELINES, lower_is_better, metric_rows
from mmcl.evaluate.reporting.phrases import has_phrase
from mmcl.evaluate.reporting.verdict import FLAG, verdict
from mmcl.testing.patterns import PatternModel, PatternSource
from tests.evaluate.toys import ARGS
from tests.narrow import present


def hits(right: int, n: int) -> np.ndarray:
    return (np.arange(n) < right).astype(float)


def measured(model: str, outcomes: np.ndarray, *, metric: str = "knn1_top1", data: str = "digits", rows: bool = True) -> Metric:
    (one,) = metric_rows("knn", data, model, {metric: statistics.mean(outcomes)})
    return one if rows else replace(one, outcomes=None)


def exact(model: str, value: float | None, *, metric: str = "knn1_top1", data: str = "digits", n: int = 100) -> Metric:
    return Metric("knn", data, metric, model, value, None, None, n)


def test_better_than_every_baseline() -> None:
    found = verdict([measured("trained", hits(90, 100)), measured("raw pixels", hits(60, 100)), exact("chance", 0.1)])
    assert found == (
        "knn, digits: the nearest neighbor has the right class for 90.0 % of 100 images, better than comparing raw pixels "
        "(by 30.0 points) and chance (by 80.0 points).",
    )


BOTH_WAYS = ("text_to_image_R@1", "image_to_text_R@1")


def test_what_compares_alike_shares_a_sentence() -> None:
    """As a retrieval is better than chance both ways."""
    found = [measured("trained", hits(n, 100), metric=way) for way, n in zip(BOTH_WAYS, (60, 55), strict=True)]
    chance = [exact("chance", 0.01, metric=way) for way in BOTH_WAYS]
    assert verdict([*found, *chance]) == (
        "knn, digits: the right image comes first for 60.0 % of 100 texts and the right text comes first for 55.0 % of 100 "
        "images, better than chance (by 59.0 and 54.0 points).",
    )
    level = [measured("raw pixels", hits(n, 100), metric=way) for way, n in zip(BOTH_WAYS, (59, 54), strict=True)]
    (both,) = verdict([*found, *level, *chance])
    assert both.startswith(FLAG)
    assert both.count("comparing raw pixels") == both.count("chance") == 1
    assert len(re.findall(r"\+1\.0 points \[-?\d\.\d, \d\.\d\]", both)) == 2


@pytest.mark.parametrize("pixels", [90, 55])
def test_what_does_not_compare_alike_has_a_sentence_of_its_own(pixels: int) -> None:
    shares = {"trained": (60, 55), "raw pixels": (1, pixels)}
    found = [
        measured(model, hits(right, 100), metric=way)
        for model, own in shares.items()
        for way, right in zip(BOTH_WAYS, own, strict=True)
    ]
    (one,) = verdict(found)
    assert one.count("comparing raw pixels") == 2
    assert "texts, better than comparing" in one
    assert "images, better than comparing" not in one


def test_of_several_models_every_metric_has_a_sentence() -> None:
    found = [measured(model, hits(n, 100), metric=way) for way in BOTH_WAYS for model, n in (("a", 60), ("b", 20))]
    (one,) = verdict(found)
    assert one.count("better than b (by 40.0 points)") == 2


def test_a_map_has_no_paragraph_beside_scores() -> None:
    drawn = Metric("embedding_map", "digits", "tsne_trustworthiness@10", "trained", 0.9, None, None, 100)
    score = measured("trained", hits(90, 100))
    assert verdict([drawn, score]) == verdict([score])
    assert verdict([drawn]) == ("embedding_map, digits: the map of 100 images has a trustworthiness of 0.900.",)


@pytest.mark.parametrize("rows", [True, False])
def test_below_a_baseline_is_flagged_before_what_is_good(rows: bool) -> None:
    trained, pixels = (measured(model, hits(n, 100), rows=rows) for model, n in (("trained", 40), ("raw pixels", 80)))
    (found,) = verdict([trained, pixels, exact("chance", 0.1)])
    assert found.startswith(f"{FLAG}knn, digits: ")
    assert found.endswith("worse than comparing raw pixels (by 40.0 points), better than chance (by 30.0 points).")


def test_a_score_at_chance_is_not_better_than_chance() -> None:
    (found,) = verdict([measured("trained", hits(11, 100)), exact("chance", 0.1)])
    assert found.startswith(FLAG)
    assert re.search(r"no better than chance \(\+1\.0 points \[-\d\.\d, \d\.\d\]\)\.$", found)
    (below,) = verdict([measured("trained", hits(10, 100)), exact("chance", 0.5)])
    assert below.startswith(FLAG)
    assert "worse than chance (by 40.0 points)" in below


def test_equal_is_as_good_as() -> None:
    (found,) = verdict([measured("trained", hits(50, 100)), measured("untrained", hits(50, 100))])
    assert found.startswith(FLAG)
    assert found.endswith(", as good as the untrained network.")


def test_a_baseline_that_has_seen_labels_is_marked_and_raises_no_caution() -> None:
    metrics = [measured(model, hits(n, 100), metric="zero_shot_top1") for model, n in (("trained", 40), ("labeled pixels", 80))]
    (found,) = verdict(metrics)
    assert not found.startswith(FLAG)
    assert "worse than the labels, unknown to the model, of the nearest images by raw pixels (by 40.0" in found


def test_pairing_decides_where_the_intervals_overlap() -> None:
    """The same 4 rows more of 100: the two intervals overlap widely, and of the rows of one alone there is no doubt."""
    trained, pixels = measured("trained", hits(57, 100)), measured("raw pixels", hits(50, 100))
    assert present(trained.low) < present(pixels.high)
    assert "better than comparing raw pixels (by 7.0 points)" in verdict([trained, pixels])[0]
    apart = [replace(one, outcomes=None) for one in (trained, pixels)]
    assert "not significantly different from comparing raw pixels (+7.0 points [-" in verdict(apart)[0]


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60),
    st.sampled_from(["knn1_top1", "nll", "text_to_image_mean_rank"]),
)
def test_a_contrast_has_the_direction_and_the_p_value_of_the_paired_test(
    outcomes: list[tuple[bool, bool]], metric: str
) -> None:
    ours, theirs = np.array(outcomes, float).T
    model, other = (measured(name, values, metric=metric) for name, values in (("trained", ours), ("raw pixels", theirs)))
    found, (_, p) = contrast(model, other), paired_test(present(other.outcomes), present(model.outcomes))
    better = ours.mean() - theirs.mean()
    assert found.gain == pytest.approx(-better if lower_is_better(metric) else better)
    assert found.is_significant == (p < 0.05)
    if found.low is not None:
        assert found.low <= found.gain <= present(found.high)
    assert contrast(other, model).gain == pytest.approx(-found.gain)
    assert contrast(other, model).is_significant == found.is_significant


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_words_agree_with_the_numbers(ours: int, pixels: int, chance: int) -> None:
    metrics = [measured("trained", hits(ours, 40)), measured("raw pixels", hits(pixels, 40)), exact("chance", chance / 40)]
    (found,) = verdict(metrics)
    for other in metrics[1:]:
        one, name = contrast(metrics[0], other), BASELINES[other.model]
        before = found[: found.rindex(name)]
        said = re.findall("worse than|as good as|no better than|not significantly different from|better than", before)
        expected = {
            True: ("better than",) if one.gain > 0 else ("worse than",),
            False: ("as good as",) if one.gain == 0 else ("no better than", "not significantly different from"),
        }
        assert said[-1] in expected[bool(one.is_significant)]
    assert found.startswith(FLAG) == any(
        contrast(metrics[0], other).gain <= 0 or not contrast(metrics[0], other).is_significant for other in metrics[1:]
    )


def test_where_lower_is_better_the_lower_one_is() -> None:
    values = {"trained": 3.0, "raw pixels": 9.0}
    metrics = [
        Metric("retrieval", "x", "text_to_image_median_rank", model, value, value - 1, value + 1, 50)
        for model, value in values.items()
    ]
    (found,) = verdict(metrics)
    assert found == ("retrieval, x: text_to_image_median_rank is 3.0 on 50 rows, better than comparing raw pixels (by 6.0).")
    (swapped,) = verdict([replace(metrics[0], value=30.0, low=29.0, high=31.0), metrics[1]])
    assert "worse than comparing raw pixels (by 21.0" in swapped


def test_without_baselines_there_is_only_what_was_measured() -> None:
    assert verdict([measured("trained", hits(1, 1))]) == (
        "knn, digits: the nearest neighbor has the right class for 100.0 % of 1 image.",
    )
    assert verdict([]) == ()


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_what_has_no_value_is_passed_over(value: float | None) -> None:
    none = exact("trained", value)
    assert verdict([none]) == ()
    other = measured("trained", hits(9, 10), metric="knn5_top1")
    assert verdict([none, other, exact("raw pixels", value)])[0].startswith("knn, digits: the 5 nearest neighbors vote")


def test_without_an_interval_nothing_is_claimed() -> None:
    (found,) = verdict([exact("trained", 0.9), exact("raw pixels", 0.2)])
    assert found.endswith("not tested, for lack of an interval, against comparing raw pixels (+70.0 points).")
    assert not found.startswith(FLAG)


def test_one_row_proves_nothing() -> None:
    (found,) = verdict([measured("trained", hits(1, 1)), measured("raw pixels", hits(0, 1)), exact("chance", 0.5, n=1)])
    assert "better than" not in found.replace("no better than", "")


def test_the_best_of_several_models_is_named_and_the_others_are_held_against_it() -> None:
    models = {"runs/a": 70, "runs/b": 90, "runs/c": 88, "runs/d": 9}
    metrics = [measured(model, hits(right, 100)) for model, right in models.items()] + [exact("chance", 0.1)]
    (found,) = verdict(metrics)
    assert "for 90.0 % of 100 images, best for runs/b of 4 models" in found
    assert "not significantly different from runs/c (+2.0 points" in found
    assert "better than runs/a (by 20.0 points), runs/d (by 81.0 points) and chance (by 80.0 points)" in found
    assert found.startswith(FLAG)
    assert re.search(r" runs/d: no better than chance \(-1\.0 points", found)


def standing(data: str, right: int, pixels: int, *, model: str = "trained", rows: bool = True) -> list[Metric]:
    """Of 100 rows, those that a model and the pixels get right."""
    return [measured(name, hits(n, 100), data=data, rows=rows) for name, n in ((model, right), ("raw pixels", pixels))]


def test_many_results_open_with_a_summary() -> None:
    few = [*standing("a", 90, 50), *standing("b", 80, 20), *standing("c", 50, 50), *standing("d", 10, 80)]
    assert len(verdict(few)) == 4
    many = [
        *few,
        measured("trained", hits(5, 9), data="e"),
        exact("trained", 0.5, data="f"),
        exact("raw pixels", 0.4, data="f"),
    ]
    summary, *paragraphs = verdict(many)
    assert summary == (
        "6 scores on 6 datasets: the model is better than every baseline in 2, not significantly different from a baseline in "
        "1, worse than a baseline in 1, without a baseline in 1 and not tested in 1. Not better than a baseline: knn, c; "
        "knn, d."
    )
    assert [paragraph.removeprefix(FLAG)[:6] for paragraph in paragraphs] == [f"knn, {data}" for data in "abcdef"]
    labels = [*many, measured("labeled pixels", hits(95, 100), data="a")]
    assert "the model is better than every baseline that has seen no labels in 2, " in verdict(labels)[0]


def test_the_summary_of_several_models_says_how_often_each_is_best() -> None:
    a, b = "/scratch/ann/experiments/runs/a", "/scratch/ann/experiments/runs/b"
    metrics = [row for data in "uvw" for row in standing(data, 60, 50, model=a)]
    metrics += [measured(b, hits(right, 100), data=data) for data, right in {"u": 90, "v": 90, "w": 9}.items()]
    assert verdict(metrics)[0] == (
        "3 scores on 3 datasets: b is best in 2 and a is best in 1. a is better than every baseline in 3; b is better than "
        "every baseline in 2 and worse than a baseline in 1. Not better than a baseline: knn, w (b)."
    )


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=5, max_size=12))
def test_the_summary_counts_what_the_paragraphs_say(results: list[tuple[int, int]]) -> None:
    metrics = [
        measured(model, hits(n, 20), data=str(number))
        for number, own in enumerate(results)
        for model, n in zip(("trained", "raw pixels"), own, strict=True)
    ]
    summary, *paragraphs = verdict(metrics)
    counts = {standing: int(count) for standing, count in re.findall(r"(better|different|worse)[a-z ]* in (\d+)", summary)}
    assert sum(counts.values()) == len(paragraphs) == len(results)
    assert counts.get("better", 0) == sum(not paragraph.startswith(FLAG) for paragraph in paragraphs)
    assert counts.get("worse", 0) == sum("worse than" in paragraph for paragraph in paragraphs)
    named, more = len(re.findall(r"knn, \d+", summary)), re.search(r"; (\d+) more\.", summary)
    assert named + int(more[1] if more else 0) == sum(paragraph.startswith(FLAG) for paragraph in paragraphs)


def test_every_dataset_and_direction_has_its_own_words() -> None:
    names = ("text_to_image_R@1", "text_to_image_R@5", "image_to_text_R@1", "text_to_image_mAP")
    datasets = {"猫 | <b>": 9, "b": 5}
    metrics = [measured("trained", hits(n, 10), metric=name, data=data) for data, n in datasets.items() for name in names]
    said = "the right image comes first for {0}0.0 % of 10 texts. The right text comes first for {0}0.0 % of 10 images."
    assert verdict(metrics) == tuple(f"knn, {data}: {said.format(n)}" for data, n in datasets.items())


@pytest.mark.parametrize("name", EVALUATORS)
def test_every_evaluator_has_words_for_what_it_measures(name: str) -> None:
    task = Task("patterns", PatternSource(36, seed=0), PatternSource(60, seed=1))
    report = run([(name, ARGS[name])], [CachedModel(PatternModel())], [task])
    (found,) = report.verdict()
    assert any(has_phrase(metric.metric) for metric in report.metrics), "it would be called by its identifier"
    assert "_" not in found.partition(f"{name}, patterns: ")[2]
