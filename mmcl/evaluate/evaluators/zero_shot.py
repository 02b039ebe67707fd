"""Zero-shot classification: each class is described by text, and an image gets the class with the most similar text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl.errors import UserError
from mmcl.evaluate.baselines import best_of_group
from mmcl.evaluate.head import zero_shot_head
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.measures.calibration import Calibration
from mmcl.evaluate.measures.rank_counts import Scores
from mmcl.evaluate.measures.ranking import Ties, cosine_scores, score_ranks
from mmcl.evaluate.measures.statistics import Estimate
from mmcl.evaluate.prompts import Templates, mean_embeddings, prompt_embeddings, template_names
from mmcl.evaluate.reporting.clusters import clusters_note
from mmcl.evaluate.reporting.metric import LABELED_PIXELS, metric_rows
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.task import CachedModel, Task, needs, require_text
from mmcl.evaluate.validation import Array, Values, cluster_numbers, cutoffs, integers, same_width, unit_rows

EVALUATOR = "zero_shot"
_BLOCK = 2**22
_FEWEST_OF_F1 = 10


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
    clusters: Values | None = None,
    chunk_size: int | None = None,
    data: str = "",
    model: str = "trained",
) -> Report:
    """Evaluates zero-shot classification by cosine similarity.

    Args:
        image_emb: finite rows [N, D], scaled to unit length.
        labels: integers [N], 0 to C - 1.
        class_emb: [C, D], as returned by `class_embeddings`.
        class_names: C names, for the details.
        top_k: cut-offs; a top-k accuracy has no value if there are fewer than k classes.
        ties: how equal scores are ranked, as in `retrieval`; with "mean" a collapsed model scores k / C.
        logit_scale, logit_bias: with a scale, the probabilities are evaluated too: softmax(scale * cosine), or
            sigmoid(scale * cosine + bias) with a bias.
        clusters: integers or strings [N], equal for images that were drawn together, such as the images of one
            patient; the intervals treat them as one draw.
        chunk_size: images per block of scores; affects only memory use.
        data, model: names of the data and the model in the report.

    Returns:
        `zero_shot_top1`, ..., `zero_shot_mean_class_recall` (over the classes that have samples), `zero_shot_macro_f1` (over
        those that have samples or are predicted, see `macro_f1`), `zero_shot_tied` (share of images whose class has the same
        score as another class); with `logit_scale` also `zero_shot_ece`, `zero_shot_brier`, `zero_shot_nll`, see `Calibration`.
        `details` contains the confusion matrix (rows: true, columns: predicted) and recall, precision and F1 of each class.

    Raises:
        UserError: shapes or labels do not match, or an embedding is not finite.

    Example:
        >>> report = zero_shot(np.eye(4), [0, 1, 2, 2], np.eye(4), top_k=[1])
        >>> report["zero_shot_top1"]
        0.75
    """
    image, classes = unit_rows(image_emb, "image_emb"), unit_rows(class_emb, "class_emb")
    same_width(image, classes, "image_emb and class_emb")
    return zero_shot_from_scores(
        cosine_scores(image, classes),
        integers(labels, "labels", len(image)).to(image.device),
        len(classes),
        class_names=class_names,
        top_k=top_k,
        ties=ties,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
        clusters=clusters,
        chunk_size=chunk_size,
        data=data,
        model=model,
    )


def zero_shot_from_scores(
    scores: Scores,
    labels: Tensor,
    classes: int,
    *,
    class_names: Sequence[str] | None = None,
    top_k: Sequence[int] = (1, 5),
    ties: Ties = "mean",
    logit_scale: float | None = None,
    logit_bias: float | None = None,
    clusters: Values | None = None,
    chunk_size: int | None = None,
    data: str = "",
    model: str = "trained",
) -> Report:
    """Evaluates classification like `zero_shot`, from any function of image rows that returns scores, float32 [n, classes]."""
    names = _names(class_names, classes)
    outside = ((labels < 0) | (labels >= classes)).nonzero().flatten()
    if len(outside):
        first = int(outside[0])
        raise UserError(f"label {int(labels[first])} of row {first} is not one of the {classes} classes, 0 to {classes - 1}")
    if logit_scale is None and logit_bias is not None:
        raise UserError("logit_bias without logit_scale gives no probabilities; give both, or neither")
    for argument, number in (("logit_scale", logit_scale), ("logit_bias", logit_bias)):
        if number is not None and not np.isfinite(number):
            raise UserError(f"{argument} must be a finite number, not {number}")
    class_ids = torch.arange(classes, device=labels.device)
    ranks = score_ranks(scores, labels, class_ids, ties=ties, chunk_size=chunk_size)
    n, label, drawn = len(ranks), labels.cpu().numpy(), cluster_numbers(clusters, len(labels))
    predicted, calibration = _predictions(scores, labels, chunk_size or max(1, _BLOCK // classes), logit_scale, logit_bias)
    estimates: dict[str, Estimate] = {
        f"zero_shot_top{k}": statistics.mean(ranks.hits(k), clusters=drawn) if k <= classes else statistics.exact(None, n)
        for k in cutoffs(top_k, "top_k")
    }
    estimates["zero_shot_mean_class_recall"] = statistics.class_mean(ranks.hits(1), label, clusters=drawn)
    estimates["zero_shot_macro_f1"] = macro_f1(label, predicted, classes, drawn)
    estimates["zero_shot_tied"] = statistics.mean(ranks.tied, clusters=drawn)
    if calibration is not None:
        estimates |= {f"zero_shot_{name}": estimate for name, estimate in calibration.estimates(drawn).items()}
    confusion = np.bincount(label * classes + predicted, minlength=classes**2).reshape(classes, classes)
    place = ", ".join(part for part in (EVALUATOR, data, model) if part)
    seen = len(np.unique(label))
    note = f"{EVALUATOR}{', ' + data if data else ''}: {seen} of {classes} classes have samples."
    return Report(
        metric_rows(EVALUATOR, data, model, estimates),
        notes=(*((note,) if seen < classes else ()), *clusters_note(EVALUATOR, data, drawn)),
        details={
            f"confusion: {place}": {"classes": names, "counts": confusion.tolist()},
            f"per class: {place}": _per_class(names, confusion),
        },
    )


def macro_f1(labels: np.ndarray, predicted: np.ndarray, classes: int, clusters: np.ndarray | None = None) -> Estimate:
    """Mean F1 over the classes that occur as a label or a prediction: scikit-learn's `f1_score(average="macro")`.

    The interval uses the variance of the influence of the rows, or of the clusters, which are as for `statistics.mean` (the
    delta method). It is omitted if one of these classes is the label or the prediction of fewer than 10 rows, counted together,
    or of rows in fewer than 10 clusters.
    """
    n, hit = len(labels), labels == predicted
    rows = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    seen, f1 = rows > 0, 2 * np.bincount(labels[hit], minlength=classes) / np.maximum(rows, 1)
    value = float(f1[seen].mean())
    if rows[seen].min() < _FEWEST_OF_F1:
        return statistics.exact(value, n)
    influence = (2 * hit - f1[labels]) / rows[labels] - f1[predicted] / rows[predicted]
    effective, draws = seen.sum() ** 2 / (2 / rows[seen]).sum(), n
    clusters = statistics.proper_clusters(clusters)
    if clusters is not None:
        names, cluster = np.unique(clusters, return_inverse=True)
        weight = np.bincount(cluster, 1 / rows[labels] + 1 / rows[predicted]) / seen.sum()
        effective, draws, influence = 1 / (weight**2).sum(), len(names), np.bincount(cluster, influence)
        pairs = np.unique(np.concatenate([labels, predicted]) * draws + np.tile(cluster, 2))
        if min(effective, np.bincount(pairs // draws, minlength=classes)[seen].min()) < statistics.FEWEST_CLUSTERS:
            return statistics.exact(value, n)
    variance = (influence**2).sum() / seen.sum() ** 2 * draws / (draws - 1)
    return statistics.bounded(value, variance * effective, effective, n)


def _check(task: Task, has_text: bool, *, top_k: Sequence[int], **_: Any) -> None:
    require_text(EVALUATOR, has_text)
    cutoffs(top_k, "top_k")
    if task.source.class_names is None:
        raise UserError(f"{task.name}: has no class names, which {EVALUATOR} needs; choose another source or evaluator")
    task.require_labels()


@needs(_check, test_args={"templates": ["{}", "a {}"]})
def evaluate_zero_shot(
    model: CachedModel,
    task: Task,
    *,
    templates: Templates | None = None,
    top_k: Sequence[int] = (1, 5),
    ties: Ties = "mean",
) -> Report:
    """Evaluates `zero_shot` of a model on a source, with chance, majority and labeled pixels.

    Labeled pixels are the baseline that answers with the label of the training image with the nearest raw pixels. It has seen
    labels, the model has not.

    With several templates, `zero_shot_top1_worst_template` is the accuracy with the one that does worst when used alone,
    and `details` has the accuracy with each.

    Args:
        templates: prompt templates; by default those of the source.
        top_k, ties: as in `zero_shot`.
    """
    names = task.source.class_names
    assert names is not None, "checked"
    templates = task.source.templates if templates is None else templates
    prompts = prompt_embeddings(model, names, templates)
    image_emb, class_emb = model.images(task.source), mean_embeddings(prompts)
    scale: dict[str, Any] = {"logit_scale": model.model.logit_scale, "logit_bias": model.model.logit_bias}
    options: dict[str, Any] = {
        "class_names": names,
        "top_k": top_k,
        "clusters": task.source.groups,
        "data": task.name,
    }
    report = zero_shot(image_emb, task.labels, class_emb, ties=ties, model=model.name, **scale, **options)
    report += Report(heads=_head(class_emb, names, templates, model, task.name))
    report += _by_template(image_emb, task.labels, prompts, templates, ties, task.name, model.name)
    if task.baselines:
        report += _constant_baselines(task, len(names), cutoffs(top_k, "top_k"))
    if task.baselines and task.bank is not None:
        pixels = task.pixels(model)
        image, member = (torch.from_numpy(pixels.images(source)) for source in (task.source, task.bank))
        own = torch.from_numpy(task.bank_labels)
        scores = best_of_group(image, member[own < len(names)], own[own < len(names)], len(names))
        report += zero_shot_from_scores(
            scores, torch.from_numpy(task.labels), len(names), ties=ties, model=LABELED_PIXELS, **options
        )
    return report


def _head(class_emb: np.ndarray, names: Sequence[str], templates: Templates, model: CachedModel, data: str) -> dict[str, bytes]:
    """The classifier as a file; none of a model without a temperature, which has no probabilities."""
    if model.model.logit_scale is None:
        return {}
    head = zero_shot_head(class_emb, names, templates, model.model, {"evaluator": EVALUATOR, "data": data})
    return head.for_report(EVALUATOR, data, model.name)


def _by_template(
    image_emb: np.ndarray, labels: np.ndarray, prompts: list[Tensor], templates: Templates, ties: Ties, data: str, model: str
) -> Report:
    """The top-1 accuracy with each template alone; nothing for one template, or for classes with sentences of their own."""
    if isinstance(templates, Mapping) or len(prompts[0]) < 2:
        return Report()
    image, label = unit_rows(image_emb, "image_emb"), torch.from_numpy(labels)
    class_ids = torch.arange(len(prompts))
    accuracy = [
        float(score_ranks(cosine_scores(image, class_emb), label.to(image.device), class_ids, ties=ties).hits(1).mean())
        for class_emb in torch.stack(prompts, dim=1)
    ]
    # Chosen by the rows that it is measured on, so an interval would be wrong.
    worst = {"zero_shot_top1_worst_template": statistics.exact(min(accuracy), len(labels))}
    return Report(
        metric_rows(EVALUATOR, data, model, worst),
        details={f"per template: {EVALUATOR}, {data}, {model}": dict(zip(template_names(templates), accuracy, strict=True))},
    )


def _constant_baselines(task: Task, classes: int, ks: Sequence[int]) -> Report:
    """Chance (a random order of the classes) and majority (always the classes by their frequency in the test set itself)."""
    labels, groups = task.labels, task.source.groups
    n, counts = len(labels), np.bincount(labels, minlength=classes)
    order = np.argsort(-counts, kind="stable")
    chance = {f"zero_shot_top{k}": statistics.exact(k / classes if k <= classes else None, n) for k in ks}
    majority = {
        f"zero_shot_top{k}": statistics.mean(np.isin(labels, order[:k]), clusters=groups)
        if k <= classes
        else statistics.exact(None, n)
        for k in ks
    }
    recall = {"zero_shot_mean_class_recall": statistics.exact(1 / classes, n)}
    majority_recall = {"zero_shot_mean_class_recall": statistics.exact(1 / int((counts > 0).sum()), n)}
    return Report(
        metric_rows(EVALUATOR, task.name, "majority", majority | majority_recall)
        + metric_rows(EVALUATOR, task.name, "chance", chance | recall)
    )


def _predictions(
    scores: Scores, labels: Tensor, rows: int, scale: float | None, bias: float | None
) -> tuple[np.ndarray, Calibration | None]:
    """Class with the highest score (the first of equal ones), int64 [N]; and, given a scale, the calibration."""
    predicted, calibration = [], []
    for start in range(0, len(labels), rows):
        part = slice(start, min(start + rows, len(labels)))
        score = scores(part)
        predicted.append(score.argmax(dim=1).cpu().numpy())
        if scale is not None:
            calibration.append(Calibration.of(score, labels[part], scale, bias))
    return np.concatenate(predicted), Calibration.join(calibration) if calibration else None


def _per_class(names: list[str], confusion: np.ndarray) -> dict[str, list[Any]]:
    """Columns with one entry per class; None for a class that has no samples or is never predicted."""
    right, true, guessed = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)

    def ratio(part: np.ndarray, whole: np.ndarray) -> list[float | None]:
        return [float(a / b) if b else None for a, b in zip(part, whole, strict=True)]

    return {
        "class": names,
        "n": true.tolist(),
        "recall": ratio(right, true),
        "precision": ratio(right, guessed),
        "f1": ratio(2 * right, true + guessed),
    }


def _names(class_names: Sequence[str] | None, classes: int) -> list[str]:
    if class_names is not None and len(class_names) != classes:
        raise UserError(f"{len(class_names)} class_names for the {classes} rows of class_emb; give one name per row")
    return [str(name) for name in class_names or range(classes)]
