"""What metrics are called in sentences."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmcl.evaluate.reporting.metric import Metric, bare_name, name_parts
from mmcl.terminal import counted


@dataclass(frozen=True, slots=True)
class _Phrase:
    """A clause about a metric.

    Attributes:
        metric: regular expression of the metric's name.
        clause: with {value}, {rows}, and {0} for the first group of the expression.
        row: what a row is, in the singular.
        is_share: whether the value is a share, written as a percentage.
    """

    metric: re.Pattern[str]
    clause: str
    row: str
    is_share: bool = True


def _phrase(metric: str, clause: str, row: str = "image", *, is_share: bool = True) -> _Phrase:
    return _Phrase(re.compile(metric), clause, row, is_share)


_PHRASES = (
    _phrase(r"text_to_image_R@1", "the right image comes first for {value} of {rows}", "text"),
    _phrase(r"text_to_image_R@(\d+)", "the right image is among the first {0} for {value} of {rows}", "text"),
    _phrase(r"image_to_text_R@1", "the right text comes first for {value} of {rows}"),
    _phrase(r"image_to_text_R@(\d+)", "the right text is among the first {0} for {value} of {rows}"),
    _phrase(r"zero_shot_top1", "the text of the right class is the nearest for {value} of {rows}"),
    _phrase(r"zero_shot_top(\d+)", "the text of the right class is among the {0} nearest for {value} of {rows}"),
    _phrase(r"knn1_top1", "the nearest neighbor has the right class for {value} of {rows}"),
    _phrase(r"knn(\d+)_top1", "the {0} nearest neighbors vote for the right class for {value} of {rows}"),
    _phrase(r"linear_top1", "a linear probe names the right class of {value} of {rows}"),
    _phrase(r"few_shot_(\d+)_top1", "a linear probe with {0} per class names the right class of {value} of {rows}"),
    _phrase(r"few_shot_prompts_0_top1", "the text of the right class is the nearest for {value} of {rows}"),
    _phrase(r"few_shot_prompts_(\d+)_top1", "a probe from texts and {0} per class names the right class of {value} of {rows}"),
    _phrase(r"few_label_(.+)pct_finetuned_top1", "with {0} % of the labels, it names the right class of {value} of {rows}"),
    _phrase(r"few_label_(\d+)_per_class_finetuned_top1", "with {0} per class, it names the right class of {value} of {rows}"),
    _phrase(r"top1", "the classifier names the right class of {value} of {rows}"),
    _phrase(r"pairs_accuracy", "the right text is preferred in {value} of {rows}", "comparison"),
    _phrase(r"winoground_text", "both images prefer their own text in {value} of {rows}", "example"),
    _phrase(r"reject_(.+)_auroc", "known classes score higher ({0}) in {value} of all pairs of known and unknown in {rows}"),
    _phrase(r"pair_auroc", "an image with the class scores above one without it in {value} of all pairs in {rows}"),
    _phrase(r"decision_f1", "thresholds give an F1 of {value} on {rows} that they were not fitted on"),
    _phrase(r"zero_shot_mAP", "the mean average precision over {rows} is {value}", "label"),
    _phrase(r"accuracy_worst_group", "{value} of the worst group are right ({rows} in all groups)", "row"),
    _phrase(r"accuracy", "{value} of {rows} are right", "row"),
    _phrase(r"sts_spearman", "cosines of {rows} have a rank correlation of {value} with the scores", "pair", is_share=False),
    _phrase(r"(?:tsne|umap|pca)_trustworthiness@\d+", "the map of {rows} has a trustworthiness of {value}", is_share=False),
    _phrase(r"effective_rank", "the embeddings of {rows} have an effective rank of {value}", is_share=False),
)


@dataclass(frozen=True, slots=True)
class Wording:
    """How a metric is written in sentences.

    Attributes:
        clause: with its value and number of rows, such as "the right image comes first for 61.1 % of 1,906 texts".
        value: such as "61.1 %".
        row: what a row is, in the singular.
        is_share: whether the value is a percentage, and differences are in points.
        digits: of a value, after the point.
    """

    clause: str
    value: str
    row: str
    is_share: bool
    digits: int

    def bare(self, value: float, *, sign: str = "") -> str:
        """A difference as a number alone, which `sign` "+" gives a sign; a small one keeps a digit that is not 0."""
        return _number(100 * value if self.is_share else value, self.digits, sign)


def has_phrase(metric: str) -> bool:
    """Whether there is a clause for a metric of this name."""
    return any(phrase.metric.fullmatch(bare_name(metric)) for phrase in _PHRASES)


def wording(metric: Metric) -> Wording:
    """The clause about a metric, with its value and number of rows; for an unknown name, the name itself.

    Args:
        metric: with a value.

    Example:
        >>> wording(Metric("knn", "digits", "knn1_top1", "trained", 0.9, 0.85, 0.94, 180)).clause
        'the nearest neighbor has the right class for 90.0 % of 180 images'
    """
    assert metric.value is not None
    name = bare_name(metric.metric)
    found = ((phrase, match) for phrase in _PHRASES if (match := phrase.metric.fullmatch(name)))
    phrase, match = next(found, (_phrase("", "{name} is {value} on {rows}", "row", is_share=False), None))
    digits = 1 if phrase.is_share or "rank" in name_parts(name) else 3
    value = f"{100 * metric.value:.1f} %" if phrase.is_share else _number(metric.value, digits)
    groups = () if match is None else [group.replace("_", " ") for group in match.groups()]
    clause = phrase.clause.format(*groups, value=value, rows=counted(metric.n, phrase.row), name=metric.metric)
    return Wording(clause, value, phrase.row, phrase.is_share, digits)


_ROUNDING = 1e-9
"""Smaller numbers are what the rounding of larger ones leaves of 0."""


def _number(value: float, digits: int, sign: str = "") -> str:
    value = 0.0 if abs(value) < _ROUNDING else value
    is_small = 0 < abs(value) < 0.5 * 10**-digits
    return format(value, f"{sign}.1g") if is_small else format(value, f"{sign}.{digits}f")
