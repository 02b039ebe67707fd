"""Zero-shot classification: each class is a text, and an image belongs to the class whose text is nearest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl.core.rivals import Scores
from mmcl.errors import UserError
from mmcl.evaluate import statistics
from mmcl.evaluate.arrays import Array, cutoffs, integers, same_width, unit_rows
from mmcl.evaluate.baselines import best_of_group
from mmcl.evaluate.prompts import Templates, class_embeddings
from mmcl.evaluate.ranking import Ties, cosine_scores, score_ranks
from mmcl.evaluate.report import Report, metric_rows
from mmcl.evaluate.statistics import Estimate
from mmcl.evaluate.task import CachedModel, Task

EVALUATOR = "zero_shot"
CALIBRATION_BINS = 15


def zero_shot(
    image_emb: Array,
    labels: Array | Sequence[int],
    class_emb: Array,
    *,
    class_names: Sequence[str] | None = None,
    top_k: Sequence[int] = (1, 5),
    ties: Ties = "mean",
    logit_scale: float | None = None,
    logit_bias: float | None = None,
    chunk_size: int | None = None,
    data: str = "",
    model: str = "trained",
) -> Report:
    """Scores zero-shot classification by cosine.

    Args:
        image_emb: finite rows [N, D], scaled to unit length.
        labels: integers [N], 0 to C - 1.
        class_emb: [C, D], as `class_embeddings` gives them.
        class_names: C names, for the confusion matrix.
        top_k: cut-offs; a top-k accuracy has no value where there are fewer than k classes.
        ties: what equal scores count, as in `retrieval`; with "mean" a collapsed model scores k / C.
        logit_scale, logit_bias: with a scale, the probabilities are scored too: softmax(scale * cosine), or
            sigmoid(scale * cosine + bias) with a bias.
        chunk_size: images per block of scores; changes memory and nothing else.
        data, model: what the rows of the report call them.

    Returns:
        `zero_shot_top1`, ..., `zero_shot_mean_class_recall` (over the classes that have samples), `zero_shot_tied` (share of
        images whose class shares its score with another), with `logit_scale` also `zero_shot_ece`, the expected calibration
        error in 15 equal bins (Guo et al., 2017, eq. 3). `details` has the confusion matrix, rows true and columns predicted.

    Raises:
        UserError: shapes or labels do not fit, or an embedding is not finite.
    """
    image, classes = unit_rows(image_emb, "image_emb"), unit_rows(class_emb, "class_emb")
    same_width(image, classes, "image_emb and class_emb")
    label = integers(labels, "labels", len(image)).to(image.device)
    if class_names is not None and len(class_names) != len(classes):
        raise UserError(f"{len(class_names)} class_names for the {len(classes)} rows of class_emb; give one name per row")
    options: dict[str, Any] = {"top_k": top_k, "ties": ties, "chunk_size": chunk_size, "data": data, "model": model}
    report = zero_shot_from_scores(cosine_scores(image, classes), label, len(classes), class_names=class_names, **options)
    if logit_scale is None:
        return report
    score = torch.cat([cosine_scores(image, classes)(part) for part in _slices(len(image), 8192)])
    ece = _calibration_error(score, label, logit_scale, logit_bias)
    return report + Report(metric_rows(EVALUATOR, data, model, {"zero_shot_ece": ece}))


def zero_shot_from_scores(
    scores: Scores,
    labels: Tensor,
    classes: int,
    *,
    class_names: Sequence[str] | None = None,
    top_k: Sequence[int] = (1, 5),
    ties: Ties = "mean",
    chunk_size: int | None = None,
    data: str = "",
    model: str = "trained",
) -> Report:
    """`zero_shot` for anything that scores images with classes: rows of images -> float32 [n, classes]."""
    outside = ((labels < 0) | (labels >= classes)).nonzero().flatten()
    if len(outside):
        first = int(outside[0])
        raise UserError(f"label {int(labels[first])} of row {first} is not one of the {classes} classes, 0 to {classes - 1}")
    class_ids = torch.arange(classes, device=labels.device)
    ranks = score_ranks(scores, labels, class_ids, ties=ties, chunk_size=chunk_size)
    n, label = len(ranks), labels.cpu().numpy()
    estimates: dict[str, Estimate] = {
        f"zero_shot_top{k}": statistics.mean(ranks.hits(k)) if k <= classes else statistics.exact(None, n)
        for k in cutoffs(top_k, "top_k")
    }
    estimates["zero_shot_mean_class_recall"] = statistics.class_mean(ranks.hits(1), label)
    estimates["zero_shot_tied"] = statistics.mean(ranks.tied)
    present = len(np.unique(label))
    place = ", ".join(part for part in (EVALUATOR, data, model) if part)
    confusion = {"classes": list(class_names or range(classes)), "counts": _confusion(scores, labels, classes).tolist()}
    return Report(
        metric_rows(EVALUATOR, data, model, estimates),
        notes=(f"{EVALUATOR}{', ' + data if data else ''}: {present} of {classes} classes have samples.",),
        details={f"confusion: {place}": confusion},
    )


def evaluate_zero_shot(
    model: CachedModel,
    task: Task,
    *,
    templates: Templates | None = None,
    top_k: Sequence[int] = (1, 5),
    ties: Ties = "mean",
) -> Report:
    """`zero_shot` of a model on a source, with chance, majority and raw pixels (the class of the nearest training picture).

    Args:
        templates: by default those of the source.
        top_k, ties: as in `zero_shot`.
    """
    model.require_text(EVALUATOR)
    names = task.source.class_names
    if names is None:
        raise UserError(f"{task.name}: has no class names, which {EVALUATOR} needs; choose another source or evaluator")
    class_emb = class_embeddings(model, names, task.source.templates if templates is None else templates)
    scale: dict[str, Any] = {"logit_scale": model.model.logit_scale, "logit_bias": model.model.logit_bias}
    options: dict[str, Any] = {"class_names": names, "top_k": top_k, "data": task.name}
    report = zero_shot(model.images(task.source), task.labels, class_emb, ties=ties, model=model.name, **scale, **options)
    if task.baselines:
        report += _constant_baselines(task.labels, len(names), cutoffs(top_k, "top_k"), task.name)
    if task.baselines and task.bank is not None:
        image, member = (torch.from_numpy(task.pixels.images(source)) for source in (task.source, task.bank))
        scores = best_of_group(image, member, torch.from_numpy(task.bank_labels), len(names))
        report += zero_shot_from_scores(
            scores, torch.from_numpy(task.labels), len(names), ties=ties, model=task.pixels.name, **options
        )
    return report


def _constant_baselines(labels: np.ndarray, classes: int, ks: Sequence[int], data: str) -> Report:
    """A random order of the classes, and always the order of how common they are in the test set itself."""
    n, counts = len(labels), np.bincount(labels, minlength=classes)
    order = np.argsort(-counts, kind="stable")
    chance = {f"zero_shot_top{k}": statistics.exact(k / classes if k <= classes else None, n) for k in ks}
    majority = {
        f"zero_shot_top{k}": statistics.mean(np.isin(labels, order[:k])) if k <= classes else statistics.exact(None, n)
        for k in ks
    }
    recall = {"zero_shot_mean_class_recall": statistics.exact(1 / classes, n)}
    majority_recall = {"zero_shot_mean_class_recall": statistics.exact(1 / int((counts > 0).sum()), n)}
    return Report(
        metric_rows(EVALUATOR, data, "majority", majority | majority_recall)
        + metric_rows(EVALUATOR, data, "chance", chance | recall)
    )


def _confusion(scores: Scores, labels: Tensor, classes: int) -> Tensor:
    """Counts, int64 [C, C]: rows true, columns predicted; the first of equally high classes is predicted."""
    predicted = torch.cat([scores(part).argmax(dim=1) for part in _slices(len(labels), 8192)])
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def _calibration_error(score_NC: Tensor, labels: Tensor, scale: float, bias: float | None) -> Estimate:
    probability = probabilities(score_NC, scale, bias)
    confidence, predicted = probability.max(dim=1)
    right = (predicted == labels).double().cpu().numpy()
    sure = confidence.double().cpu().numpy()
    bins = np.minimum((sure * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)

    def error(rows: np.ndarray) -> float:
        # |accuracy - confidence| of a bin, weighted by its share of the rows, is |sum of the differences| / N.
        return float(np.abs(np.bincount(bins[rows], weights=(right - sure)[rows])).sum() / len(rows))

    return statistics.bootstrap(error, len(labels))


def probabilities(score_NC: Tensor, scale: float | None, bias: float | None) -> Tensor:
    """Cosines to probabilities: softmax over the classes, or for a sigmoid model (`bias` not None) each class by itself.

    Raises:
        UserError: the model has no temperature.
    """
    if scale is None:
        raise UserError("this model was trained without a temperature and gives no probabilities; rank by cosine")
    logits = score_NC * scale
    return logits.softmax(dim=1) if bias is None else (logits + bias).sigmoid()


def _slices(rows: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
