"""STS against SciPy, including ties and intervals, and on texts with a known order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from mmcl.data.sample import Sample
from mmcl.data.source import Source
from mmcl.data.sources.emoji_texts import EmojiTextSource
from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS, CachedModel, Task, sts
from mmcl.evaluate.evaluators.sts import spearman
from mmcl.testing.patterns import PatternModel, PatternSource
from tests.evaluate.toys import bounds, unit
from tests.narrow import present


class Pairs(Source):
    """Pairs of texts: the same words, half of them, none."""

    def __init__(self, scores: list[float] | None = None):
        self.scores = np.array([5.0, 2.5, 0.0] * 4 if scores is None else scores)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Sample:
        same, half, none = f"pattern {index}", f"pattern {index + 50}", f"unrelated {index + 70}"
        return Sample(f"pair {index}", None, (f"Pattern {index}",), positives=((same, half, none)[index % 3],))

    @property
    def fingerprint(self) -> str:
        return "pairs"


@pytest.mark.parametrize("decimals", [1, 8])
def test_equals_scipy_with_and_without_ties(decimals: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = np.round(x + rng.normal(size=60), decimals)
    assert spearman(np.round(x, decimals), y).value == pytest.approx(spearmanr(np.round(x, decimals), y).statistic, rel=1e-12)


def test_is_the_correlation_of_cosines_with_an_interval_around_it() -> None:
    first, second = unit((80, 6), 0), unit((80, 6), 1)
    cosine = (first.astype(np.float64) * second).sum(1)
    scores = cosine + 0.3 * np.random.default_rng(2).normal(size=80)
    metric = sts(3 * first, second, scores).metrics[0]
    assert metric.value == pytest.approx(spearmanr(cosine, scores).statistic, rel=1e-9)
    low, high = bounds(metric)
    assert low < present(metric.value) < high
    assert metric.n == 80


def test_the_order_alone_counts_and_a_collapsed_model_has_none() -> None:
    first, second, scores = unit((30, 4), 0), unit((30, 4), 1), np.arange(30.0)
    assert sts(first, second, scores)["sts_spearman"] == sts(first, second, np.exp(scores))["sts_spearman"]
    assert sts(first, second, -scores)["sts_spearman"] == pytest.approx(-present(sts(first, second, scores)["sts_spearman"]))
    assert sts(np.ones((30, 4)), np.ones((30, 4)), scores)["sts_spearman"] == 0


def test_the_evaluator_reads_caption_positive_and_score() -> None:
    report = EVALUATORS["sts"](CachedModel(PatternModel()), Task("pairs", Pairs()))
    values = {row.model: row.value for row in report.metrics}
    assert values["bag of words"] == pytest.approx(1)  # The same words, half of them, none.
    assert values["chance"] == 0
    assert values["trained"] > 0.5


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (PatternSource(6, seed=0, scores=False), "patterns: has no scores of pairs"),
        (Pairs([1.0] * 12), "scores are all equal"),
        (Pairs([1.0] * 11 + [np.nan]), "scores must be 12 finite numbers"),
    ],
)
def test_data_that_do_not_fit_are_user_errors(source: Source, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EVALUATORS["sts"](CachedModel(PatternModel()), Task("patterns", source))


def test_pairs_of_emoji_are_graded_by_their_classification() -> None:
    pairs, names = EmojiTextSource(None, None, fold="test", pairs=True), EmojiTextSource(None, None, fold="test")
    own = {names[n].captions[0]: names[n].positives[0] for n in range(len(names))}
    scores = present(pairs.scores)
    assert set(scores) == {0.0, 1.0, 2.0, 3.0}
    for n in np.flatnonzero(scores == 3).tolist():
        (name,), (keywords,) = pairs[n].captions, pairs[n].positives
        assert own[name] == keywords
        assert not set(name.lower().split()) & set(keywords.lower().replace(",", "").split())


@pytest.mark.parametrize("scores", [["a", "b", "c"], [None, 1.0, 2.0], [[1.0], [2.0, 3.0], 4.0], [1.0, 2.0]])
def test_non_finite_scores_are_user_errors(scores: Any) -> None:
    with pytest.raises(UserError, match="scores must be 3 finite numbers"):
        sts(np.eye(3), np.eye(3), scores)
