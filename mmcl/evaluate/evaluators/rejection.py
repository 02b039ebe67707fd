"""Open-set rejection of a zero-shot classifier by a threshold on one score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmcl.errors import UserError
from mmcl.evaluate.measures import detection, statistics
from mmcl.evaluate.measures.calibration import probabilities
from mmcl.evaluate.measures.detection import Clusters
from mmcl.evaluate.measures.statistics import Estimate
from mmcl.evaluate.prompts import Templates, class_embeddings
from mmcl.evaluate.reporting.clusters import without_intervals
from mmcl.evaluate.reporting.metric import metric_rows
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.task import CachedModel, Task, needs, require_text
from mmcl.evaluate.validation import Array, same_width, unit_rows

EVALUATOR = "zero_shot_reject"
KEPT = 0.95
_FEWEST_KNOWN = 100


def zero_shot_reject(
    known_emb: Array,
    unknown_emb: Array,
    class_emb: Array,
    *,
    background_emb: Array | None = None,
    logit_scale: float | None = None,
    logit_bias: float | None = None,
    data: str = "",
    model: str = "trained",
) -> Report:
    """Evaluates how well images of the classes are separated from images of other classes.

    Args:
        known_emb, unknown_emb: finite rows [N, D], [M, D]: images of one of the classes, and of none of them.
        class_emb: [C, D], as returned by `class_embeddings`.
        background_emb: [B, D], prompts that stand for everything else, such as "a photo".
        logit_scale, logit_bias: those of the model; without a scale, probabilities are left out.
        data, model: names of the data and the model in the report.

    Returns:
        Two metrics for each score, where a higher score means "known". The scores:
        `max_cosine`, the cosine with the nearest class; with a scale, `max_probability`, that of the most probable class
        (Hendrycks & Gimpel, 2017); with background prompts, `background`, the largest cosine with a class minus the largest
        cosine with a background prompt. The metrics, here of the first score:
        `reject_max_cosine_auroc`, the probability that a known image scores higher than an unknown one, ties counted half, and
        `reject_max_cosine_fpr95`, the share of unknown images accepted at a threshold that accepts at least 95 % of the known
        ones. The latter has an interval only for 100 or more known images, see `false_positive_rate`.

    Raises:
        UserError: shapes do not match, or an embedding is not finite.

    Example:
        >>> known, unknown, classes = np.eye(4)[:2], np.eye(4)[2:], np.eye(4)[:2]
        >>> zero_shot_reject(known, unknown, classes)["reject_max_cosine_auroc"]
        1.0
    """
    known, unknown = unit_rows(known_emb, "known_emb"), unit_rows(unknown_emb, "unknown_emb")
    classes = unit_rows(class_emb, "class_emb")
    same_width(known, classes, "known_emb and class_emb")
    same_width(unknown, classes, "unknown_emb and class_emb")
    cosine = (torch.cat([known, unknown]).double() @ classes.double().T).float()
    scores = {"max_cosine": cosine.amax(dim=1)}
    if logit_scale is not None:
        scores["max_probability"] = probabilities(cosine.double(), logit_scale, logit_bias).amax(dim=1)
    if background_emb is not None:
        background = unit_rows(background_emb, "background_emb")
        same_width(background, classes, "background_emb and class_emb")
        nearest = (torch.cat([known, unknown]).double() @ background.double().T).float().amax(dim=1)
        scores["background"] = scores["max_cosine"] - nearest
    estimates: dict[str, Estimate] = {}
    for name, score in scores.items():
        inside, outside = np.split(score.cpu().numpy(), [len(known)])
        for metric, value in {"auroc": auroc, "fpr95": false_positive_rate}.items():
            estimates[f"reject_{name}_{metric}"] = value(inside, outside)
    return Report(metric_rows(EVALUATOR, data, model, estimates))


def _check(task: Task, has_text: bool, *, unknown: Sequence[str], **_: Any) -> None:
    require_text(EVALUATOR, has_text)
    names = list(task.source.class_names or ())
    missing = [name for name in unknown if name not in names]
    if missing or not 0 < len(set(unknown)) < len(names):
        raise UserError(f"{EVALUATOR}: unknown must be one or more of the class names of {task.name}, not all, not {unknown!r}")
    outside = np.isin(task.labels, [names.index(name) for name in unknown])
    if outside.all() or not outside.any():
        raise UserError(f"{EVALUATOR}: {task.name} must have images of the unknown classes and of others")


@needs(_check, test_args={"unknown": ["pattern 0"], "background": ["pattern 1"]})
def evaluate_zero_shot_reject(
    model: CachedModel,
    task: Task,
    *,
    unknown: Sequence[str],
    background: Sequence[str] = ("a photo",),
    templates: Templates | None = None,
) -> Report:
    """Evaluates `zero_shot_reject` of a model on a source, with some of its classes held out as unknown; with chance.

    Args:
        unknown: names of the held-out classes.
        background: prompts that stand for everything else.
        templates: prompt templates; by default those of the source.
    """
    names = list(task.source.class_names or ())
    outside = np.isin(task.labels, [names.index(name) for name in unknown])
    known_names = [name for name in names if name not in unknown]
    image_emb = model.images(task.source)
    options: dict[str, Any] = {"logit_scale": model.model.logit_scale, "logit_bias": model.model.logit_bias}
    report = zero_shot_reject(
        image_emb[~outside],
        image_emb[outside],
        class_embeddings(model, known_names, task.source.templates if templates is None else templates),
        background_emb=model.encode_text(list(background)) if background else None,
        data=task.name,
        model=model.name,
        **options,
    )
    if task.baselines:
        chance = {row.metric: statistics.exact(0.5 if row.metric.endswith("auroc") else KEPT, row.n) for row in report.metrics}
        report += Report(metric_rows(EVALUATOR, task.name, "chance", chance))
    return without_intervals(report, task.source.groups)


def auroc(known: np.ndarray, unknown: np.ndarray) -> Estimate:
    """Probability that a known score is above an unknown one, see `detection.auroc`."""
    target = np.repeat([True, False], [len(known), len(unknown)])
    rows = Clusters.of(None, len(target))
    return detection.auroc(np.concatenate([known, unknown]), target, rows).estimate(rows)


def false_positive_rate(known: np.ndarray, unknown: np.ndarray) -> Estimate:
    """Share of unknown scores at or above the highest threshold that at least 95 % of the known ones reach.

    The interval combines that of the share at this threshold with that of the threshold itself, between order statistics of the
    known scores (MOVER, see statistics.py). It needs at least 100 known scores, because otherwise too few of them are below the
    threshold, and at least 5 unknown ones.
    """
    m, n = len(known), len(unknown)
    ordered = np.sort(known)
    share = float((unknown >= ordered[::-1][int(np.ceil(KEPT * m)) - 1]).mean())
    own = statistics.within_bounds(share, share * (1 - share), n)
    missed = statistics.within_bounds(1 - KEPT, KEPT * (1 - KEPT), m)
    if m < _FEWEST_KNOWN or own is None or missed is None:
        return statistics.exact(share, m + n)
    low, high = own
    most, least = ((unknown >= edge).mean() for edge in np.quantile(ordered, missed, method="weibull"))
    below, above = np.hypot(share - low, share - least), np.hypot(high - share, most - share)
    return Estimate(share, max(0.0, share - float(below)), min(1.0, share + float(above)), m + n)
