"""k-nearest-neighbor classification of embeddings, without any training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmcl.core.nearest import nearest
from mmcl.data.source import Source
from mmcl.errors import UserError
from mmcl.evaluate.baselines import class_baselines
from mmcl.evaluate.measures import statistics
from mmcl.evaluate.reporting.clusters import clusters_note
from mmcl.evaluate.reporting.examples import Describe, Examples, check_count
from mmcl.evaluate.reporting.metric import metric_rows
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.task import CachedModel, Task, needs
from mmcl.evaluate.validation import Array, Values, cluster_numbers, cutoffs, labels_or_ids, same_width, unit_rows

EVALUATOR = "knn"
_BLOCK = 2**24


def knn(
    bank_emb: Array,
    bank_labels: Values,
    query_emb: Array,
    query_labels: Values,
    *,
    ks: Sequence[int] = (1, 5, 20),
    temperature: float | None = None,
    clusters: Values | None = None,
    chunk_size: int | None = None,
    data: str = "",
    model: str = "trained",
) -> Report:
    """Classifies each query by the labels of its k most similar bank rows, by cosine similarity.

    Each vote has weight 1, or exp(cosine / temperature) as in Wu et al. ("Instance discrimination", 2018, sec. 3.4). Ties go to
    the class of the nearest of these neighbors; equally near neighbors are taken in the order of the bank.

    Args:
        bank_emb, query_emb: finite rows [M, D], [N, D]; they are scaled to unit length.
        bank_labels, query_labels: integers [M], [N], in any range, with any gaps; or strings.
        ks: numbers of neighbors; one search serves all of them.
        temperature: above 0; None for a majority vote.
        clusters: integers or strings [N], equal for queries that were drawn together, such as the images of one
            patient; the intervals treat them as one draw.
        chunk_size: queries per block of scores; affects only memory use.
        data, model: names of the data and the model in the report.

    Returns:
        `knn5_top1`, the accuracy with 5 neighbors, and so on.

    Raises:
        UserError: a k is larger than the bank, shapes do not match, or an embedding is not finite.

    Example:
        >>> bank, query = np.eye(3), np.array([[1.0, 0.1, 0.0], [0.1, 1.0, 0.0]])
        >>> knn(bank, ["cat", "dog", "cat"], query, ["cat", "cat"], ks=[1])["knn1_top1"]
        0.5
    """
    bank, query = unit_rows(bank_emb, "bank_emb"), unit_rows(query_emb, "query_emb")
    same_width(bank, query, "bank_emb and query_emb")
    sizes = len(bank), len(query)
    both = labels_or_ids(bank_labels, query_labels, ("bank_labels", "query_labels"), sizes)
    bank_label, query_label = (label.to(bank.device) for label in both)
    ks = cutoffs(ks)
    if ks[-1] > len(bank):
        raise UserError(f"knn: k = {ks[-1]} is more than the {len(bank)} rows of the bank; lower `ks` or enlarge the bank")
    _positive(temperature)
    classes, bank_class = bank_label.unique(return_inverse=True)
    drawn = cluster_numbers(clusters, len(query))
    score, row = nearest(query, bank, ks[-1], chunk_size=chunk_size)
    neighbor = bank_class[row]
    estimates = {}
    for k in ks:
        predicted = classes[_vote(neighbor[:, :k], score[:, :k], len(classes), temperature)]
        estimates[f"knn{k}_top1"] = statistics.mean((predicted == query_label).cpu().numpy(), clusters=drawn)
    return Report(metric_rows(EVALUATOR, data, model, estimates), clusters_note(EVALUATOR, data, drawn))


def _check(task: Task, has_text: bool, *, ks: Sequence[int], temperature: float | None, examples: int) -> None:
    check_count(examples, EVALUATOR)
    _positive(temperature)
    cutoffs(ks)
    task.require_labels(bank=True)


@needs(_check, test_args={"ks": [1, 5], "examples": 1})
def evaluate_knn(
    model: CachedModel,
    task: Task,
    *,
    ks: Sequence[int] = (1, 5, 20),
    temperature: float | None = None,
    examples: int = 2,
) -> Report:
    """Evaluates `knn` of a model on a source with the training data as the bank, and chance, majority, raw pixels and PCA-50.

    Args:
        ks: as in `knn`, but a k larger than the bank has no value.
        temperature: as in `knn`.
        examples: images shown with their nearest training images, of the best, the median and the worst each; 0 to 10.
    """
    usable = [k for k in cutoffs(ks) if k <= len(task.bank_labels)] or [1]
    too_many = {f"knn{k}_top1": statistics.exact(None, len(task.labels)) for k in cutoffs(ks) if k not in usable}

    def score(one: CachedModel) -> Report:
        bank_emb, query_emb = one.images(task.required_bank), one.images(task.source)
        options: dict[str, Any] = {"ks": usable, "temperature": temperature, "clusters": task.source.groups}
        found = knn(bank_emb, task.bank_labels, query_emb, task.labels, **options, data=task.name, model=one.name)
        return found + Report(metric_rows(EVALUATOR, task.name, one.name, too_many))

    report = score(model) + Report(notes=task.about_bank(EVALUATOR))
    if examples and task.figures and task.has_images:
        report += Report(examples=_examples(model, task, examples))
    if task.baselines:
        report += score(task.pixels(model)) + score(task.pca(model))
        names = [f"knn{k}_top1" for k in usable]
        report += class_baselines(EVALUATOR, task.name, names, task.labels, task.bank_labels, task.source.groups)
    return report


def _examples(model: CachedModel, task: Task, count: int) -> tuple[Examples, ...]:
    """Images with their nearest training images; right ones are of the same class. None if no image has one."""
    bank = task.required_bank
    label, bank_label = torch.from_numpy(task.labels), torch.from_numpy(task.bank_labels)
    if not torch.isin(label, bank_label).any():
        return ()

    def describe(source: Source) -> Describe:
        return lambda row: {"text": _class_name(source, row), "image": model.thumbnail(source[row])}

    query, key = (unit_rows(model.images(source), "images") for source in (task.source, bank))
    place = {"evaluator": EVALUATOR, "data": task.name, "model": model.name, "title": "nearest training images"}
    return (Examples.choose(query, key, label, bank_label, describe(task.source), describe(bank), per_group=count, **place),)


def _class_name(source: Source, row: int) -> str:
    """Name of the class of a sample, or its number."""
    label = source[row].label
    assert label is not None, "checked"
    return str(label) if source.class_names is None else source.class_names[label]


def _positive(temperature: float | None) -> None:
    if temperature is not None and not temperature > 0:
        raise UserError(f"knn: temperature must be above 0, not {temperature}; leave it out for a majority vote")


def _vote(neighbor_NK: Tensor, score_NK: Tensor, classes: int, temperature: float | None) -> Tensor:
    """Class with the most votes, int64 [N]; ties go to the class of the nearest neighbor."""
    predicted = []
    rows = max(1, _BLOCK // classes)
    for neighbor, score in zip(neighbor_NK.split(rows), score_NK.split(rows), strict=True):
        # Subtracting the largest cosine keeps the ratios of the weights and avoids overflow.
        weight = torch.ones_like(score) if temperature is None else ((score - score[:, :1]) / temperature).exp()
        votes = score.new_zeros(len(score), classes).scatter_add_(1, neighbor, weight)
        winner = votes.gather(1, neighbor).argmax(dim=1, keepdim=True)  # the first maximum is the nearest
        predicted.append(neighbor.gather(1, winner).flatten())
    return torch.cat(predicted)
