"""A metric: one number with its interval, what it hangs on, and what its name says of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmcl.evaluate.measures.outcomes import Rows
from mmcl.evaluate.measures.statistics import Estimate

COLUMNS = ("trained", "before", "untrained", "raw pixels", "PCA-50", "majority", "chance")
"""Order of the well-known models in a table; others come first."""

_QUOTED = {"R", "top1", "top5", "median"}
"""Words in the names of metrics that people quote, of evaluators that have many."""

_LOW = {"rank", "loss", "error", "gap", "nll", "brier", "ece", "fpr95", "alignment", "uniformity"}
"""Words in the names of metrics of which less is better."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number.

    Attributes:
        evaluator: e.g. "retrieval".
        data: what it was measured on, e.g. "emoji/unseen_style".
        metric: name as in the literature, e.g. "text_to_image_R@1".
        model: "trained", "untrained", "chance", "raw pixels", ...
        value: None where the metric does not exist, such as the top-5 accuracy of three classes.
        low, high: 95 % interval; None for exact numbers.
        n: rows that it was computed from.
        rows: the outcomes of these rows, where it is a plain statistic of them; no part of metrics.json, nor of equality.

    Example:
        >>> Metric("knn", "digits", "knn5_top1", "trained", 0.9, 0.85, 0.94, 180).key
        ('knn', 'digits', 'knn5_top1', 'trained')
    """

    evaluator: str
    data: str
    metric: str
    model: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    rows: Rows | None = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What no two metrics of a report share."""
        return self.evaluator, self.data, self.metric, self.model

    def to_dict(self) -> dict[str, Any]:
        """All fields but `rows`: JSON values."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "rows"}


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a model's numbers on a dataset hang on.

    Attributes:
        evaluator, data, model: as the metrics call them.
        n: samples of the data.
        data_identity: of the samples, their images, texts, labels and order; see `Source.identity`.
        bank_identity: of the training samples that the evaluator may have used; None without any.
        model_fingerprint: of architecture, weights, preprocessing and tokenizer.
        dtype: of the embeddings.
        seed: of what is drawn.
        versions: of the libraries that computed it.

    Example:
        >>> from mmcl import evaluate, load_model, open_source
        >>> model, source = evaluate.CachedModel(load_model("runs/clip_emoji")), open_source("digits")
        >>> report = evaluate.run([("geometry", {})], [model], [evaluate.Task("digits", source, baselines=False)])
        >>> report.provenance[0].data, report.provenance[0].n
        ('digits', 1352)
    """

    evaluator: str
    data: str
    model: str
    n: int
    data_identity: str
    bank_identity: str | None
    model_fingerprint: str
    dtype: str
    seed: int
    versions: dict[str, str]


def metric_rows(evaluator: str, data: str, model: str, estimates: Mapping[str, Estimate]) -> tuple[Metric, ...]:
    """Metrics from estimates by metric name."""
    return tuple(Metric(evaluator, data, name, model, e.value, e.low, e.high, e.n, e.rows) for name, e in estimates.items())


def by_column(models: Iterable[str]) -> list[str]:
    """Names of models, each once, in the order of the columns of a table."""
    return sorted(dict.fromkeys(models), key=lambda name: COLUMNS.index(name) if name in COLUMNS else -1)


def words(metric: str) -> set[str]:
    """The words of a metric's name, "retrieval/median_rank" or "R@1"; the label in front is none of them."""
    return set(re.split(r"[_@]", metric.rpartition("/")[2]))


def lower_is_better(metric: str) -> bool:
    """By the words of its name: true of ranks, losses, errors and gaps; an effective rank is none."""
    return bool(words(metric) & _LOW) and "effective" not in words(metric)


def quoted(metrics: Iterable[Metric]) -> list[Metric]:
    """Of an evaluator with metrics that people quote, R@k and the top-k accuracies, these alone; of others all."""
    metrics = list(metrics)
    has_quoted = {metric.evaluator for metric in metrics if words(metric.metric) & _QUOTED}
    return [metric for metric in metrics if metric.evaluator not in has_quoted or words(metric.metric) & _QUOTED]
