"""Intervals against published formulas and values, and their coverage."""

from __future__ import annotations

import numpy as np
import pytest
from interval_coverage import LEAST, MOST, SIZES, STATISTICS, Cell, line, measure, populations, verdict
from scipy.stats import beta, binom, bootstrap, norm, t
from sklearn.metrics import balanced_accuracy_score

from mmcl.evaluate.evaluators.sts import spearman
from mmcl.evaluate.measures import statistics
from tests.evaluate.toys import bounds
from tests.narrow import present


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (7, 7), (1, 10), (37, 100), (9990, 10000)])
def test_a_share_has_the_mid_p_interval(successes: int, n: int) -> None:
    found = statistics.proportion(successes, n)
    assert (found.value, found.n) == (successes / n, n)
    if successes > 0:
        assert binom.sf(successes, n, found.low) + binom.pmf(successes, n, found.low) / 2 == pytest.approx(0.025)
    if successes < n:
        assert binom.cdf(successes - 1, n, found.high) + binom.pmf(successes, n, found.high) / 2 == pytest.approx(0.025)
    assert (successes == 0) == (found.low == 0)
    assert (successes == n) == (found.high == 1)


@pytest.mark.parametrize("n", [5, 8, 20, 100])
def test_a_share_is_held_at_every_rate_by_exact_count(n: int) -> None:
    rates = np.linspace(0, 1, 1001)
    held = np.zeros_like(rates)
    for successes in range(n + 1):
        low, high = bounds(statistics.proportion(successes, n))
        held += binom.pmf(successes, n, rates) * ((low <= rates) & (rates <= high))
    assert held.min() > 0.91
    assert 0.945 < held.mean() < 0.985


def test_zero_and_one_outcomes_get_the_interval_of_a_share() -> None:
    assert statistics.mean(np.array([1.0, 0.0, 1.0, 1.0])) == statistics.proportion(3, 4)


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (1, 5), (4, 10), (30, 30), (250, 1000)])
def test_within_bounds_is_jeffreys_interval_for_zeros_and_ones(successes: int, n: int) -> None:
    rate = successes / n
    low, high = beta.ppf([0.025, 0.975], successes + 0.5, n - successes + 0.5)
    expected = [0.0 if successes <= 1 else low, 1.0 if successes >= n - 1 else high]
    if successes in (0, n):  # Clopper and Pearson's other end
        expected[int(successes == 0)] = beta.ppf(0.975, 1, n) if successes == 0 else beta.ppf(0.025, n, 1)
    assert statistics.within_bounds(rate, rate * (1 - rate), n) == pytest.approx(tuple(expected))
    scaled = statistics.within_bounds(6 * rate - 3, 36 * rate * (1 - rate), n, -3, 3)
    assert scaled == pytest.approx(tuple(6 * edge - 3 for edge in expected))


def test_few_draws_or_clusters_have_no_interval() -> None:
    assert statistics.within_bounds(0.5, 0.25, 4) is None
    assert statistics.mean(np.array([0.2, 0.4, 0.9, 1.0])).low is None
    assert statistics.mean(np.array([0.2, 0.4, 0.9, 1.0, 0.3])).low is not None
    for clusters, has_one in ((2, False), (9, False), (10, True)):
        rows = np.arange(clusters).repeat(5)
        assert (statistics.mean((rows % 2).astype(float), clusters=rows).low is not None) == has_one
        assert (statistics.median(rows.astype(float), clusters=rows).low is not None) == has_one
    one_is_most = np.r_[np.zeros(500, int), np.arange(1, 20)]
    assert statistics.mean((one_is_most % 2).astype(float), clusters=one_is_most).low is None


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, -1.0])
def test_an_interval_of_equal_outcomes_holds_them_and_stays_within_bounds(value: float) -> None:
    for clusters in (None, np.arange(20).repeat(2)):
        low, high = bounds(statistics.mean(np.full(40, value), clusters=clusters, within=(-1.0, 1.0)))
        assert -1 <= low <= value <= high <= 1
        assert low < high, "what was not drawn is not known"


def test_the_variance_over_clusters_is_that_of_the_jackknife() -> None:
    rng = np.random.default_rng(0)
    names = np.repeat(np.arange(30), rng.integers(1, 40, 30))
    outcomes = rng.random(len(names)) + rng.random(30)[names]
    without = np.array([outcomes[names != one].mean() for one in range(30)])
    value, variance, draws = statistics._draws(outcomes, names)
    assert value == pytest.approx(outcomes.mean())
    # As np.var has it: both divide by n.
    assert variance / draws == pytest.approx(((without - outcomes.mean()) ** 2).sum() * (29 / 30) ** 2)
    sizes = np.bincount(names)
    assert draws == pytest.approx(sizes.sum() ** 2 / (sizes**2).sum())


def test_within_bounds_has_the_moments_of_the_bayesian_bootstrap() -> None:
    outcomes = np.array([1, 0.5, 1, 0.25, 1, 1])
    rng = np.random.default_rng(0)
    weights = rng.dirichlet([1] * 6 + [0.5, 0.5], 200_000)
    drawn = np.quantile(weights @ np.r_[outcomes, 0, 1], [0.025, 0.975])
    assert statistics.within_bounds(outcomes.mean(), outcomes.var(), 6) == pytest.approx(tuple(drawn), abs=0.02)


@pytest.mark.parametrize("size", [40, 4000])
def test_large_samples_have_the_normal_interval(size: int) -> None:
    outcomes = np.random.default_rng(0).beta(2, 2, size)
    half = norm.ppf(0.975) * outcomes.std() / np.sqrt(size)
    found = statistics.mean(outcomes)
    assert (found.low, found.high) == pytest.approx((outcomes.mean() - half, outcomes.mean() + half), abs=0.2 * half)


def test_clusters_of_equal_rows_are_as_many_rows_as_clusters() -> None:
    outcomes = np.random.default_rng(0).choice([0.0, 0.5, 1.0], 30)
    one, five = statistics.mean(outcomes), statistics.mean(outcomes.repeat(5), clusters=np.arange(30).repeat(5))
    assert (five.low, five.high) == pytest.approx((one.low, one.high))
    assert five.n == 150
    alone = statistics.mean(outcomes, clusters=np.arange(30))
    assert alone == one, "clusters of one row are none"


def test_unbounded_outcomes_have_an_interval_near_students_and_one_that_leans_to_a_long_tail() -> None:
    even = np.random.default_rng(0).normal(9, 1, 200)
    found, half = statistics.mean(even), t.ppf(0.975, 199) * even.std(ddof=1) / np.sqrt(200)
    assert (found.low, found.high) == pytest.approx((even.mean() - half, even.mean() + half), abs=0.05 * half)
    tail = statistics.mean(np.exp(even - 9))
    low, high = bounds(tail)
    assert high - present(tail.value) > 1.1 * (present(tail.value) - low)
    expected = bootstrap((np.exp(even - 9),), np.mean, method="bca", rng=np.random.default_rng(0)).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), rel=0.03)


@pytest.mark.parametrize("outcomes", [np.arange(2.0, 201.0), np.full(300, 7.0)], ids=["too few to show a tail", "all equal"])
def test_unbounded_outcomes_without_a_valid_interval_have_none(outcomes: np.ndarray) -> None:
    found = statistics.mean(outcomes)
    assert (found.value, found.low, found.high) == (outcomes.mean(), None, None)


@pytest.mark.parametrize("n", [5, 20, 21, 1000])
def test_the_median_lies_between_order_statistics_of_binomial_ranks(n: int) -> None:
    found = statistics.median(np.arange(1.0, n + 1))
    assert found.value == (n + 1) / 2

    def between(low: float, high: float) -> float:
        """The probability of the median between two rows: row r is below it if r or more of n draws are."""
        return float(binom.cdf(high - 1, n, 0.5) - binom.cdf(low - 1, n, 0.5))

    low, high = bounds(found)
    assert between(np.floor(low), np.ceil(high)) > 0.94 - 0.01 * (n == 5)
    assert between(np.ceil(low), np.floor(high)) < 0.96
    assert statistics.median(np.arange(4.0)).low is None


@pytest.mark.parametrize("n", [5, 6, 10, 21, 400])
def test_the_median_has_the_interpolated_ends_of_hettmansperger_and_sheather(n: int) -> None:
    """By the binomial distribution of the rank, and their equation, in exact counts."""
    missed = [2 * float(binom.cdf(rank - 1, n, 0.5)) for rank in range(1, n)]
    rank = max([k for k in range(1, n // 2 + 1) if missed[k - 1] <= 0.05], default=0)
    place = 1.0
    if rank:
        part = (0.05 - missed[rank - 1]) / (missed[rank] - missed[rank - 1])
        place = rank + (n - rank) * part / (rank + (n - 2 * rank) * part)
    found = statistics.median(np.arange(1.0, n + 1))
    assert (found.low, found.high) == pytest.approx((place, n + 1 - place))


def test_class_mean_is_balanced_accuracy() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.choice([3, 5, 9], 200, p=[0.7, 0.2, 0.1]), rng.choice([3, 5, 9], 200)
    found = statistics.class_mean((labels == predicted).astype(float), labels)
    assert found.value == pytest.approx(balanced_accuracy_score(labels, predicted))
    low, high = bounds(found)
    assert low < present(found.value) < high


def test_class_mean_adds_the_variances_within_the_classes() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [400, 900, 700])
    outcomes = rng.beta(2, 2, 2000)
    own = [outcomes[labels == label] for label in range(3)]
    half = 1.96 * np.sqrt(sum(one.var(ddof=1) / len(one) for one in own)) / 3
    low, high = bounds(statistics.class_mean(outcomes, labels))
    assert (high - low) / 2 == pytest.approx(half, rel=0.01)


def test_class_mean_has_no_interval_where_a_class_has_one_row() -> None:
    found = statistics.class_mean(np.ones(4), np.array([0, 0, 1, 2]))
    assert (found.value, found.low, found.high) == (1, None, None)
    low, high = bounds(statistics.class_mean(np.ones(18), np.repeat([0, 1, 2], 6)))
    assert low < 0.9
    assert high == 1
    assert statistics.class_mean(np.ones(17), np.repeat([0, 1, 2], [6, 6, 5])).low is None, "14 rows beyond the first of each"


def test_a_difference_of_two_samples_joins_their_intervals() -> None:
    (a_low, a_high), (b_low, b_high) = bounds(statistics.proportion(48, 50)), bounds(statistics.proportion(30, 40))
    found = statistics.difference(np.repeat([1.0, 0.0], [48, 2]), np.repeat([1.0, 0.0], [30, 10]))
    expected = 0.21 - np.hypot(0.96 - a_low, b_high - 0.75), 0.21 + np.hypot(a_high - 0.96, 0.75 - b_low)
    assert (found.low, found.high) == pytest.approx(expected)
    assert statistics.difference(np.ones(5), np.arange(5.0)).low is None, "one of them has none"


def test_runs_have_students_interval_and_equal_ones_or_one_have_none() -> None:
    values = [0.7, 0.72, 0.69]
    half = t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
    found = statistics.over_runs(values, 100)
    assert (found.low, found.high) == pytest.approx((np.mean(values) - half, np.mean(values) + half))
    assert statistics.over_runs([0.7, 0.7], 100).low is statistics.over_runs([0.7], 100).low is None


@pytest.mark.parametrize("values", [[0.98, 0.99], [0.0, 1.0], [0.01, 0.0, 0.02], [1.0, 1.0, 0.5]])
def test_runs_of_a_share_have_an_interval_of_shares(values: list[float]) -> None:
    found = statistics.over_runs(values, 100)
    low, high = bounds(found)
    assert 0 <= low <= present(found.value) <= high <= 1
    assert bounds(statistics.over_runs(values, 100, within=statistics.ANYTHING))[1] > 1 or high < 1


def test_a_correlation_of_few_or_perfectly_ordered_rows_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    for n, has_one in ((19, False), (20, True)):
        x = rng.normal(size=n)
        assert (spearman(x, x + rng.normal(size=n)).low is not None) == has_one
        assert spearman(x, x).low is None


DECISIVE = [
    ("share (mid-p)", 20),
    ("difference of two shares (MOVER)", 10),
    ("difference of paired shares (score)", 10),
    ("mean reciprocal rank (bounded)", 5),
    ("difference of paired means (bounded)", 50),
    ("share, rows in clusters (jackknife)", 50),
    ("class mean (bounded)", 20),
    ("class mean, rows in clusters", 50),
    ("macro F1, rows in clusters", 50),
    ("AUROC (bounded)", 10),
    ("rank correlation (Fisher's z)", 20),
    ("median (order statistics)", 10),
    ("mean log-likelihood (Hall)", 200),
    ("runs (Student)", 5),
]


@pytest.mark.slow
@pytest.mark.parametrize(("statistic", "n"), DECISIVE)
def test_intervals_of_small_samples_hold_the_truth(statistic: str, n: int) -> None:
    """With few draws, a cell may be off by four standard errors, and the mean over the cells by as many of its own."""
    cells = [measure(one, n, 200, again=1) for one in populations(statistic)]
    given = [cell for cell in cells if cell.given >= 0.5]
    assert given
    for cell in given:
        assert cell.held > LEAST - 4 * cell.error, cell
        assert cell.is_at_edge or cell.held < MOST + 4 * cell.error, cell
    assert np.mean([cell.held for cell in given]) > LEAST - 4 * given[0].error / np.sqrt(len(given))


@pytest.mark.long
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_every_interval_holds_the_truth(statistic: str, n: int) -> None:
    assert line(statistic, n, [measure(one, n, 1000) for one in populations(statistic)])["failed"] == []


def test_the_table_says_in_words_what_does_not_hold() -> None:
    good, low, high = (Cell("a", False, held, 1.0, 4000) for held in (0.95, 0.90, 0.99))
    edge, none = Cell("b", True, 0.999, 1.0, 4000), Cell("c", False, 0.0, 0.1, 4000)
    held = line("share", 5, [good, edge, none])
    assert verdict([held], 1000).startswith("All 2 cells with an interval hold: 93% to 97% inside")
    said = verdict([held, line("share", 10, [good, low, high])], 1000)
    assert said.startswith("2 of 5 cells with an interval do NOT hold")
    assert "share, n = 10: a is low, 0.900" in said
    assert "share, n = 10: a is high, 0.990" in said
