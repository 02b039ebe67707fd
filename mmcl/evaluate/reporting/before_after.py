"""What a fine-tuning changed: what was gained on the new data, and what was lost on the old."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from mmcl.evaluate.reporting.contrasts import Contrast, contrast, headlines
from mmcl.evaluate.reporting.metric import Metric, label
from mmcl.evaluate.reporting.phrases import wording

_TRAINED, _START = "trained", "before"
_NO_SCORES = ("embedding_map", "geometry")
"""Evaluators whose numbers describe embeddings, and are neither good nor bad."""
_UNKNOWN = (
    "What was forgotten is not known, because no old data were evaluated: give some (mmcl finetune --keep DATA, or keep: true "
    "for an evaluator)."
)

Change = tuple[Metric, Contrast]
"""A score of the result, and its difference to that of the start."""


def before_and_after(metrics: Iterable[Metric], old: Collection[str] = ()) -> str:
    """Returns a paragraph on the scores of "trained" against "before"; "" if there are none of both.

    Differences are tested on the same rows, with the paired interval.

    Args:
        metrics: of a report.
        old: labels of the data that the model knew before; all others are new.

    Example:
        >>> names = ("pairs", "birds", "pairs_accuracy")
        >>> rows = [Metric(*names, "trained", 0.9, None, None, 180), Metric(*names, "before", 0.8, None, None, 180)]
        >>> before_and_after(rows, old=["birds"])
        'Fine-tuning changed no score of the old data significantly. Old, birds: pairs accuracy +10.0 points (not tested).'
    """
    changes = _changes([metric for metric in metrics if metric.value is not None])
    if not changes:
        return ""
    sides = {side: {place: own for place, own in changes.items() if (place[1] in old) == (side == "old")} for side in _SIDES}
    outcomes = {side: [one for changed in own.values() for one in changed] for side, own in sides.items() if own}
    lists = [_listed(side, data, own) for side in _SIDES for (_, data), own in sides[side].items()]
    return " ".join([f"Fine-tuning {_opening(outcomes)}.", *lists, *([] if sides["old"] else [_UNKNOWN])])


_SIDES = ("new", "old")


def _changes(metrics: Sequence[Metric]) -> dict[tuple[str, str], list[Change]]:
    """The commonly quoted scores that both models have, by evaluator and dataset."""
    start = {metric.key[:3]: metric for metric in metrics if metric.model == _START}
    found: dict[tuple[str, str], list[Metric]] = {}
    for metric in metrics:
        if metric.model == _TRAINED and metric.key[:3] in start and metric.evaluator not in _NO_SCORES:
            found.setdefault(metric.key[:2], []).append(metric)
    return {place: [(one, contrast(one, start[one.key[:3]])) for one in headlines(own)] for place, own in found.items()}


def _opening(outcomes: Mapping[str, Sequence[Change]]) -> str:
    """What happened on each side, as a predicate."""
    if len(outcomes) > 1 and not any(one.is_significant for changes in outcomes.values() for _, one in changes):
        return "changed no score significantly, neither of the new data nor of the old"
    return ", and ".join(_outcome(side, changes) for side, changes in outcomes.items())


def _outcome(side: str, changes: Sequence[Change]) -> str:
    """What the significant differences are: "gained on the new data"."""
    gains = {one.gain > 0 for _, one in changes if one.is_significant}
    words = [word for word, is_gain in (("gained", True), ("lost", False)) if is_gain in gains]
    return f"{' and '.join(words)} on the {side} data" if words else f"changed no score of the {side} data significantly"


def _listed(side: str, data: str, changes: Sequence[Change]) -> str:
    """As in "New, held_out: text → image R@1 +3.1 points [1.2, 5.0]."."""
    return f"{side.capitalize()}, {data}: {', '.join(_change(*one) for one in changes)}."


def _change(metric: Metric, one: Contrast) -> str:
    how = wording(metric)
    amount = f"{how.bare(one.gain, sign='+')}{' points' if how.is_share else ''}"
    interval = "" if one.low is None or one.high is None else f" [{how.bare(one.low)}, {how.bare(one.high)}]"
    test = {True: "", False: " (not significant)", None: " (not tested)"}[one.is_significant]
    return f"{label(metric.metric)} {amount}{interval}{test}"
