"""The verdict on a report in words: what was measured, what is better or worse than what, and what is not significant."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmcl.evaluate.measures.outcomes import Outcomes
from mmcl.evaluate.measures.paired_tests import paired_difference, swap_test
from mmcl.evaluate.measures.statistics import Estimate, subtract
from mmcl.evaluate.reporting.metric import BASELINES, LABELED_PIXELS, Metric, N, lower_is_better, quoted, topic
from mmcl.evaluate.reporting.phrases import Wording, has_phrase, wording
from mmcl.terminal import listed

FLAG = "Caution: "
"""Start of a paragraph on a model that is not better than a baseline."""

_EXACT = "chance"
"""The baseline whose values are expectations, without error."""
LEVEL = 0.05
"""P-values below it are significant."""


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


def verdict(metrics: Iterable[Metric]) -> tuple[str, ...]:
    """Paragraphs of plain text, one for each evaluator and dataset.

    Each says what was measured on how many rows, and by how much the best model is better or worse than the other models and
    every baseline. Differences are tested on the same rows, or by the intervals where a report has no outcomes per row. If a
    model is not better than a baseline, the paragraph begins with `FLAG`.

    Example:
        >>> rows = ("pairs", "birds", "pairs_accuracy")
        >>> verdict([Metric(*rows, "trained", 0.9, 0.85, 0.94, 180), Metric(*rows, "chance", 0.5, None, None, 180)])
        ('pairs, birds: the right text is preferred in 90.0 % of 180 comparisons, better than chance (by 40.0 points).',)
    """
    valued = [metric for metric in metrics if metric.value is not None and math.isfinite(metric.value)]
    places = dict.fromkeys((metric.evaluator, metric.data) for metric in valued)
    return tuple(_paragraph([metric for metric in valued if (metric.evaluator, metric.data) == place]) for place in places)


def headlines(metrics: Iterable[N]) -> list[N]:
    """The first commonly quoted metric of each topic of an evaluator, of those that there are words for."""
    shown, of_topic = quoted(metrics), dict[str, N]()
    for metric in [one for one in shown if has_phrase(one.metric)] or shown[:1]:
        of_topic.setdefault(topic(metric.metric), metric)
    return list(of_topic.values())


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
    if metric.model == _EXACT:
        return Estimate(metric.value, metric.value, metric.value, metric.n)
    return Estimate(metric.value, metric.low, metric.high, metric.n)


def _paragraph(metrics: Sequence[Metric]) -> str:
    """Of one evaluator and dataset."""
    parts = [_sentence([one for one in metrics if one.metric == first.metric]) for first in headlines(metrics)]
    flag = FLAG if any(is_flagged for _, is_flagged in parts) else ""
    return flag + sentences(metrics[0].key[:2], [sentence for sentence, _ in parts])


def sentences(place: tuple[str, str], found: Sequence[str]) -> str:
    """A paragraph about an evaluator and a dataset; the sentences after the first get a capital letter."""
    first, *more = found
    return " ".join([f"{', '.join(filter(None, place))}: {first}", *(one[:1].upper() + one[1:] for one in more)])


def _sentence(metrics: Sequence[Metric]) -> tuple[str, bool]:
    """A sentence on one metric, and whether it is to be flagged: on the best model, then on others at a baseline."""
    models = [metric for metric in metrics if metric.model not in BASELINES] or list(metrics[:1])
    is_low = lower_is_better(metrics[0].metric)
    best = (min if is_low else max)(models, key=lambda metric: metric.value or 0.0)
    wording_ = wording(best)
    contrasts = [contrast(best, other) for other in metrics if other is not best]
    name = "" if best.model == "trained" or len(models) == 1 else f", best for {best.model} of {len(models)} models"
    clauses = [wording_.clause + name, *_clauses(contrasts, wording_)]
    behind = [_behind(model, metrics) for model in models if model is not best]
    sentence = ", ".join(clauses) + "." + "".join(behind)
    return sentence, any(map(_is_flagged, contrasts)) or any(behind)


def _is_flagged(one: Contrast) -> bool:
    return one.other in BASELINES and one.other != LABELED_PIXELS and one.is_significant is not None and not _is_better(one)


def _is_better(one: Contrast) -> bool:
    return bool(one.is_significant) and one.gain > 0


def _behind(model: Metric, metrics: Sequence[Metric]) -> str:
    """A sentence on the baselines that a model is not better than, if there are any."""
    lost = [one for one in (contrast(model, other) for other in metrics if other is not model) if _is_flagged(one)]
    return f" {model.model}: {'; '.join(_clauses(lost, wording(model)))}." if lost else ""


def _clauses(contrasts: Sequence[Contrast], how: Wording) -> list[str]:
    """What the model is worse than, what it does not differ from, what it is better than, and what was not tested."""

    def by_amount(own: Sequence[Contrast]) -> list[str]:
        return [f"{_name(one)} (by {how.amount(one.gain)})" for one in own]

    def with_change(own: Sequence[Contrast]) -> list[str]:
        return [f"{_name(one)} ({_change(one, how)})" for one in own]

    level = [one for one in contrasts if one.is_significant is False and one.gain != 0]
    lists = {
        "worse than": by_amount([one for one in contrasts if one.is_significant and one.gain < 0]),
        "as good as": [_name(one) for one in contrasts if one.is_significant is False and one.gain == 0],
        "no better than": with_change([one for one in level if one.other == _EXACT]),
        "not significantly different from": with_change([one for one in level if one.other != _EXACT]),
        "better than": by_amount([one for one in contrasts if _is_better(one)]),
        "not tested, for lack of an interval, against": with_change([one for one in contrasts if one.is_significant is None]),
    }
    return [f"{relation} {listed(items)}" for relation, items in lists.items() if items]


def _change(one: Contrast, how: Wording) -> str:
    """A gain with its interval: "+0.5 points [-1.2, 2.2]"."""
    interval = "" if one.low is None or one.high is None else f" [{how.bare(one.low)}, {how.bare(one.high)}]"
    return f"{how.bare(one.gain, sign='+')}{' points' if how.is_share else ''}{interval}"


def _name(one: Contrast) -> str:
    return BASELINES.get(one.other, one.other)
