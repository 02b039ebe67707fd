"""The verdict on a report in words: what was measured, what is better or worse than what, and what is not significant."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from mmcl.evaluate.reporting.contrasts import EXACT, Contrast, Place, Score, is_better, is_rival, place_name, scores_of
from mmcl.evaluate.reporting.metric import BASELINES, Metric
from mmcl.evaluate.reporting.phrases import Wording, wording
from mmcl.evaluate.reporting.summary import summary
from mmcl.terminal import listed, short_paths

FLAG = "Caution: "
"""Start of a paragraph on a model that is not better than a baseline."""
TO_LOOK_AT = ("embedding_map",)
"""Evaluators that show the data; their numbers are on the picture, not on the model, and have no baseline."""
FEW_RESULTS = 4
"""Results, of a model on a dataset, that are read without a summary."""


def verdict(metrics: Iterable[Metric]) -> tuple[str, ...]:
    """Paragraphs of plain text, one for each evaluator and dataset; of many results, a summary comes first.

    Maps are left out, unless there is nothing else.

    Each says what was measured on how many rows, and by how much the best model is better or worse than the other models and
    every baseline. Differences are tested on the same rows, or by the intervals where a report has no outcomes per row. If a
    model is not better than a baseline, the paragraph begins with `FLAG`.

    Example:
        >>> rows = ("pairs", "birds", "pairs_accuracy")
        >>> verdict([Metric(*rows, "trained", 0.9, 0.85, 0.94, 180), Metric(*rows, "chance", 0.5, None, None, 180)])
        ('pairs, birds: the right text is preferred in 90.0 % of 180 comparisons, better than chance (by 40.0 points).',)
    """
    valued = _with_short_names([metric for metric in metrics if metric.value is not None and math.isfinite(metric.value)])
    every = dict.fromkeys(metric.key[:2] for metric in valued)
    places = [place for place in every if place[0] not in TO_LOOK_AT] or list(every)
    scores = {place: scores_of([metric for metric in valued if metric.key[:2] == place]) for place in places}
    results = {(place, model) for place, own in scores.items() for model in own[0].contrasts}
    opening = (summary(scores),) if len(results) > FEW_RESULTS else ()
    return (*opening, *(_paragraph(place, own) for place, own in scores.items()))


def _with_short_names(metrics: Sequence[Metric]) -> list[Metric]:
    """Metrics whose models are named by the ends of their paths, if these are long."""
    names = list(dict.fromkeys(metric.model for metric in metrics))
    short = dict(zip(names, short_paths(names), strict=True))
    return [replace(metric, model=short[metric.model]) for metric in metrics]


def _paragraph(place: Place, scores: Sequence[Score]) -> str:
    """Of one evaluator and dataset."""
    parts = [_sentence(score) for score in scores]
    flag = FLAG if any(is_flagged for _, is_flagged in parts) else ""
    return flag + sentences(place, [sentence for sentence, _ in parts])


def sentences(place: Place, found: Sequence[str]) -> str:
    """A paragraph about an evaluator and a dataset; the sentences after the first get a capital letter."""
    first, *more = found
    return " ".join([f"{place_name(place)}: {first}", *(one[:1].upper() + one[1:] for one in more)])


def _sentence(score: Score) -> tuple[str, bool]:
    """A sentence on one metric, and whether it is to be flagged: on the best model, then on others at a baseline."""
    how, best = wording(score.best), score.best.model
    count = len(score.contrasts)
    name = "" if best == "trained" or count == 1 else f", best for {best} of {count} models"
    clauses = [how.clause + name, *_clauses(score.contrasts[best], how)]
    flagged = {model: [one for one in own if _is_flagged(one)] for model, own in score.contrasts.items()}
    behind = [f" {model}: {'; '.join(_clauses(lost, how))}." for model, lost in flagged.items() if lost and model != best]
    return f"{', '.join(clauses)}.{''.join(behind)}", any(flagged.values())


def _is_flagged(one: Contrast) -> bool:
    return is_rival(one) and one.is_significant is not None and not is_better(one)


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
        "no better than": with_change([one for one in level if one.other == EXACT]),
        "not significantly different from": with_change([one for one in level if one.other != EXACT]),
        "better than": by_amount([one for one in contrasts if is_better(one)]),
        "not tested, for lack of an interval, against": with_change([one for one in contrasts if one.is_significant is None]),
    }
    return [f"{relation} {listed(items)}" for relation, items in lists.items() if items]


def _change(one: Contrast, how: Wording) -> str:
    """A gain with its interval: "+0.5 points [-1.2, 2.2]"."""
    interval = "" if one.low is None or one.high is None else f" [{how.bare(one.low)}, {how.bare(one.high)}]"
    return f"{how.bare(one.gain, sign='+')}{' points' if how.is_share else ''}{interval}"


def _name(one: Contrast) -> str:
    return BASELINES.get(one.other, one.other)
