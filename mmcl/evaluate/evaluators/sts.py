"""Semantic textual similarity: rank correlation of cosines with human scores."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from mmcl.errors import UserError
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.measures.statistics import Estimate
from mmcl.evaluate.reporting.clusters import without_intervals
from mmcl.evaluate.reporting.metric import metric_rows
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.task import CachedModel, Task, needs, require_text
from mmcl.evaluate.validation import Array, same_width, unit_rows

EVALUATOR = "sts"
METRIC = "sts_spearman"


def sts(
    first_emb: Array, second_emb: Array, scores: Array | Sequence[float], *, data: str = "", model: str = "trained"
) -> Report:
    """Computes Spearman's rank correlation of cosines and human scores over pairs of texts, as in SentEval's STS tasks.

    Equal values get the mean of their ranks. If all cosines are equal, the correlation is undefined and counts as 0.

    Args:
        first_emb, second_emb: finite rows [N, D] of the two texts of every pair; they are scaled to unit length.
        scores: finite numbers [N], in any range; higher means more similar.
        data, model: names of the data and the model in the report.

    Returns:
        `sts_spearman`, from -1 to 1.

    Raises:
        UserError: shapes do not match, a number is not finite, there are fewer than two pairs, or all scores are equal.

    Example:
        >>> first, second = np.eye(2)[[0, 0, 0]], np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> round(sts(first, second, scores=[5.0, 3.0, 0.0])["sts_spearman"], 4)
        1.0
    """
    first, second = unit_rows(first_emb, "first_emb"), unit_rows(second_emb, "second_emb")
    same_width(first, second, "first_emb and second_emb")
    if len(first) != len(second):
        raise UserError(f"first_emb has {len(first)} rows and second_emb {len(second)}; give one of each for every pair")
    cosine_N = (first.double() * second.double()).sum(1).cpu().numpy()
    return Report(metric_rows(EVALUATOR, data, model, {METRIC: _correlation(cosine_N, scores)}))


def _check(task: Task, has_text: bool) -> None:
    require_text(EVALUATOR, has_text)
    _require_order(_pairs(task)[2])


@needs(_check, reads=["positives", "scores"])
def evaluate_sts(model: CachedModel, task: Task) -> Report:
    """Evaluates `sts` on a source with scores, between each caption and its positive; with chance and bag-of-words cosines."""
    first, second, scores = _pairs(task)
    report = sts(model.encode_text(first), model.encode_text(second), scores, data=task.name, model=model.name)
    if task.baselines:
        words = _correlation(np.array([_word_cosine(*pair) for pair in zip(first, second, strict=True)]), scores)
        by_model = {"bag of words": words, "chance": statistics.exact(0.0, len(scores))}
        for name, estimate in by_model.items():
            report += Report(metric_rows(EVALUATOR, task.name, name, {METRIC: estimate}))
    return without_intervals(report, task.source.groups)


def spearman(x_N: np.ndarray, y_N: np.ndarray) -> Estimate:
    """Pearson's correlation of the ranks; 0, without an interval, if one side is constant."""
    n = len(x_N)
    x, y = ((rankdata(values) - (n + 1) / 2) / n for values in (x_N, y_N))
    xx, yy, xy = (float((a * b).mean()) for a, b in ((x, x), (y, y), (x, y)))
    if xx * yy == 0:
        return statistics.exact(0.0, n)
    value = float(np.clip(xy / np.sqrt(xx * yy), -1, 1))
    # A row affects the mean through its own ranks, and by adding one to the ranks of the rows above it.
    part_xy = x * y + _mean_above(x, y) + _mean_above(y, x)
    part_xx, part_yy = (a * a + 2 * _mean_above(a, a) for a in (x, y))
    influence = part_xy / np.sqrt(xx * yy) - value / 2 * (part_xx / xx + part_yy / yy)
    return statistics.correlation(value, influence - influence.mean())


def _mean_above(place_N: np.ndarray, weight_N: np.ndarray) -> np.ndarray:
    """For each row, the summed weights of the rows ranked above it, plus half of those tied with it, divided by N."""
    levels, level = np.unique(place_N, return_inverse=True)
    own = np.bincount(level, weight_N, len(levels))
    return np.asarray((own[::-1].cumsum()[::-1] - own / 2)[level] / len(place_N))


def _correlation(cosine_N: np.ndarray, scores: Array | Sequence[float]) -> Estimate:
    try:
        score_N = np.asarray(scores, np.float64)
    except (TypeError, ValueError):  # not numeric, or rows of different lengths
        score_N = np.full(1, np.nan)
    if score_N.shape != cosine_N.shape or not np.isfinite(score_N).all():
        raise UserError(f"scores must be {len(cosine_N)} finite numbers, one for each pair")
    _require_order(score_N)
    return spearman(cosine_N, score_N)


def _require_order(score_N: np.ndarray) -> None:
    if np.ptp(score_N) == 0:
        raise UserError("scores are all equal, so there is no order to agree with; give pairs of different scores")


def _pairs(task: Task) -> tuple[list[str], list[str], np.ndarray]:
    source = task.source
    if source.scores is None:
        raise UserError(f"{task.name}: has no scores of pairs, which {EVALUATOR} needs; in a table, `score_column` names them")
    samples = [source[index] for index in range(len(source))]
    for sample in samples:
        if not sample.check().captions or not sample.positives:
            raise UserError(f"{sample.name}: lacks a text of the pair")
    return [sample.captions[0] for sample in samples], [sample.positives[0] for sample in samples], source.scores


def _word_cosine(first: str, second: str) -> float:
    a, b = (Counter(re.findall(r"\w+", text.lower())) for text in (first, second))
    length = np.sqrt(float(sum(n * n for n in a.values()) * sum(n * n for n in b.values())))
    return sum(count * b[word] for word, count in a.items()) / length if length else 0.0
