"""Intervals against SciPy, against each other, and by their coverage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score

from mmcl.evaluate import statistics


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (7, 7), (1, 10), (37, 100), (9990, 10000)])
def test_proportion_is_the_exact_binomial_interval(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(0.95, method="exact")
    found = statistics.proportion(successes, n)
    assert (found.value, found.n) == (successes / n, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_zero_and_one_outcomes_get_the_binomial_interval() -> None:
    assert statistics.mean(np.array([1.0, 0.0, 1.0, 1.0])) == statistics.proportion(3, 4)


@pytest.mark.parametrize("draw", [lambda rng: rng.normal(3, 2, 80), lambda rng: rng.choice([0, 0.25, 1], 80)])
def test_bootstrap_of_the_mean_covers_it(draw: Callable[[np.random.Generator], np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    truth = np.mean([draw(rng).mean() for _ in range(1000)])
    intervals = [statistics.mean(draw(rng), seed=seed) for seed in range(200)]
    covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    assert 0.89 <= covered <= 0.99


def test_counting_draws_equals_drawing_rows() -> None:
    outcomes = np.random.default_rng(0).choice([0, 0.2, 0.5, 1], 300)
    counted = statistics.mean(outcomes)
    drawn = statistics.bootstrap(lambda rows: outcomes[rows].mean(), 300)
    assert counted.value == pytest.approx(drawn.value)
    assert (counted.low, counted.high) == pytest.approx((drawn.low, drawn.high), abs=0.01)


@pytest.mark.parametrize("draw", [np.random.Generator.normal, np.random.Generator.lognormal])
def test_the_normal_interval_of_many_outcomes_is_that_of_the_bootstrap(draw: Callable[..., np.ndarray]) -> None:
    outcomes = draw(np.random.default_rng(0), size=statistics.MANY + 1)
    normal, drawn = statistics.mean(outcomes), statistics.bootstrap(lambda rows: outcomes[rows].mean(), len(outcomes))
    assert normal.value == pytest.approx(drawn.value)
    assert (normal.low, normal.high) == pytest.approx((drawn.low, drawn.high), abs=0.1 * (drawn.high - drawn.low))


@pytest.mark.parametrize("draw", [lambda rng: rng.normal(3, 2, 81), lambda rng: rng.integers(1, 20, 300)])
def test_the_interval_of_the_median_covers_it(draw: Callable[[np.random.Generator], np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    truth = np.median(np.concatenate([draw(rng) for _ in range(300)]))
    intervals = [statistics.median(draw(rng)) for _ in range(300)]
    assert np.mean([interval.low <= truth <= interval.high for interval in intervals]) >= 0.92


@pytest.mark.parametrize("n", [1, 20, 21])
def test_median_resamples_as_numpy_does(n: int) -> None:
    outcomes = np.random.default_rng(n).integers(1, 50, n).astype(float)
    counted, drawn = statistics.median(outcomes), statistics.bootstrap(lambda rows: float(np.median(outcomes[rows])), n)
    assert counted.value == np.median(outcomes)
    assert (counted.low, counted.high) == pytest.approx((drawn.low, drawn.high), abs=4)
    assert counted.low <= counted.value <= counted.high


def test_class_mean_is_balanced_accuracy() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.choice([3, 5, 9], 200, p=[0.7, 0.2, 0.1]), rng.choice([3, 5, 9], 200)
    found = statistics.class_mean((labels == predicted).astype(float), labels)
    assert found.value == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found.low < found.value < found.high


def test_the_same_seed_gives_the_same_interval() -> None:
    outcomes = np.random.default_rng(0).normal(size=100)
    assert statistics.mean(outcomes, seed=1) == statistics.mean(outcomes, seed=1)
    assert statistics.mean(outcomes, seed=1) != statistics.mean(outcomes, seed=2)
