"""The verdict on a report in words: what was measured, what is better or worse than what, and what is not significant."""

from __future__ import annotations

import itertools
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

    Maps are left out, unless there is nothing else. Metrics for which everything compares alike share a sentence.

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
    parts = [_sentence(alike) for alike in _alike(scores)]
    flag = FLAG if any(is_flagged for _, is_flagged in parts) else ""
    return flag + sentences(place, [sentence for sentence, _ in parts])


def _alike(scores: Sequence[Score]) -> list[list[Score]]:
    """Puts successive scores of one model together that stand in the same relations to the same others."""

    def standing(numbered: tuple[int, Score]) -> object:
        number, score = numbered
        relations = [(one.other, _relation(one)) for one in score.contrasts[score.best.model]]
        return number if len(score.contrasts) > 1 or not relations else (wording(score.best).is_share, relations)

    return [[score for _, score in own] for _, own in itertools.groupby(enumerate(scores), standing)]


def sentences(place: Place, found: Sequence[str]) -> str:
    """A paragraph about an evaluator and a dataset; the sentences after the first get a capital letter."""
    first, *more = found
    return " ".join([f"{place_name(place)}: {first}", *(one[:1].upper() + one[1:] for one in more)])


def _sentence(scores: Sequence[Score]) -> tuple[str, bool]:
    """A sentence on metrics that are alike, on the best model and then on others at a baseline; whether it is to be flagged."""
    first, hows = scores[0], [wording(score.best) for score in scores]
    best, count = first.best.model, len(first.contrasts)
    name = "" if best == "trained" or count == 1 else f", best for {best} of {count} models"
    own = zip(*(score.contrasts[best] for score in scores), strict=True)
    clauses = [listed([how.clause for how in hows]) + name, *_clauses(own, hows)]
    flagged = {model: [one for one in ones if _is_flagged(one)] for model, ones in first.contrasts.items()}
    behind = [
        f" {model}: {'; '.join(_clauses(zip(lost), hows[:1]))}." for model, lost in flagged.items() if lost and model != best
    ]
    return f"{', '.join(clauses)}.{''.join(behind)}", any(flagged.values())


def _is_flagged(one: Contrast) -> bool:
    return is_rival(one) and one.is_significant is not None and not is_better(one)


_UNTESTED = "not tested, for lack of an interval, against"
_RELATIONS = ("worse than", "as good as", "no better than", "not significantly different from", "better than", _UNTESTED)
"""In the order of a sentence."""


def _relation(one: Contrast) -> str:
    if one.is_significant is None:
        return _UNTESTED
    if one.gain == 0:
        return "as good as"
    if one.is_significant:
        return "better than" if one.gain > 0 else "worse than"
    return "no better than" if one.other == EXACT else "not significantly different from"


def _clauses(contrasts: Iterable[Sequence[Contrast]], hows: Sequence[Wording]) -> list[str]:
    """What the model is worse than, what it does not differ from, what it is better than, and what was not tested.

    Args:
        contrasts: with one model or baseline, for each of several metrics; in one relation.
        hows: wording of these metrics.
    """
    items: dict[str, list[str]] = {relation: [] for relation in _RELATIONS}
    for ones in contrasts:
        relation = _relation(ones[0])
        items[relation].append(_name(ones[0]) + _amounts(relation, ones, hows))
    return [f"{relation} {listed(names)}" for relation, names in items.items() if names]


def _amounts(relation: str, ones: Sequence[Contrast], hows: Sequence[Wording]) -> str:
    """By how much, such as " (by 30.0 and 12.5 points)"; with its interval if a difference is not significant."""
    if relation == "as good as":
        return ""
    if relation not in ("better than", "worse than"):
        return f" ({listed([_change(one, how) for one, how in zip(ones, hows, strict=True)])})"
    sizes = listed([how.bare(abs(one.gain)) for one, how in zip(ones, hows, strict=True)])
    return f" (by {sizes}{' points' if hows[0].is_share else ''})"


def _change(one: Contrast, how: Wording) -> str:
    """A gain with its interval: "+0.5 points [-1.2, 2.2]"."""
    interval = "" if one.low is None or one.high is None else f" [{how.bare(one.low)}, {how.bare(one.high)}]"
    return f"{how.bare(one.gain, sign='+')}{' points' if how.is_share else ''}{interval}"


def _name(one: Contrast) -> str:
    return BASELINES.get(one.other, one.other)
