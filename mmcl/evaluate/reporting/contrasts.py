"""Contrasts of models with each other and with baselines: how much better one is, and whether that is significant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mmcl.evaluate.measures.outcomes import Outcomes
from mmcl.evaluate.measures.paired_tests import paired_difference, swap_test
from mmcl.evaluate.measures.statistics import Estimate, subtract
from mmcl.evaluate.reporting.metric import BASELINES, LABELED_PIXELS, Metric, N, lower_is_better, quoted, topic
from mmcl.evaluate.reporting.phrases import has_phrase

EXACT = "chance"
"""The baseline whose values are expectations, without error."""
LEVEL = 0.05
"""P-values below it are significant."""

Place = tuple[str, str]
"""An evaluator and a dataset."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """A metric of a model against that of another one.

    Attributes:
        other: name of the other model or baseline.
        gain, low, high: how much better the model is, with the 95 % interval; below 0 if it is worse.
        is_significant: None if there is no test, as for values without outcomes per row or intervals.
    """

    other: str
    gain: float
    low: float | None
    high: float | None
    is_significant: bool | None


@dataclass(frozen=True, slots=True)
class Score:
    """A metric of an evaluator on a dataset.

    Attributes:
        best: of the model that is best.
        contrasts: by model, the best one against all others, the others against the baselines.
    """

    best: Metric
    contrasts: Mapping[str, Sequence[Contrast]]


def place_name(place: Place) -> str:
    """As in "knn, digits"."""
    return ", ".join(filter(None, place))


def headlines(metrics: Iterable[N]) -> list[N]:
    """The first commonly quoted metric of each topic of an evaluator, of those that there are words for."""
    shown, of_topic = quoted(metrics), dict[str, N]()
    for metric in [one for one in shown if has_phrase(one.metric)] or shown[:1]:
        of_topic.setdefault(topic(metric.metric), metric)
    return list(of_topic.values())


def scores_of(metrics: Sequence[Metric]) -> list[Score]:
    """The scores of one evaluator and dataset."""
    return [_score([one for one in metrics if one.metric == first.metric]) for first in headlines(metrics)]


def _score(metrics: Sequence[Metric]) -> Score:
    models = [metric for metric in metrics if metric.model not in BASELINES] or list(metrics[:1])
    best = (min if lower_is_better(metrics[0].metric) else max)(models, key=lambda metric: metric.value or 0.0)
    baselines = [metric for metric in metrics if metric.model in BASELINES]
    against = {model.model: metrics if model is best else baselines for model in models}
    contrasts = {model.model: [contrast(model, one) for one in against[model.model] if one is not model] for model in models}
    return Score(best, contrasts)


def contrast(model: Metric, other: Metric) -> Contrast:
    """How much better a model is than another one on a metric, both with a value."""
    found, is_significant = _difference(model, other)
    assert found.value is not None
    if not lower_is_better(model.metric):
        return Contrast(other.model, found.value, found.low, found.high, is_significant)
    low, high = (None, None) if found.low is None or found.high is None else (-found.high, -found.low)
    return Contrast(other.model, -found.value, low, high, is_significant)


def _difference(model: Metric, other: Metric) -> tuple[Estimate, bool | None]:
    if model.outcomes is not None and other.outcomes is not None and _are_of_equal_queries(model.outcomes, other.outcomes):
        found = paired_difference(other.outcomes, model.outcomes)
        if found.low is None:
            return found, swap_test(other.outcomes, model.outcomes) < LEVEL
    else:
        found = subtract(_estimate(model), _estimate(other))
    if found.low is None or found.high is None:
        return found, None
    return found, found.low > 0 or found.high < 0


def _are_of_equal_queries(a: Outcomes, b: Outcomes) -> bool:
    try:
        paired_difference(a, b)
    except ValueError:
        return False
    return True


def _estimate(metric: Metric) -> Estimate:
    if metric.model == EXACT:
        return Estimate(metric.value, metric.value, metric.value, metric.n)
    return Estimate(metric.value, metric.low, metric.high, metric.n)


def is_rival(one: Contrast) -> bool:
    """Whether the other is a baseline that knows no more than the model does."""
    return one.other in BASELINES and one.other != LABELED_PIXELS


def is_better(one: Contrast) -> bool:
    """Whether the model is significantly better."""
    return bool(one.is_significant) and one.gain > 0
