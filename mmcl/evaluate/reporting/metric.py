"""Metrics: a value with its interval, its provenance, and the conventions of metric names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from mmcl.evaluate.measures.outcomes import Outcomes
from mmcl.evaluate.measures.statistics import Estimate

LABELED_PIXELS = "labeled pixels"
"""The baseline that has seen labels, which the model has not, so a model that is worse may still be good."""

ALWAYS_YES = "always yes"
"""The baseline of yes/no questions."""

BASELINES: Mapping[str, str] = MappingProxyType(
    {
        "before": "the model before this training",
        "untrained": "the untrained network",
        "raw pixels": "comparing raw pixels",
        "stored rows": "comparing stored rows",
        "PCA-50": "PCA-50 of the pixels",
        LABELED_PIXELS: "the labels, unknown to the model, of the nearest images by raw pixels",
        "bag of words": "counting common words",
        ALWAYS_YES: "always saying yes",
        "majority": "always answering the most frequent class",
        "chance": "chance",
    }
)
"""Columns of a report that are none of the user's models, in the order of a table, each as the object of "better than"."""

COLUMNS = ("trained", *BASELINES)
"""Order of the well-known models in a table; others come first."""

_QUOTED = {"R", "top1", "top5", "median"}
"""Words in the names of commonly quoted metrics, for evaluators with many metrics."""

_LOW = {"rank", "loss", "error", "gap", "nll", "brier", "ece", "fpr95", "alignment", "uniformity"}
"""Words in the names of metrics for which lower is better."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of one model on one dataset.

    Attributes:
        evaluator: e.g. "retrieval".
        data: what it was measured on, e.g. "emoji/unseen_style".
        metric: name as in the literature, e.g. "text_to_image_R@1".
        model: "trained", "untrained", "chance", "raw pixels", ...
        value: None if the metric does not exist, such as the top-5 accuracy of three classes.
        low, high: 95 % interval; None for exact numbers.
        n: number of rows that it was computed from.
        outcomes: outcomes of these rows, if the metric is a simple statistic of them; ignored by metrics.json and by equality.

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
    outcomes: Outcomes | None = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Unique key of the metric within a report."""
        return self.evaluator, self.data, self.metric, self.model

    def to_dict(self) -> dict[str, Any]:
        """All fields except `outcomes`, as JSON values."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "outcomes"}


@dataclass(frozen=True, slots=True)
class Provenance:
    """Provenance of a model's results on a dataset.

    Attributes:
        evaluator, data, model: names, as in the metrics.
        n: number of samples of the data.
        data_identity: digest of the samples' images, texts, labels and order; see `Source.identity`.
        bank_identity: digest of the training samples that the evaluator may have used; None if there are none.
        model_fingerprint: digest of architecture, weights, preprocessing and tokenizer.
        dtype: type of the embeddings.
        seed: seed of the random draws.
        versions: versions of the libraries used.

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
    return tuple(Metric(evaluator, data, name, model, e.value, e.low, e.high, e.n, e.outcomes) for name, e in estimates.items())


def by_column(models: Iterable[str]) -> list[str]:
    """Distinct model names, in the order of the columns of a table."""
    return sorted(dict.fromkeys(models), key=lambda name: COLUMNS.index(name) if name in COLUMNS else -1)


def of_class(metric: str, name: str) -> str:
    """Name of a metric of one class, such as "pair_auroc[dog]"."""
    return f"{metric}[{name}]"


def bare_name(metric: str) -> str:
    """A metric's name without the label in front and the class behind: "pair_auroc" for "held_out/pair_auroc[cat/dog]"."""
    found = re.fullmatch(r"(?:.*?/)??([^/\[]*)(?:\[.*\])?", metric, re.DOTALL)
    return metric if found is None else found[1]


def name_parts(metric: str) -> set[str]:
    """Words of a metric's name, such as "retrieval/median_rank" or "R@1", without its label and class."""
    return set(re.split(r"[_@]", bare_name(metric)))


def lower_is_better(metric: str) -> bool:
    """True if the name is that of a rank, loss, error or gap; an effective rank is not a rank in this sense."""
    return bool(name_parts(metric) & _LOW) and "effective" not in name_parts(metric)


class Named(Protocol):
    """What has the name of a metric: a metric, or a difference of two."""

    @property
    def evaluator(self) -> str:
        """Name of the evaluator."""

    @property
    def metric(self) -> str:
        """Name of the metric."""


N = TypeVar("N", bound=Named)


def quoted(metrics: Iterable[N]) -> list[N]:
    """Commonly quoted metrics of an evaluator, such as R@k and top-k accuracies, if it has any; otherwise all its metrics.

    Those of a single class are left out.
    """
    metrics = [metric for metric in metrics if not metric.metric.endswith("]")]
    has_quoted = {metric.evaluator for metric in metrics if name_parts(metric.metric) & _QUOTED}
    return [metric for metric in metrics if metric.evaluator not in has_quoted or name_parts(metric.metric) & _QUOTED]


def without_repeats(metrics: Iterable[Metric]) -> list[Metric]:
    """Leaves out recall@k where it is the same number as R@k for every model, as with one positive for each query."""
    metrics = list(metrics)
    values: dict[tuple[str, str, str], dict[str, tuple[float | None, ...]]] = {}
    for one in metrics:
        values.setdefault(one.key[:3], {})[one.model] = one.value, one.low, one.high

    def is_repeat(one: Metric) -> bool:
        hit_rate = one.metric.replace("_recall@", "_R@")
        return hit_rate != one.metric and values.get((one.evaluator, one.data, hit_rate)) == values[one.key[:3]]

    return [one for one in metrics if not is_repeat(one)]


def topic(metric: str) -> str:
    """What metrics of one kind have in common, their first word: "text" for text_to_image_R@1 and text_to_image_R@5."""
    return re.match("[a-zA-Z]*", bare_name(metric))[0]  # type: ignore[index]


def label(metric: str) -> str:
    """A metric's name for readers: "text → image R@1" for "text_to_image_R@1", "zero-shot top-1" for "zero_shot_top1"."""
    words = metric.replace("zero_shot", "zero-shot").replace("_to_", " → ").replace("_", " ")
    return re.sub(r"\btop(?=\d)", "top-", words)


def headline(metrics: Iterable[Metric], most: int = 4) -> list[list[Metric]]:
    """The scores that people quote first, at most `most`, each with the values of all its models in the order of the columns.

    Of each evaluator and dataset in turn the metric with the smallest cut-off, such as R@1, then the next. Metrics that are
    better when they are smaller, ranks, shares of ties and metrics without a value do not count as scores.

    Example:
        >>> rows = [Metric("knn", "digits", f"knn{k}_top1", "trained", 0.9, None, None, 180) for k in (20, 1, 5)]
        >>> [own[0].metric for own in headline(rows, most=2)]
        ['knn1_top1', 'knn5_top1']
    """
    scores: dict[tuple[str, str, str], list[Metric]] = {}
    for metric in quoted(metrics):
        if metric.value is not None and not lower_is_better(metric.metric) and not name_parts(metric.metric) & {"rank", "tied"}:
            scores.setdefault(metric.key[:3], []).append(metric)
    places: dict[tuple[str, str], list[tuple[str, str, str]]] = {key[:2]: [] for key in scores}
    for key in sorted(scores, key=lambda key: _cutoff(key[2])):
        places[key[:2]].append(key)
    in_turn = [key for turn in itertools.zip_longest(*places.values()) for key in turn if key is not None]
    chosen = sorted(in_turn, key=lambda key: not name_parts(key[2]) & _QUOTED)[:most]  # evaluators that nobody quotes come last
    columns = by_column(metric.model for own in scores.values() for metric in own)
    return [sorted(scores[key], key=lambda metric: columns.index(metric.model)) for key in chosen]


def _cutoff(metric: str) -> int:
    """The k of "R@5", "top5" and "knn5_top1"; 0 if there is none."""
    numbers = re.findall(r"\d+", bare_name(metric))
    return max(map(int, numbers), default=0)
