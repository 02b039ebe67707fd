"""Few-shot linear probes: fitted on a few samples of each class, from nothing or from the texts of the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl.data.derived.subset import label_subset
from mmcl.errors import UserError, unknown_name
from mmcl.evaluate.baselines import class_baselines
from mmcl.evaluate.evaluators.linear_probe import OPTIONS, class_names_of, linear_probe
from mmcl.evaluate.evaluators.prompt_probe import PromptProbe, check_strength, fit_prompt_probe
from mmcl.evaluate.head import Head, templates_to_text
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.measures.statistics import Estimate
from mmcl.evaluate.prompts import Templates, class_embeddings
from mmcl.evaluate.reporting.metric import metric_rows
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.task import CachedModel, Task, needs, require_text
from mmcl.evaluate.validation import (
    Array,
    Values,
    cluster_numbers,
    cutoffs,
    features,
    integers,
    is_text,
    labels_or_ids,
    same_width,
    unit_rows,
)
from mmcl.terminal import counted

EVALUATOR = "few_shot"
PROBE_ARGUMENTS = ("solver", *(name for options in OPTIONS.values() for name in options))


def few_shot(
    train_emb: Array,
    train_labels: Values,
    test_emb: Array,
    test_labels: Values,
    *,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    seeds: int = 5,
    probe: dict[str, Any] | None = None,
    class_emb: Array | None = None,
    logit_scale: float | None = None,
    prompt_c: float | None = None,
    clusters: Values | None = None,
    data: str = "",
    model: str = "trained",
) -> Report:
    """Fits `linear_probe` on a few training rows of every class, and evaluates it on all test rows.

    With the texts of the classes, a second probe starts at these and is held near them, see `fit_prompt_probe`.

    Args:
        train_emb, test_emb: finite rows [N, D], [M, D].
        train_labels, test_labels: integers [N], [M], in any range; or strings. With `class_emb`, integers from 0 to C - 1.
        shots: numbers of rows per class; for one seed, a smaller selection is a subset of a larger one.
        seeds: number of random draws.
        probe: arguments of `linear_probe`, such as {"c": 1.0} or {"solver": "adamw"}.
        class_emb: [C, D], as returned by `class_embeddings`; with `logit_scale`.
        logit_scale: inverse temperature of the model.
        prompt_c: inverse strength with which the second probe is held; by default chosen on the few rows.
        clusters: integers or strings [M], as in `zero_shot`, for the interval without rows.
        data, model: names of the data and the model in the report.

    Returns:
        `few_shot_1_top1` and so on: the mean over the draws, with Student's interval over them. With the texts also
        `few_shot_prompts_1_top1` and so on, and `few_shot_prompts_0_top1`: the texts alone, which is zero-shot classification.

    Raises:
        UserError: a class has fewer rows than `shots` asks for, an argument is out of range, or `linear_probe` raises it.

    Example:
        >>> rows, labels = np.repeat(np.eye(2), 4, axis=0), np.repeat([0, 1], 4)
        >>> few_shot(rows, labels, rows, labels, shots=[1], seeds=2)["few_shot_1_top1"]
        1.0
    """
    texts = None
    if class_emb is not None and logit_scale is not None:
        texts = _Texts(unit_rows(class_emb, "class_emb"), logit_scale, prompt_c)
        check_strength(prompt_c)
    elif class_emb is not None or logit_scale is not None or prompt_c is not None:
        raise UserError("few_shot: class_emb and logit_scale go together, and prompt_c with both")
    rows = (train_emb, train_labels), (test_emb, test_labels)
    return _few_shot(*rows, texts, shots=shots, seeds=seeds, probe=probe, clusters=clusters, data=data, model=model)[0]


@dataclass(frozen=True, slots=True)
class _Texts:
    """Texts of the classes, where the second probe starts: rows of unit length, the temperature and `prompt_c`."""

    class_emb_CD: Tensor
    logit_scale: float
    c: float | None


def _few_shot(
    train_rows: tuple[Array, Values],
    test_rows: tuple[Array, Values],
    texts: _Texts | None,
    *,
    shots: Sequence[int],
    seeds: int,
    probe: dict[str, Any] | None,
    clusters: Values | None,
    data: str,
    model: str,
) -> tuple[Report, PromptProbe | None]:
    """Also returns the probe from texts of the first draw of most rows, if there are texts."""
    (train_emb, train_labels), (test_emb, test_labels) = train_rows, test_rows
    train = features(train_emb, "train_emb")
    sizes = len(train), len(test_labels)
    own, other = labels_or_ids(train_labels, test_labels, ("train_labels", "test_labels"), sizes)
    label, test_label = own.cpu().numpy(), other.cpu().numpy()
    shots = cutoffs(shots, "shots")
    if seeds < 1:
        raise UserError(f"few_shot: seeds must be at least 1, not {seeds}")
    foreign = [name for name in probe or {} if name not in PROBE_ARGUMENTS]
    if foreign:
        raise unknown_name("argument of linear_probe", foreign[0], PROBE_ARGUMENTS, where="few_shot: probe")
    _, class_N, counts = np.unique(label, return_inverse=True, return_counts=True)
    if counts.min() < shots[-1]:
        name = train_labels[int((class_N == counts.argmin()).argmax())]
        raise UserError(f"few_shot: class {name} has {counts.min()} training rows, {shots[-1]} are asked for; lower `shots`")
    drawn = {
        shot: [torch.from_numpy(label_subset(class_N, per_class=shot, seed=seed)).to(train.device) for seed in range(seeds)]
        for shot in shots
    }
    estimates: dict[str, Estimate] = {}
    for shot, draws in drawn.items():
        accuracies = []
        for rows in draws:
            found = linear_probe(train[rows], label[rows.cpu().numpy()], test_emb, test_label, **(probe or {}))["linear_top1"]
            assert found is not None
            accuracies.append(found)
        estimates[f"few_shot_{shot}_top1"] = statistics.over_runs(accuracies, len(test_labels))
    probes: dict[int, list[PromptProbe]] = {}
    if texts is not None:
        more, probes = _from_texts(train_rows, test_rows, texts, drawn, clusters)
        estimates |= more
    unfinished = sum(not probe.converged for own in probes.values() for probe in own)
    place = ", ".join(part for part in (EVALUATOR, data, model) if part)
    notes = (f"{place}: {counted(unfinished, 'probe')} from texts did NOT converge (lower prompt_c).",) if unfinished else ()
    return Report(metric_rows(EVALUATOR, data, model, estimates), notes), probes[shots[-1]][0] if probes else None


def _from_texts(
    train_rows: tuple[Array, Values],
    test_rows: tuple[Array, Values],
    texts: _Texts,
    drawn: Mapping[int, Sequence[Tensor]],
    clusters: Values | None,
) -> tuple[dict[str, Estimate], dict[int, list[PromptProbe]]]:
    """Metrics of the probes that start at the texts, and these probes by the number of rows per class."""
    train, test = unit_rows(train_rows[0], "train_emb"), unit_rows(test_rows[0], "test_emb")
    same_width(train, texts.class_emb_CD, "train_emb and class_emb")
    class_N, target_M = (
        _class_numbers(labels, name, len(rows), len(texts.class_emb_CD)).to(train.device)
        for (labels, name, rows) in ((train_rows[1], "train_labels", train), (test_rows[1], "test_labels", test))
    )

    def fit(rows: Tensor) -> PromptProbe:
        return fit_prompt_probe(train[rows], class_N[rows], texts.class_emb_CD, logit_scale=texts.logit_scale, c=texts.c)

    def hits(probe: PromptProbe) -> np.ndarray:
        return (probe.predict(test) == target_M).cpu().numpy()

    probes = {shot: [fit(rows) for rows in draws] for shot, draws in drawn.items()}
    none = torch.arange(0, device=train.device)
    alone = statistics.mean(hits(fit(none)), clusters=cluster_numbers(clusters, len(test)))
    means = {shot: [float(hits(probe).mean()) for probe in own] for shot, own in probes.items()}
    several = {f"few_shot_prompts_{shot}_top1": statistics.over_runs(own, len(test)) for shot, own in means.items()}
    return {"few_shot_prompts_0_top1": alone, **several}, probes


def _class_numbers(labels: Values, name: str, length: int, classes: int) -> Tensor:
    if is_text(labels):
        raise UserError(f"few_shot: with class_emb, {name} are the numbers of its rows, 0 to {classes - 1}, not strings")
    numbers = integers(labels, name, length)
    if ((numbers < 0) | (numbers >= classes)).any():
        raise UserError(f"few_shot: {name} must be from 0 to {classes - 1}, the rows of class_emb")
    return numbers


def _check(
    task: Task,
    has_text: bool,
    *,
    shots: Sequence[int],
    seeds: int,
    probe: dict[str, Any] | None,
    prompts: bool,
    templates: Templates | None,
    prompt_c: float | None,
) -> None:
    if not prompts and (templates is not None or prompt_c is not None):
        raise UserError("few_shot: templates and prompt_c are for prompts; add `prompts: true`")
    if prompts:
        check_strength(prompt_c)
        require_text(EVALUATOR, has_text)
        if task.source.class_names is None:
            raise UserError(f"{task.name}: has no class names, which prompts need; leave prompts out, or choose another source")
    task.require_classes(EVALUATOR)
    _ = cutoffs(shots, "shots")


@needs(_check, test_args={"shots": [1, 4], "seeds": 2})
def evaluate_few_shot(
    model: CachedModel,
    task: Task,
    *,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    seeds: int = 5,
    probe: dict[str, Any] | None = None,
    prompts: bool = False,
    templates: Templates | None = None,
    prompt_c: float | None = None,
) -> Report:
    """Evaluates `few_shot` on a source, with rows drawn from the training data, and chance, majority, raw pixels and PCA-50.

    Args:
        shots: as in `few_shot`, but without a value if a class has fewer rows.
        seeds, probe: as in `few_shot`.
        prompts: whether to fit the probe that starts at the texts of the classes, too. The one of the first draw of most rows
            is the head of the report.
        templates: prompt templates; by default those of the source.
        prompt_c: as in `few_shot`.
    """
    fewest = int(np.unique(task.bank_labels, return_counts=True)[1].min())
    usable = [shot for shot in cutoffs(shots, "shots") if shot <= fewest] or [1]
    many = [shot for shot in cutoffs(shots) if shot not in usable]

    def score(one: CachedModel, texts: _Texts | None) -> tuple[Report, PromptProbe | None]:
        bank, test = (one.images(task.required_bank), task.bank_labels), (one.images(task.source), task.labels)
        options: dict[str, Any] = {"shots": usable, "seeds": seeds, "probe": probe, "data": task.name, "model": one.name}
        found, first = _few_shot(bank, test, texts, clusters=task.source.groups, **options)
        names = [f"few_shot{start}_{n}_top1" for start in ("", "_prompts")[: 1 if texts is None else 2] for n in many]
        none = dict.fromkeys(names, statistics.exact(None, len(task.labels)))
        return found + Report(metric_rows(EVALUATOR, task.name, one.name, none)), first

    templates = task.source.templates if templates is None else templates
    report, first = score(model, _texts(model, task, templates, prompt_c) if prompts else None)
    report += Report(notes=task.about_bank(EVALUATOR))
    if first is not None:
        report += Report(heads=_head(first, usable[-1], model, task, templates))
    if task.baselines:
        report += score(task.pixels(model), None)[0] + score(task.pca(model), None)[0]
        names = [f"few_shot_{shot}_top1" for shot in usable]
        report += class_baselines(EVALUATOR, task.name, names, task.labels, task.bank_labels)
    return report


def _texts(model: CachedModel, task: Task, templates: Templates, c: float | None) -> _Texts:
    if model.model.logit_scale is None:
        raise UserError(f"few_shot, {task.name}: this model was trained without a temperature, which prompts need")
    class_emb = class_embeddings(model, class_names_of(task), templates)
    return _Texts(torch.from_numpy(class_emb), model.model.logit_scale, c)


def _head(probe: PromptProbe, shots: int, model: CachedModel, task: Task, templates: Templates) -> dict[str, bytes]:
    weight = probe.weight_CD.cpu().numpy()
    how = {"evaluator": EVALUATOR, "data": task.name, "shots": str(shots), "c": f"{probe.c:g}"}
    head = Head(
        weight,
        np.zeros(len(weight)),
        class_names_of(task),
        model.model.fingerprint,
        "softmax",
        how={**how, "templates": templates_to_text(templates)},
    )
    return head.for_report(EVALUATOR, task.name, model.name)
