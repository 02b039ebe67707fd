"""Paired comparison: against a slow bootstrap and SciPy, its coverage, and its errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2, permutation_test, ttest_rel

from mmcl.errors import UserError
from mmcl.evaluate import CachedModel, Comparison, Metric, Report, Task, compare, run
from mmcl.evaluate.measures.outcomes import Outcomes, Statistic
from mmcl.evaluate.measures.paired_tests import paired_difference, paired_shares, paired_test, swap_test
from mmcl.evaluate.reporting.compare import Difference
from mmcl.evaluate.reporting.metric import Provenance
from mmcl.testing.patterns import PatternModel, PatternSource
from tests.evaluate.toys import bounds


def hits(n: int, share: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < share).astype(np.float32)


def two(statistic: Statistic, n: int = 60) -> tuple[Outcomes, Outcomes]:
    rng = np.random.default_rng(3)
    labels = rng.choice(4, n, p=[0.5, 0.3, 0.1, 0.1]) if statistic == "class_mean" else None
    a = rng.integers(1, 40, n).astype(np.float32)
    b = np.maximum(1, a - rng.integers(-3, 8, n)).astype(np.float32)
    return Outcomes(a, statistic, labels), Outcomes(b, statistic, labels)


def slow_bootstrap(a: Outcomes, b: Outcomes) -> tuple[float, float]:
    """Draws queries one resample at a time, and computes both statistics from scratch."""
    rng, n = np.random.default_rng(9), len(a)

    def value(outcomes: Outcomes, drawn: np.ndarray) -> float:
        if outcomes.statistic == "median":
            return float(np.median(outcomes.values[drawn]))
        if outcomes.labels is None:
            return float(np.mean(outcomes.values[drawn]))
        return float(
            np.mean([outcomes.values[drawn][outcomes.labels[drawn] == label].mean() for label in np.unique(outcomes.labels)])
        )

    def draw() -> np.ndarray:
        if a.labels is None:
            return rng.integers(n, size=n)
        own = [np.flatnonzero(a.labels == label) for label in np.unique(a.labels)]
        return np.concatenate([rng.choice(rows, len(rows)) for rows in own])

    differences = []
    for _ in range(3000):
        drawn = draw()
        differences.append(value(b, drawn) - value(a, drawn))
    low, high = np.quantile(differences, (0.025, 0.975))
    return float(low), float(high)


@pytest.mark.parametrize("statistic", ["mean", "class_mean"])
def test_interval_of_many_is_that_of_a_slow_bootstrap(statistic: Statistic) -> None:
    a, b = two(statistic, n=4000)
    a, b = (replace(rows, values=rows.values / 50) for rows in (a, b))
    low, high = bounds(paired_difference(a, b))
    assert (low, high) == pytest.approx(slow_bootstrap(a, b), abs=0.1 * (high - low))


def test_a_difference_of_medians_or_of_few_unbounded_outcomes_has_no_interval() -> None:
    for a, b in (two("median"), two("mean", n=199)):
        found = paired_difference(a, b)
        assert found.value is not None
        assert found.low is found.high is None


@pytest.mark.parametrize(
    ("won", "lost", "n", "expected"),
    [
        (5, 0, 5, (0.1310, 1)),
        (1, 0, 100, (-0.0274, 0.0545)),
        (0, 0, 5, (-0.4345, 0.4345)),
    ],
)
def test_paired_shares_have_tangos_interval(won: int, lost: int, n: int, expected: tuple[float, float]) -> None:
    a = np.repeat([0, 1, 1], [won, lost, n - won - lost]).astype(np.float32)
    b = np.repeat([1, 0, 1], [won, lost, n - won - lost]).astype(np.float32)
    low, high = bounds(paired_difference(Outcomes(a), Outcomes(b)))
    assert (low, high) == pytest.approx(expected, abs=1e-4)
    assert bounds(paired_difference(Outcomes(b), Outcomes(a))) == pytest.approx((-high, -low))


def test_the_score_interval_ends_where_the_likelihood_given_the_difference_is_rejected() -> None:
    """The other parameter by a search, not by its closed form."""
    won, lost, n = 9, 4, 60
    for edge in bounds(paired_shares(won, lost, n)):
        least, most = max(0, -edge), (1 - edge) / 2
        share = np.linspace(least, most, 200_001)[1:-1]  # of the queries that A alone gets right
        logs = won * np.log(share + edge) + lost * np.log(share) + (n - won - lost) * np.log(1 - 2 * share - edge)
        best = share[logs.argmax()]
        deviation = np.sqrt(n * (2 * best + edge - edge**2))
        assert abs(won - lost - n * edge) / deviation == pytest.approx(1.959964, abs=1e-3)


def test_outcomes_of_one_cluster_count_once() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.random(40).astype(np.float32) for _ in range(2))
    five = [Outcomes(values.repeat(5), clusters=np.arange(40).repeat(5)) for values in (a, b)]
    one, many = paired_difference(Outcomes(a), Outcomes(b)), paired_difference(*five)
    assert (many.low, many.high) == pytest.approx((one.low, one.high))
    assert swap_test(*five) == pytest.approx(swap_test(Outcomes(a), Outcomes(b)), abs=0.03)
    with pytest.raises(ValueError, match="clusters"):
        paired_difference(five[0], Outcomes(b.repeat(5)))


def test_pairing_is_narrower_than_two_intervals() -> None:
    a = hits(500, 0.5, 0)
    b = np.where(hits(500, 0.05, 1) == 1, 1, a)
    low, high = bounds(paired_difference(Outcomes(a), Outcomes(b)))
    assert high - low < 1.96 * np.sqrt(2 * 0.25 / 500)


def test_many_different_outcomes_are_normal() -> None:
    rng = np.random.default_rng(0)
    a = Outcomes(rng.random(3000).astype(np.float32))
    b = Outcomes((a.values + rng.normal(0.01, 0.3, 3000)).astype(np.float32))
    low, high = slow_bootstrap(a, b)
    found = paired_difference(a, b)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))
    assert swap_test(a, b) == pytest.approx(ttest_rel(b.values, a.values).pvalue, abs=0.005)


def test_every_count_of_changes_has_a_p_value() -> None:
    """Rounding of the share must not hide the ends of the narrowest interval."""
    for n in (7, 49, 100):
        for won in range(0, n + 1, 3):
            for lost in range(0, n - won + 1, 4):
                value = (won - lost) / n
                found = paired_shares(won, lost, n, tail=0.5)
                assert (found.low, found.high) == pytest.approx((value, value), abs=1e-9)
    a = np.repeat([0, 1, 0], [30, 2, 68]).astype(np.float32)
    assert paired_test(Outcomes(a), Outcomes(np.repeat([1, 0, 0], [30, 2, 68]).astype(np.float32)))[1] < 1e-5


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (5, 0), (12, 4), (30, 30)])
def test_p_of_hits_is_mcnemars(won: int, lost: int) -> None:
    a = np.r_[np.zeros(won), np.ones(lost), np.ones(20)].astype(np.float32)
    b = np.r_[np.ones(won), np.zeros(lost), np.ones(20)].astype(np.float32)
    expected = chi2.sf((won - lost) ** 2 / (won + lost), 1) if won + lost else 1.0
    assert paired_test(Outcomes(a), Outcomes(b))[1] == pytest.approx(expected)


@pytest.mark.parametrize("n", [5, 8, 30])
def test_the_interval_of_hits_and_p_never_contradict_each_other(n: int) -> None:
    """Every table of counts: 5 to 0 of 5, 4 to 0, 7 to 1, and the ones on either side of the threshold."""
    for won in range(n + 1):
        for lost in range(n + 1 - won):
            a, b = np.repeat([0, 1, 1], [won, lost, n - won - lost]), np.repeat([1, 0, 1], [won, lost, n - won - lost])
            found, p = paired_test(Outcomes(a.astype(np.float32)), Outcomes(b.astype(np.float32)))
            low, high = bounds(found)
            assert (low > 0 or high < 0) == (p < 0.05), (won, lost, p)


@pytest.mark.parametrize("kind", ["ranks", "clusters", "classes", "wide", "all better"])
@pytest.mark.parametrize("n", [5, 12, 40, 300])
def test_every_interval_and_its_p_agree(kind: str, n: int) -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        a, gain = rng.random(n), rng.normal(0.3 * rng.random(), 0.4, n) if kind != "all better" else 0.3
        b = a + gain if kind == "wide" else np.clip(a + gain, 0, 1)
        clusters = np.arange(n) // 2 if kind == "clusters" else None
        labels = np.arange(n) % 2 if kind == "classes" else None
        statistic: Statistic = "class_mean" if kind == "classes" else "mean"
        within = (-np.inf, np.inf) if kind == "wide" else (0.0, 1.0)
        found, p = paired_test(
            *(Outcomes(x.astype(np.float32), statistic, labels, clusters=clusters, within=within) for x in (a, b))
        )
        assert 0 < p <= 1
        if found.low is not None:
            low, high = bounds(found)
            assert (low > 0 or high < 0) == (p < 0.05), (seed, found, p)


def test_p_is_about_that_of_the_permutation_test_where_both_exist() -> None:
    rng = np.random.default_rng(0)
    for gain in (0.0, 0.03, 0.06, 0.1):
        a, b = rng.random(300), rng.random(300)
        both = [Outcomes(x.astype(np.float32), within=(0.0, 1.0)) for x in (a, np.clip(b + gain, 0, 1))]
        assert paired_test(*both)[1] == pytest.approx(swap_test(*both), abs=0.03)


@pytest.mark.parametrize("statistic", ["mean", "class_mean", "median"])
def test_p_is_that_of_scipys_permutation_test(statistic: Statistic) -> None:
    a, b = two(statistic, n=25)
    weight = np.full(25, 1 / 25) if a.labels is None else np.array([1 / 4 / np.sum(a.labels == label) for label in a.labels])

    def change(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        if statistic == "median":
            return np.asarray(np.median(y, axis=axis) - np.median(x, axis=axis))
        return np.asarray(((y - x) * weight).sum(axis=axis))

    options = {"permutation_type": "samples", "n_resamples": 4999, "vectorized": True, "rng": np.random.default_rng(0)}
    expected = permutation_test((a.values.astype(float), b.values.astype(float)), change, **options).pvalue
    assert swap_test(a, b) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("test", [swap_test, lambda a, b: paired_test(a, b)[1]], ids=["swaps", "interval"])
def test_under_the_null_p_is_below_five_per_cent_at_most_that_often(test: Callable[[Outcomes, Outcomes], float]) -> None:
    rng = np.random.default_rng(1)
    p = [test(*(Outcomes(rng.beta(1, 2, size=20).astype(np.float32), within=(0.0, 1.0)) for _ in "ab")) for _ in range(120)]
    assert np.mean(np.array(p) < 0.05) < 0.13


def evaluated(source: PatternSource, *, shift: int = 0) -> Report:
    """Of a model that, with a shift, takes some patterns for others."""

    class Shifted(PatternModel):
        def encode_text(self, texts, **options):  # type: ignore[no-untyped-def]
            rows = super().encode_text(texts, **options)
            return np.concatenate([np.roll(rows[:shift], 1, axis=0), rows[shift:]])

    task = Task("patterns", source, PatternSource(60, seed=1))
    return run([("retrieval", {"examples": 0}), ("zero_shot", {})], [CachedModel(Shifted())], [task])


@pytest.fixture(scope="module")
def right() -> Report:
    return evaluated(PatternSource(36, seed=0))


def test_the_same_twice_is_exactly_zero(right: Report) -> None:
    for one in compare(right, right).differences:
        assert (one.difference, one.p) == (0, 1)
        # Queries that were not drawn are unknown.
        if one.low is not None:
            low, high = bounds(one)
            assert low < 0 < high
        assert one.won == one.lost == ()
    assert compare(right, right).to_text() == "No difference: A and B are the same model, with equal weights."


def test_equal_outcomes_and_equal_weights_are_distinguished(right: Report) -> None:
    other = replace(right, provenance=tuple(replace(one, model_fingerprint="other") for one in right.provenance))
    found = compare(right, other)
    expected = f"No difference: A and B have the same outcome for every query, in {len(found.differences)} metrics."
    assert found.verdict() == (expected,)
    assert " ".join(found.to_text().split()) == expected
    assert len(json.loads(found.to_json())["differences"]) == len(found.differences)
    assert not compare(metric(hits(8, 0.5, 0)), metric(hits(8, 0.5, 0))).has_equal_weights, "the reports do not say"


def mixed_verdict(*found: tuple[float, float]) -> str:
    """A comparison with a p-value and a difference for each direction of retrieval."""
    names = ("text_to_image_R@1", "image_to_text_R@1")
    differences = [
        Difference("retrieval", "photos", name, 0.5, 0.5 + gain, gain, gain - 0.05, gain + 0.05, p, 100, ("a",), ())
        for name, (p, gain) in zip(names, found, strict=True)
    ]
    (paragraph,) = Comparison("runs/a", "runs/b", tuple(differences)).verdict()
    return paragraph


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_the_verdict_says_who_is_better(lower_is_better: bool) -> None:
    a, b = np.repeat([0, 1, 0, 1], [30, 2, 8, 60]), np.repeat([1, 0, 0, 1], [30, 2, 8, 60])
    name = "knn_error" if lower_is_better else "knn1_top1"
    (found,) = compare(metric(a, name=name), metric(b, name=name), names=("runs/a", "runs/b")).verdict()
    who = "runs/a is better than runs/b" if lower_is_better else "runs/b is better than runs/a"
    assert found.startswith(f"knn, mnist: {who}: with runs/b ")
    assert "p < 0.001; 30 of 100 images better, 2 worse)." in found or "2 of 100 rows better, 30 worse)." in found
    if not lower_is_better:
        assert "right class for 90.0 % of 100 images, with runs/a 62.0 % (+28.0 points [" in found
    (level,) = compare(metric(a), metric(np.roll(a, 1))).verdict()
    assert level.startswith("knn, mnist: no significant difference of B from A: with B ")


def test_a_paragraph_says_once_who_is_better_and_leaves_paths_as_they_are() -> None:
    both = mixed_verdict((0.01, 0.1), (0.01, 0.1))
    assert both.count("runs/b is better than runs/a") == 1
    assert " worse). With runs/b the right text comes first for " in both
    level = mixed_verdict((0.01, 0.1), (0.5, 0.1))
    assert level.startswith("retrieval, photos: runs/b is better than runs/a: with runs/b the right image ")
    assert " worse). No significant difference of runs/b from runs/a: with runs/b the right text " in level
    assert " worse). But runs/a is better than runs/b: with runs/b the right text " in mixed_verdict((0.01, 0.1), (0.01, -0.1))


def test_a_comparison_on_many_datasets_opens_with_a_summary() -> None:
    right = {"a": (90, 50), "b": (50, 90), "c": (60, 61), "d": (10, 80), "e": (50, 50)}

    def report(side: int) -> Report:
        rows = {data: (np.arange(100) < own[side]).astype(np.float32) for data, own in right.items()}
        return Report(tuple(replace(one, data=data) for data, values in rows.items() for one in metric(values).metrics))

    summary, *paragraphs = compare(report(0), report(1)).verdict()
    assert summary == "5 scores on 5 datasets: B is better in 2, A in 1, and there is no significant difference in 2."
    assert len(paragraphs) == 5


def test_long_paths_are_shown_once_and_sentences_have_their_ends(right: Report) -> None:
    where = f"/home/ann/{'experiments of the spring/' * 4}runs"
    names = f"{where}/batch_512/seed_0", f"{where}/batch_1024/seed_0"
    found = compare(right, evaluated(PatternSource(36, seed=0), shift=3), names=names)
    assert all("batch_1024/seed_0" in line and where not in line for line in found.verdict())
    for shown in (found.to_text(), found.to_markdown()):
        assert shown.count(where) == 2
    legend, _, below = found.to_text().partition("\n\n")
    assert legend.splitlines() == [f"A  {names[0]}", f"B  {names[1]}"]
    assert max(map(len, below.splitlines())) <= 80
    assert (json.loads(found.to_json())["a"], json.loads(found.to_json())["b"]) == names
    equal = compare(right, right, names=names)
    assert equal.to_text().splitlines()[:2] == legend.splitlines()
    assert "No difference: batch_512/seed_0 and batch_1024/seed_0 are" in equal.to_text()


def test_what_changed_is_listed_by_name(right: Report, tmp_path: Path) -> None:
    right.write(tmp_path / "a")
    evaluated(PatternSource(36, seed=0), shift=3).write(tmp_path / "b")
    found = compare(Report.load(tmp_path / "a"), Report.load(tmp_path / "b"), names=("runs/a", "runs/b"))
    one = found["text_to_image_R@1"]
    assert (one.a, one.b, one.difference) == (1.0, 0.5, -0.5)
    assert sorted(one.lost) == ["pattern 0", "pattern 1", "pattern 2"]
    assert one.won == ()
    rank = found["text_to_image_median_rank"]  # lower is better
    assert len(rank.lost) == 3
    assert {row["metric"] for row in json.loads(found.to_json())["differences"]} >= {"zero_shot_top1", "image_to_text_R@1"}
    assert not any(row.metric.endswith("_tied") for row in found.differences)
    assert "zero_shot_ece" in found.notes[-1]
    for page in (found.to_text(), found.to_markdown(), found.to_html()):
        assert "runs/b" in page
        assert "pattern 2" in page
    changed = found.to_text().partition("what changed")[2].partition("zero_shot")[0]
    assert "text_to_image_R@1" in changed
    assert "text_to_image_R@5" not in changed
    found.write(tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {f"comparison.{kind}" for kind in ("json", "md", "html")}


def test_the_largest_changes_come_first_and_equal_ones_are_of_all_kinds() -> None:
    a, b = np.zeros(200), np.r_[np.ones(100), np.zeros(99), 3]
    (won, again) = (compare(metric(a), metric(b)).differences[0].won for _ in range(2))
    assert won == again
    assert won[0] == "199"
    assert sorted(map(int, won[1:])) == list(range(100))
    assert max(map(int, won[1:5])) > 50, "not the first rows"


def test_two_columns_of_one_report(right: Report) -> None:
    found = compare(right, right, models=("labeled pixels", "trained"))
    assert found["zero_shot_top1"].b == 1


def metric(values: np.ndarray, names: tuple[str, ...] | None = None, name: str = "knn5_top1") -> Report:
    outcomes = Outcomes(values.astype(np.float32), names=names)
    return Report((Metric("knn", "mnist", name, "trained", float(values.mean()), 0.0, 1.0, len(values), outcomes),))


def test_what_is_not_paired_is_refused(right: Report) -> None:
    with pytest.raises(UserError, match=r"different data, [0-9a-f]{12} \(A\) and [0-9a-f]{12} \(B\)"):
        compare(right, evaluated(PatternSource(36, seed=5)))
    with pytest.raises(UserError, match=r"not the same \(8 in A, 9 in B\)"):
        compare(metric(hits(8, 0.5, 0)), metric(hits(9, 0.5, 0)))
    with pytest.raises(UserError, match="have different queries"):
        compare(metric(hits(2, 0.5, 0), ("a", "b")), metric(hits(2, 0.5, 0), ("a", "c")))
    with pytest.raises(UserError, match="no metric in common"):
        compare(metric(hits(8, 0.5, 0)), metric(hits(8, 0.5, 0), name="knn1_top1"))
    with pytest.raises(UserError, match="has no model 'untrained'; it has trained"):
        compare(metric(hits(8, 0.5, 0)), metric(hits(8, 0.5, 0)), models=("trained", "untrained"))
    bare = replace(right, metrics=tuple(replace(one, outcomes=None) for one in right.metrics))
    with pytest.raises(UserError, match=r"rows\.safetensors"):
        compare(right, bare)


def test_changed_contents_under_the_same_names_are_refused() -> None:
    versions: dict[str, str] = {}
    one = metric(hits(8, 0.5, 0))
    what = one.metrics[0].evaluator, one.metrics[0].data
    made = [Provenance(*what, "trained", 8, identity, None, "m", "float32", 0, versions) for identity in ("x", "y")]
    with pytest.raises(UserError, match="different data"):
        compare(one + Report(provenance=(made[0],)), one + Report(provenance=(made[1],)))
