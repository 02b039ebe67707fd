"""The difference of two models on the same queries. Pairing takes out what both find hard, so it needs far fewer of them."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from mmcl.evaluate import statistics
from mmcl.evaluate.rows import Rows
from mmcl.evaluate.statistics import MANY, SEED, Estimate

SWAPS = 4999


def paired_difference(first: Rows, second: Rows, *, seed: int = SEED) -> Estimate:
    """The statistic of `second` minus that of `first`, with the bootstrap interval of the difference.

    A resample draws queries, and takes the outcomes of both models on them; "class_mean" draws within each class. The mean of
    more than 1000 different differences is normal, and has the interval of the normal distribution.

    Args:
        first, second: outcomes of the same queries in the same order, with the same statistic.

    Raises:
        ValueError: the rows differ in number, statistic or classes.
    """
    a, b = _outcomes(first, second)
    if first.statistic == "median":
        return statistics.bootstrap(lambda rows: float(np.median(b[rows]) - np.median(a[rows])), len(a), seed=seed)
    if first.labels is None and len(np.unique(b - a)) > MANY:
        return statistics.mean(b - a)
    labels = np.zeros(len(a), np.int64) if first.labels is None else first.labels
    return statistics.class_mean(b - a, labels, seed=seed)


def swap_test(first: Rows, second: Rows, *, seed: int = SEED) -> float:
    """Two-sided p-value of the difference, if on every query it were chance which model had which of the two outcomes.

    The sign-flip (Fisher-Pitman) permutation test: how often is the difference at least as large when the two outcomes of every
    query are swapped at random? For a mean of 0/1 outcomes this is McNemar's test, and is computed exactly; for a mean of more
    than 1000 different differences it is normal; else `SWAPS` draws are made, and p = (1 + as large) / (1 + SWAPS).

    Args, Raises: as for `paired_difference`.
    """
    a, b = _outcomes(first, second)
    generator = np.random.default_rng(seed)
    if first.statistic == "median":
        return _swapped_medians(a, b, generator)
    weight = np.full(len(a), 1 / len(a)) if first.labels is None else _class_weights(first.labels)
    change = b - a
    if first.labels is None and np.isin(change, (-1, 0, 1)).all():
        return _mcnemar(int((change > 0).sum()), int((change < 0).sum()))
    return _flipped_signs(weight * change, generator)


def _outcomes(first: Rows, second: Rows) -> tuple[np.ndarray, np.ndarray]:
    same_labels = first.labels is second.labels or np.array_equal(first.labels, second.labels)  # type: ignore[arg-type]
    if len(first) != len(second) or first.statistic != second.statistic or not same_labels:
        raise ValueError("the rows differ in number, statistic or classes: they are not of the same queries")
    return first.values.astype(np.float64), second.values.astype(np.float64)


def _class_weights(labels: np.ndarray) -> np.ndarray:
    """The weight of every row in the mean over the classes."""
    present, place, count = np.unique(labels, return_inverse=True, return_counts=True)
    return 1 / (len(present) * count[place])


def _mcnemar(won: int, lost: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def _flipped_signs(part: np.ndarray, generator: np.random.Generator) -> float:
    """Of a sum of parts. Parts of equal size are flipped together: how many of them stay positive is binomial."""
    size, count = np.unique(np.abs(part[part != 0]), return_counts=True)
    if len(size) > MANY:
        return float(2 * ndtr(-abs(part.sum()) / np.sqrt(part @ part)))
    as_large = 0
    observed = abs(part.sum()) * (1 - 1e-9)
    for draws in _blocks(len(size)):
        positive = generator.binomial(count, 0.5, size=(draws, len(size)))
        as_large += int((np.abs((2 * positive - count) @ size) >= observed).sum())
    return (1 + as_large) / (1 + SWAPS)


def _swapped_medians(a: np.ndarray, b: np.ndarray, generator: np.random.Generator) -> float:
    observed, as_large = abs(np.median(b) - np.median(a)), 0
    for draws in _blocks(len(a)):
        swap = generator.random((draws, len(a))) < 0.5
        difference = np.median(np.where(swap, a, b), axis=1) - np.median(np.where(swap, b, a), axis=1)
        as_large += int((np.abs(difference) >= observed).sum())
    return (1 + as_large) / (1 + SWAPS)


def _blocks(width: int) -> list[int]:
    """`SWAPS` draws in parts of about 4 million numbers."""
    size = max(1, 2**22 // max(1, width))
    return [min(size, SWAPS - start) for start in range(0, SWAPS, size)]
