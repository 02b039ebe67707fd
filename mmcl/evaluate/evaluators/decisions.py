"""Yes/no decisions by thresholds, which are fitted on one part of the images and reported on the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mmcl.errors import UserError
from mmcl.evaluate.measures import detection, statistics
from mmcl.evaluate.measures.detection import Clusters, Detection, MeanDetection
from mmcl.evaluate.measures.statistics import Estimate
from mmcl.evaluate.measures.thresholds import FEWEST, Criterion, CriterionName, calibration_part
from mmcl.evaluate.reporting.clusters import clusters_note
from mmcl.evaluate.reporting.metric import ALWAYS_YES, metric_rows, of_class
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.validation import Array, Values, as_tensor, cluster_numbers
from mmcl.terminal import counted, listed, shortened

EVALUATOR = "decisions"
METRICS = ("precision", "recall", "specificity", "f1")
_SHOWN = 10
"""Classes that a note names."""
Column = Callable[[int], np.ndarray]
"""The scores of all images for a class, float64 [N]."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """The threshold of a class and what it was fitted on.

    Attributes:
        threshold: yes if the score is as high; None without one.
        reason: why there is none.
        fitted_on, fitted_positives: images of the calibration part whose answer is known, and those with a yes.
    """

    threshold: float | None
    reason: str
    fitted_on: int
    fitted_positives: int


def decisions(
    score_NC: Array,
    target_NC: Array | Sequence[Sequence[int]],
    *,
    ids: Values | None = None,
    clusters: Values | None = None,
    criterion: CriterionName = "f1",
    floor: float | None = None,
    calibration: float = 0.5,
    class_names: Sequence[str] | None = None,
    baselines: bool = False,
    data: str = "",
    model: str = "trained",
) -> Report:
    """Fits a threshold for each class on one part of the images, and reports its decisions on the other part.

    Which part an image is in depends on its id alone. A class needs 10 images with and 10 without it in each part; else it has
    no threshold.

    Args:
        score_NC: finite scores [N, C] of any scale, higher for images that show the class.
        target_NC: [N, C], 1 where the image shows the class, 0 where not, -1 where that is unknown.
        ids: integers or strings [N], equal for images that must be in the same part.
        clusters: integers or strings [N], equal for images that were drawn together, such as those of one patient: they are in
            the same part, and the intervals treat them as one draw. Give ids, clusters or both; with both, clusters decide.
        criterion: of the threshold: "f1" or "youden" for the largest F1 or recall + specificity; "recall", "precision" or
            "specificity" for the best threshold that keeps to a `floor`.
        floor: smallest value of the last three on the calibration part, above 0 and at most 1.
        calibration: expected share of the calibration part.
        class_names: C names.
        baselines: also reports "always yes", which gives every image every class: its precision is the share of images with it.
        data, model: names of the data and the model in the report.

    Returns:
        `decision_precision`, `decision_recall`, `decision_specificity` and `decision_f1`: means over the classes with a
        threshold, and of every class, such as `decision_f1[dog]`. `details` has the thresholds and the counts.

    Raises:
        UserError: shapes do not match, a score is not finite, a target is not 1, 0 or -1, an argument is out of range, or there
            are neither ids nor clusters.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> target = rng.integers(2, size=(200, 1))
        >>> report = decisions(target + rng.normal(size=(200, 1)), target, ids=np.arange(200), criterion="recall", floor=0.9)
        >>> report["decision_f1"] is not None
        True
    """
    score = _checked_scores(score_NC)
    target = checked_targets(target_NC, *score.shape)
    names = checked_names(class_names, score.shape[1])
    if ids is None and clusters is None:
        raise UserError("decisions: give ids or clusters, which say what must not be divided between the two parts")
    kept = clusters if clusters is not None else ids
    assert kept is not None
    is_fitted = calibration_part(kept, len(score), calibration)
    return decide(
        lambda number: score[:, number],
        target,
        is_fitted,
        Criterion(criterion, floor),
        names,
        clusters=cluster_numbers(clusters, len(score)),
        baselines=baselines,
        place=(EVALUATOR, data, model),
    )


def decide(
    scores: Column,
    target_NC: np.ndarray,
    is_fitted: np.ndarray,
    criterion: Criterion,
    names: Sequence[str],
    *,
    clusters: np.ndarray | None,
    baselines: bool,
    place: tuple[str, str, str],
) -> Report:
    """Fits and reports thresholds, see `decisions`.

    Args:
        target_NC: int8, 1, 0 or -1.
        is_fitted: bool [N], whether an image is of the calibration part.
        baselines: whether "always yes" is reported, too.
        place: names of the evaluator, the data and the model.
    """
    rest = np.flatnonzero(~is_fitted)
    of_model, of_yes = (_Totals(rest, clusters, *target_NC.shape) for _ in range(2))
    thresholds: list[Threshold] = []
    table: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        score_N, target_N = scores(number), target_NC[:, number]
        found = _fitted(score_N, target_N, is_fitted, criterion)
        thresholds.append(found)
        answer_R = target_N[rest]
        own = {"class": name, **asdict(found), **_counts(answer_R, None)}
        if found.threshold is not None:
            said_R = score_N[rest] >= found.threshold
            values = of_model.add(name, said_R, answer_R)
            own |= _counts(answer_R, said_R) | values
            of_yes.add(name, np.ones(len(rest), bool), answer_R)
        table.append(own)
    evaluator, data, model = place
    metrics = metric_rows(evaluator, data, model, of_model.estimates())
    if baselines:
        metrics += metric_rows(evaluator, data, ALWAYS_YES, of_yes.estimates())
    columns = {key: [row.get(key) for row in table] for key in _COLUMNS}
    return Report(
        metrics,
        (*_notes(place[:2], thresholds, names, is_fitted, criterion), *clusters_note(evaluator, data, clusters)),
        {f"decisions: {', '.join(filter(None, place))}": columns},
    )


_COLUMNS = (
    *("class", "threshold", "reason", "fitted_on", "fitted_positives", "n", "positives", "prevalence"),
    *("true_positives", "false_positives", "false_negatives", "true_negatives", *METRICS),
)


def _fitted(score_N: np.ndarray, target_N: np.ndarray, is_fitted: np.ndarray, criterion: Criterion) -> Threshold:
    known = target_N >= 0
    fit, rest = known & is_fitted, known & ~is_fitted
    target = target_N == 1
    positives = int((target & fit).sum())
    least = min((part & side).sum() for part in (fit, rest) for side in (target, ~target))
    if least < FEWEST:
        return Threshold(None, f"fewer than {FEWEST} images with or without it in a part", int(fit.sum()), positives)
    threshold = criterion.fit(score_N[fit], target[fit])
    reason = ""
    if threshold is None:
        equal = np.ptp(score_N[fit]) == 0
        reason = "all scores are equal" if equal else f"no threshold has a {criterion.name} of {criterion.floor}"
    return Threshold(threshold, reason, int(fit.sum()), positives)


class _Totals:
    """Statistics of decisions by class, and their means; unknown answers are left out.

    Args:
        rest: int64 [R], the rows of the images that no threshold was fitted on.
        clusters: int64 [N], or None if every image is its own.
        images, classes: N, and the number of classes, with a threshold or not.
    """

    def __init__(self, rest: np.ndarray, clusters: np.ndarray | None, images: int, classes: int):
        self._rest, self._images, self._classes = rest, images, classes
        self._clusters = None if clusters is None else clusters[rest]
        self._all_clusters = Clusters.of(clusters, images)
        self._by_class: dict[str, Estimate] = {}
        self._means = {metric: MeanDetection(images, len(rest)) for metric in METRICS}

    def add(self, name: str, said_R: np.ndarray, answer_R: np.ndarray) -> dict[str, float | None]:
        """Adds the decisions on a class, and returns their statistics."""
        is_known, rows = answer_R >= 0, Clusters.of(self._clusters, len(answer_R))
        said, yes, no = said_R & is_known, answer_R == 1, answer_R == 0
        of_shares = {"precision": (yes, said), "recall": (said, yes), "specificity": (~said, no)}
        found: dict[str, Detection | None] = {key: detection.share(hit, of, rows) for key, (hit, of) in of_shares.items()}
        f1 = detection.f1(said, yes, rows)
        found["f1"] = f1 and replace(f1, rows=int(is_known.sum()))
        answer_N = np.full(self._images, -1)
        answer_N[self._rest] = answer_R
        asked_N = detection.digest_of_question(name, answer_N)
        for metric, one in found.items():
            key = of_class(f"decision_{metric}", name)
            if one is None:
                self._by_class[key] = statistics.exact(None, int(is_known.sum()))
                continue
            own = self._share(*of_shares[metric]) if metric in of_shares else one.estimate(rows)
            of_all = one.spread(self._rest, self._images)
            self._means[metric].add(of_all, asked_N)
            is_compared = self._classes <= detection.MOST_COMPARED
            self._by_class[key] = detection.comparable(own, of_all, asked_N, self._all_clusters) if is_compared else own
        return {metric: None if one is None else one.value for metric, one in found.items()}

    def estimates(self) -> dict[str, Estimate]:
        """The means, and if there are several classes, the statistics of each; nothing without a threshold."""
        if not self._by_class:
            return {}
        means = {f"decision_{metric}": mean.estimate(self._all_clusters) for metric, mean in self._means.items()}
        return means | (self._by_class if self._classes > 1 else {})

    def _share(self, hit_R: np.ndarray, of_R: np.ndarray) -> Estimate:
        found = statistics.mean(hit_R[of_R], clusters=None if self._clusters is None else self._clusters[of_R])
        return replace(found, outcomes=None)  # those of a precision are of other rows with another model


def _counts(answer_R: np.ndarray, said_R: np.ndarray | None) -> dict[str, Any]:
    yes, no = answer_R == 1, answer_R == 0
    n, positives = int((yes | no).sum()), int(yes.sum())
    found = {"n": n, "positives": positives, "prevalence": positives / n if n else None}
    if said_R is None:
        return found
    counts = {
        "true_positives": yes & said_R,
        "false_positives": no & said_R,
        "false_negatives": yes & ~said_R,
        "true_negatives": no & ~said_R,
    }
    return found | {key: int(rows.sum()) for key, rows in counts.items()}


def _notes(
    place: tuple[str, str], thresholds: Sequence[Threshold], names: Sequence[str], is_fitted: np.ndarray, criterion: Criterion
) -> tuple[str, ...]:
    where = ", ".join(filter(None, place))
    reasons: dict[str, list[str]] = {}
    for one, name in zip(thresholds, names, strict=True):
        reasons.setdefault(one.reason, []).append(name)
    fitted, rest = int(is_fitted.sum()), int((~is_fitted).sum())
    without = [f"{where}: no threshold for {_some(found)}: {reason}." for reason, found in reasons.items() if reason]
    if "" not in reasons:
        return tuple(without)
    return (
        f"{where}: thresholds have {criterion} on {counted(fitted, 'image')}, chosen by a hash of group or "
        f"id; precision, recall, specificity and F1 are of the other {rest:,}.",
        f"{where}: the thresholds hold for this model, this collection and its share of each class: elsewhere, fit them again. "
        "Where a class is rarer, fewer of the images that get a yes show it, even at the same recall and specificity.",
        *without,
    )


def _some(names: Sequence[str]) -> str:
    shown = [shortened(name, 40) for name in names[:_SHOWN]]
    return listed([*shown, f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else shown)


def _checked_scores(score_NC: Array) -> np.ndarray:
    score = as_tensor(score_NC, "score_NC").detach().cpu().double().numpy()
    if score.ndim != 2 or 0 in score.shape:
        raise UserError(f"score_NC must be [N, C] with N, C >= 1, not {list(score.shape)}")
    bad = np.flatnonzero(~np.isfinite(score).all(axis=1))
    if len(bad):
        raise UserError(f"score_NC has {len(bad)} rows that are not finite, first row {bad[0]}; fix the model, not the score")
    return score


def checked_targets(target_NC: Array | Sequence[Sequence[int]], rows: int, classes: int) -> np.ndarray:
    """Checks answers: int8 [N, C]. Raises UserError unless each is 1, 0 or -1, and some class has a yes and a no."""
    target = as_tensor(target_NC, "target_NC").cpu().numpy()
    if target.shape != (rows, classes) or not np.isin(target, (-1, 0, 1)).all():
        raise UserError(f"target_NC must be {rows} x {classes} of 1, 0 and -1, not {target.dtype} {list(target.shape)}")
    require_both(target)
    return target.astype(np.int8)


def require_both(target_NC: np.ndarray, where: str = "target_NC") -> None:
    """Raises UserError if no class has a yes and a no."""
    if not ((target_NC == 1).any(axis=0) & (target_NC == 0).any(axis=0)).any():
        raise UserError(f"{where}: no class has both images with it and images without it, so there is nothing to tell apart")


def checked_names(class_names: Sequence[str] | None, classes: int) -> list[str]:
    """Names of the classes; by default their numbers. Raises UserError for another number of names, or equal ones."""
    names = [str(name) for name in class_names or range(classes)]
    if len(names) != classes or len(set(names)) != classes:
        raise UserError(f"class_names must be {classes} different names, one for each column, not {len(set(names))}")
    return names
