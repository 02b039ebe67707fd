"""Few-shot linear probes: fitted on a few samples of each class, with several random draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmcl.data.derived.subset import label_subset
from mmcl.errors import UserError, unknown_name
from mmcl.evaluate.baselines import class_baselines
from mmcl.evaluate.evaluators.linear_probe import OPTIONS, linear_probe
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.measures.statistics import Estimate
from mmcl.evaluate.reporting.metric import metric_rows
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.task import CachedModel, Task, needs
from mmcl.evaluate.validation import Array, Values, cutoffs, features, labels_or_ids

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
    data: str = "",
    model: str = "trained",
) -> Report:
    """Fits `linear_probe` on a few training rows of every class, and evaluates it on all test rows.

    Args:
        train_emb, test_emb: finite rows [N, D], [M, D].
        train_labels, test_labels: integers [N], [M], in any range; or strings.
        shots: numbers of rows per class; for one seed, a smaller selection is a subset of a larger one.
        seeds: number of random draws.
        probe: arguments of `linear_probe`, such as {"c": 1.0} or {"solver": "adamw"}.
        data, model: names of the data and the model in the report.

    Returns:
        `few_shot_1_top1` and so on: the mean over the draws, with Student's interval over them.

    Raises:
        UserError: a class has fewer rows than `shots` asks for, an argument is out of range, or `linear_probe` raises it.

    Example:
        >>> rows, labels = np.repeat(np.eye(2), 4, axis=0), np.repeat([0, 1], 4)
        >>> few_shot(rows, labels, rows, labels, shots=[1], seeds=2)["few_shot_1_top1"]
        1.0
    """
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
    estimates: dict[str, Estimate] = {}
    for shot in shots:
        accuracies = []
        for seed in range(seeds):
            rows = torch.from_numpy(label_subset(class_N, per_class=shot, seed=seed)).to(train.device)
            found = linear_probe(train[rows], label[rows.cpu().numpy()], test_emb, test_label, **(probe or {}))["linear_top1"]
            assert found is not None
            accuracies.append(found)
        estimates[f"few_shot_{shot}_top1"] = statistics.over_runs(accuracies, len(test_labels))
    return Report(metric_rows(EVALUATOR, data, model, estimates))


def _check(task: Task, has_text: bool, *, shots: Sequence[int], seeds: int, probe: dict[str, Any] | None) -> None:
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
) -> Report:
    """Evaluates `few_shot` on a source, with rows drawn from the training data, and chance, majority, raw pixels and PCA-50.

    Args:
        shots: as in `few_shot`, but without a value if a class has fewer rows.
        seeds, probe: as in `few_shot`.
    """
    fewest = int(np.unique(task.bank_labels, return_counts=True)[1].min())
    usable = [shot for shot in cutoffs(shots, "shots") if shot <= fewest] or [1]
    too_many = {f"few_shot_{n}_top1": statistics.exact(None, len(task.labels)) for n in cutoffs(shots) if n not in usable}

    def score(one: CachedModel) -> Report:
        train_emb, test_emb = one.images(task.required_bank), one.images(task.source)
        options: dict[str, Any] = {"shots": usable, "seeds": seeds, "probe": probe, "data": task.name, "model": one.name}
        found = few_shot(train_emb, task.bank_labels, test_emb, task.labels, **options)
        return found + Report(metric_rows(EVALUATOR, task.name, one.name, too_many))

    report = score(model) + Report(notes=task.about_bank(EVALUATOR))
    if task.baselines:
        report += score(task.pixels(model)) + score(task.pca(model))
        names = [f"few_shot_{shot}_top1" for shot in usable]
        report += class_baselines(EVALUATOR, task.name, names, task.labels, task.bank_labels)
    return report
