"""Yes/no questions by pairs of prompts: is an image nearer to "pneumonia" or to "no pneumonia"?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmcl.data.derived.subset import groups_to_keep
from mmcl.errors import UserError, unknown_name
from mmcl.evaluate.evaluators.decisions import Column, checked_names, checked_targets, decide, require_both
from mmcl.evaluate.head import Head, templates_to_text
from mmcl.evaluate.measures import detection, statistics
from mmcl.evaluate.measures.detection import Clusters, MeanDetection
from mmcl.evaluate.measures.ranking import cosine_scores
from mmcl.evaluate.measures.statistics import Estimate
from mmcl.evaluate.measures.thresholds import Criterion, CriterionName, calibration_part
from mmcl.evaluate.prompts import Templates, class_embeddings, class_sentences
from mmcl.evaluate.reporting.clusters import clusters_note
from mmcl.evaluate.reporting.metric import metric_rows, of_class
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.task import CachedModel, Task, needs, require_text
from mmcl.evaluate.validation import Array, Values, cluster_numbers, same_width, unit_rows

EVALUATOR = "prompt_pairs"
POSITIVE, NEGATIVE = "{}", "no {}"
"""The prompts of CheXzero."""


def prompt_pairs(
    image_emb: Array,
    target_NC: Array | Sequence[Sequence[int]],
    positive_emb: Array,
    negative_emb: Array,
    *,
    class_names: Sequence[str] | None = None,
    clusters: Values | None = None,
    baselines: bool = False,
    data: str = "",
    model: str = "trained",
) -> Report:
    """Evaluates yes/no questions by two prompts for each class, one for its presence and one for its absence.

    The score of an image is the difference of its cosines with the two prompts. It ranks images as the probability does that
    CheXzero (Tiu et al., "Expert-level detection of pathologies from unannotated chest X-ray images via self-supervised
    learning", 2022) takes: the softmax over the two, at any temperature.

    Args:
        image_emb: finite rows [N, D], scaled to unit length.
        target_NC: [N, C], 1 where the image shows the class, 0 where not, -1 where that is unknown. An image may show several
            classes, or none.
        positive_emb, negative_emb: [C, D], such as from `class_embeddings` with the templates "{}" and "no {}".
        class_names: C names.
        clusters: integers or strings [N], equal for images that were drawn together, such as the images of one patient; the
            intervals treat them as one draw.
        baselines: also reports "chance", with an AUROC of 0.5, and as AP the share of images with the class.
        data, model: names of the data and the model in the report.

    Returns:
        `pair_auroc`, the probability that an image with the class scores above one without it, ties counted half, and
        `pair_AP`, the average precision: means over the classes with images of both kinds, and of every class, such as
        `pair_auroc[dog]`.

    Raises:
        UserError: shapes do not match, a target is not 1, 0 or -1, no class has images of both kinds, or an embedding is not
            finite.

    Example:
        >>> images, present, absent = np.eye(4), np.eye(4)[:1], np.eye(4)[1:2]
        >>> prompt_pairs(images, [[1], [0], [0], [0]], present, absent)["pair_auroc"]
        1.0
    """
    scores, shape = _scores(image_emb, positive_emb, negative_emb)
    target, names = checked_targets(target_NC, *shape), checked_names(class_names, shape[1])
    return _ranked(
        scores, target, names, clusters=cluster_numbers(clusters, shape[0]), baselines=baselines, place=(EVALUATOR, data, model)
    )


def _scores(image_emb: Array, positive_emb: Array, negative_emb: Array, scale: float = 1.0) -> tuple[Column, tuple[int, int]]:
    """The scores of a class, and the numbers of images and classes."""
    image, positive, negative = (
        unit_rows(rows, name)
        for rows, name in ((image_emb, "image_emb"), (positive_emb, "positive_emb"), (negative_emb, "negative_emb"))
    )
    same_width(image, positive, "image_emb and positive_emb")
    if positive.shape != negative.shape:
        raise UserError(
            f"positive_emb and negative_emb must have the same shape, not {list(positive.shape)} and {list(negative.shape)}"
        )
    difference = cosine_scores(positive.double() - negative.double(), image)

    def column(number: int) -> np.ndarray:
        score: np.ndarray = difference(slice(number, number + 1))[0].cpu().double().numpy() * scale
        return score

    return column, (len(image), len(positive))


def _ranked(
    scores: Column,
    target_NC: np.ndarray,
    names: Sequence[str],
    *,
    clusters: np.ndarray | None,
    baselines: bool,
    place: tuple[str, str, str],
) -> Report:
    """AUROC and average precision of each class, and their means."""
    measures = {"pair_auroc": detection.auroc, "pair_AP": detection.average_precision}
    means = {metric: MeanDetection(len(target_NC)) for metric in measures}
    by_class: dict[str, Estimate] = {}
    chance: dict[str, Estimate] = {}
    everyone, is_compared = Clusters.of(clusters, len(target_NC)), len(names) <= detection.MOST_COMPARED
    shares, left_out = [], []
    for number, name in enumerate(names):
        answer_N = target_NC[:, number]
        known = np.flatnonzero(answer_N >= 0)
        target = answer_N[known] == 1
        if not target.any() or target.all():
            left_out.append(name)
            continue
        score, rows = scores(number)[known], Clusters.of(None if clusters is None else clusters[known], len(known))
        asked_N = detection.digest_of_question(name, answer_N)
        shares.append(float(target.mean()))
        for metric, measure in measures.items():
            found = measure(score, target, rows)
            own, of_all = found.estimate(rows), found.spread(known, len(answer_N))
            means[metric].add(of_all, asked_N)
            by_class[of_class(metric, name)] = detection.comparable(own, of_all, asked_N, everyone) if is_compared else own
            expected = shares[-1] if metric == "pair_AP" else 0.5
            chance[of_class(metric, name)] = statistics.exact(expected, len(known))
    evaluator, data, model = place
    overall = {metric: mean.estimate(everyone) for metric, mean in means.items()}
    expected_mean = {"pair_auroc": 0.5, "pair_AP": float(np.mean(shares))}
    overall_chance = {metric: statistics.exact(value, len(target_NC)) for metric, value in expected_mean.items()}
    metrics = metric_rows(evaluator, data, model, overall | (by_class if len(names) > 1 else {}))
    if baselines:
        metrics += metric_rows(evaluator, data, "chance", overall_chance | (chance if len(names) > 1 else {}))
    where = ", ".join(filter(None, place[:2]))
    note = f"{where}: {len(shares)} of {len(names)} classes have images with and without them; the means are over these."
    return Report(metrics, (*((note,) if left_out else ()), *clusters_note(evaluator, data, clusters)))


def _asked(task: Task, classes: Sequence[str] | None) -> tuple[list[str], np.ndarray]:
    """The names of the questions and their answers, int8 [N, C]."""
    names = list(task.questions.names)
    if classes is None:
        return names, task.questions.target_NQ
    if isinstance(classes, str) or not classes:
        raise UserError(f"{EVALUATOR}: classes must be a list of one or more names, not {classes!r}")
    for name in classes:
        if name not in names:
            raise unknown_name("class", name, names, where=f"{EVALUATOR}, {task.name}")
    return list(classes), task.questions.target_NQ[:, [names.index(name) for name in classes]]


def _check(
    task: Task,
    has_text: bool,
    *,
    positive: Templates,
    negative: Templates,
    classes: Sequence[str] | None,
    criterion: CriterionName | None,
    floor: float | None,
    calibration: float,
) -> None:
    require_text(EVALUATOR, has_text)
    names, target_NC = _asked(task, classes)
    require_both(target_NC, f"{EVALUATOR}, {task.name}")
    for templates in (positive, negative):
        for name in templates if isinstance(templates, Mapping) else ():
            if name not in names:
                raise unknown_name("class", name, names, where=f"{EVALUATOR}: templates")
    pairs = zip(names, class_sentences(names, positive), class_sentences(names, negative), strict=True)
    same = [name for name, present, absent in pairs if set(present) == set(absent)]
    if same:
        raise UserError(f"{EVALUATOR}: the prompts with and without {same[0]!r} are the same; change positive or negative")
    if criterion is not None:
        Criterion(criterion, floor)
        calibration_part([0], 1, calibration)
    elif floor is not None:
        raise UserError(f"{EVALUATOR}: floor needs a criterion: recall, precision or specificity")


@needs(
    _check,
    reads=["targets"],
    test_args={"negative": {f"pattern {n}": [f"pattern {(n + 1) % 6}"] for n in range(6)}},
)
def evaluate_prompt_pairs(
    model: CachedModel,
    task: Task,
    *,
    positive: Templates = POSITIVE,
    negative: Templates = NEGATIVE,
    classes: Sequence[str] | None = None,
    criterion: CriterionName | None = "f1",
    floor: float | None = None,
    calibration: float = 0.5,
) -> Report:
    """Evaluates `prompt_pairs` of a model on a source, and its yes/no `decisions` by thresholds; with chance and "always yes".

    The questions are the `target_columns` of the source; without these, whether an image is of a class. The thresholds are
    fitted on a part of the images, and precision, recall, specificity and F1 are of the others. Images of one group, or with
    equal ids or captions, are in the same part, which depends on these alone.

    Args:
        positive, negative: templates of the prompts for the presence and the absence of a class, as in `class_embeddings`.
        classes: only these; by default all.
        criterion, floor, calibration: as in `decisions`; a criterion of null for no thresholds.
    """
    names, target_NC = _asked(task, classes)
    present, absent = (class_embeddings(model, names, templates) for templates in (positive, negative))
    scale = model.model.logit_scale
    scores, _ = _scores(model.images(task.source), present, absent, scale=1.0 if scale is None else scale)
    options: dict[str, Any] = {
        "clusters": task.source.groups,
        "baselines": task.baselines,
        "place": (EVALUATOR, task.name, model.name),
    }
    report = _ranked(scores, target_NC, names, **options)
    if criterion is None:
        return report
    is_fitted = calibration_part(groups_to_keep(task.source), len(target_NC), calibration)
    found = decide(scores, target_NC, is_fitted, Criterion(criterion, floor), names, **options)
    if scale is None:
        return report + found
    [table] = found.details.values()
    head = Head(
        (present.astype(np.float64) - absent) * scale,
        np.zeros(len(names)),
        tuple(names),
        model.model.fingerprint,
        "sigmoid",
        tuple(table["threshold"]),
        {
            "evaluator": EVALUATOR,
            "data": task.name,
            "positive": templates_to_text(positive),
            "negative": templates_to_text(negative),
            "thresholds": f"{Criterion(criterion, floor)} on {int(is_fitted.sum())} images",
        },
    )
    return report + found + Report(heads=head.for_report(EVALUATOR, task.name, model.name))
