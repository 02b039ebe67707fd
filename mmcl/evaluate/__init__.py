"""How good an embedding is: plain functions on arrays, and the same as evaluators of a model on a data source.

The functions need no model: arrays in, `Report` out. `compare` takes two reports of the same data,
`project` draws a map to look at.
An evaluator is a function `(model: CachedModel, task: Task, *, args) -> Report`, decorated by `needs` with what it needs of the
data; `run` runs several of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmcl.errors import UserError, first_line
from mmcl.evaluate.classifier import ZeroShotClassifier
from mmcl.evaluate.evaluators.embedding_map import embedding_map
from mmcl.evaluate.evaluators.few_shot import few_shot
from mmcl.evaluate.evaluators.geometry import geometry
from mmcl.evaluate.evaluators.groups import groups
from mmcl.evaluate.evaluators.knn import knn
from mmcl.evaluate.evaluators.linear_probe import linear_probe
from mmcl.evaluate.evaluators.multi_label import zero_shot_multilabel
from mmcl.evaluate.evaluators.pairs import pairs, winoground
from mmcl.evaluate.evaluators.projection import Projection, project
from mmcl.evaluate.evaluators.rejection import zero_shot_reject
from mmcl.evaluate.evaluators.retrieval import retrieval, retrieval_from_scores
from mmcl.evaluate.evaluators.robustness import effective_robustness, robustness
from mmcl.evaluate.evaluators.sts import sts
from mmcl.evaluate.evaluators.zero_shot import zero_shot
from mmcl.evaluate.prompts import class_embeddings
from mmcl.evaluate.reporting.compare import Comparison, Difference, compare
from mmcl.evaluate.reporting.metric import Metric, Provenance
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.task import CachedModel, Task, needs
from mmcl.logging import get_logger
from mmcl.registry import Registry

logger = get_logger(__name__)

__all__ = [
    "EVALUATORS",
    "CachedModel",
    "Comparison",
    "Difference",
    "Metric",
    "Projection",
    "Provenance",
    "Report",
    "Task",
    "ZeroShotClassifier",
    "check",
    "class_embeddings",
    "compare",
    "effective_robustness",
    "embedding_map",
    "few_shot",
    "geometry",
    "groups",
    "knn",
    "linear_probe",
    "needs",
    "pairs",
    "project",
    "retrieval",
    "retrieval_from_scores",
    "robustness",
    "run",
    "run_all",
    "sts",
    "winoground",
    "zero_shot",
    "zero_shot_multilabel",
    "zero_shot_reject",
]

EVALUATORS = Registry(
    "evaluator",
    {
        "retrieval": "mmcl.evaluate.evaluators.retrieval:evaluate_retrieval",
        "zero_shot": "mmcl.evaluate.evaluators.zero_shot:evaluate_zero_shot",
        "knn": "mmcl.evaluate.evaluators.knn:evaluate_knn",
        "classification": "mmcl.evaluate.evaluators.classification:evaluate_classification",
        "linear_probe": "mmcl.evaluate.evaluators.linear_probe:evaluate_linear_probe",
        "few_label": "mmcl.evaluate.evaluators.few_label:evaluate_few_label",
        "few_shot": "mmcl.evaluate.evaluators.few_shot:evaluate_few_shot",
        "pairs": "mmcl.evaluate.evaluators.pairs:evaluate_pairs",
        "zero_shot_reject": "mmcl.evaluate.evaluators.rejection:evaluate_zero_shot_reject",
        "geometry": "mmcl.evaluate.evaluators.geometry:evaluate_geometry",
        "sts": "mmcl.evaluate.evaluators.sts:evaluate_sts",
        "embedding_map": "mmcl.evaluate.evaluators.embedding_map:evaluate_embedding_map",
    },
)


def run(evaluators: Iterable[tuple[str, Mapping[str, Any]]], models: Iterable[CachedModel], tasks: Iterable[Task]) -> Report:
    """Runs every evaluator with every model on every task, and says what the numbers hang on and which rows they are of.

    Args:
        evaluators: names in `EVALUATORS`, each with its arguments.
        models: one column of the report each: trained, untrained. Baselines are computed with the first one only.
        tasks: what to evaluate on.

    Raises:
        UserError: two evaluators, models or tasks have one name: their results would replace each other; or nothing could be
            evaluated, see `run_all`.

    Example:
        >>> from mmcl import load_model, open_source
        >>> model, source = CachedModel(load_model("runs/clip_emoji")), open_source("digits")
        >>> report = run([("geometry", {})], [model], [Task("digits", source, baselines=False)])
        >>> report["effective_rank"] > 1
        True
    """
    evaluators, models, tasks = list(evaluators), list(models), list(tasks)
    _refuse_equal_names("evaluators", [name for name, _ in evaluators])
    _refuse_equal_names("models", [model.name for model in models])
    _refuse_equal_names("tasks", [task.name for task in tasks])
    return run_all([(name, args, task) for task in tasks for name, args in evaluators], models)


def run_all(jobs: Iterable[tuple[str, Mapping[str, Any], Task]], models: Sequence[CachedModel]) -> Report:
    """`run` of evaluators that have each a task of their own: (name, arguments, task).

    What cannot be evaluated costs itself alone, and is listed in the report's `failures`. Only where nothing can be, the first
    error is raised.

    Example:
        >>> from mmcl import load_model, open_source
        >>> model, source = CachedModel(load_model("runs/clip_emoji")), open_source("digits")
        >>> task = Task("digits", source, baselines=False)
        >>> report = run_all([("geometry", {}, task), ("retrieval", {}, task)], [model])
        >>> report["effective_rank"] > 1, report.failures[0].partition(";")[0]
        (True, 'retrieval, digits, trained: digits: no sample has a caption, which retrieval needs')
    """
    report, errors = Report(), []
    for name, args, task in jobs:
        for number, model in enumerate(models):
            try:
                EVALUATORS.check(name, args)
                own: Report = EVALUATORS[name](
                    model, task if number == 0 else replace(task, baselines=False, figures=False), **args
                )
                report += own.with_names(task.row_names) + Report(provenance=(task.provenance(name, model),))
            except Exception as error:  # a bug, too, must not cost what hours of training and evaluation gave
                if not isinstance(error, UserError):
                    logger.exception(f"{name} of {model.name}: not evaluated")
                errors.append(error)
                what = first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
                report += Report(failures=(f"{', '.join(filter(None, (name, task.name, model.name)))}: {what}",))
    if errors and not report.metrics and not report.figures:
        raise errors[0]
    return report


def check(name: str, args: Mapping[str, Any], task: Task, *, has_text: bool) -> None:
    """What can be known of an evaluator before there is a model: whether its arguments and its data are right.

    Args:
        has_text: whether the model will embed texts.

    Raises:
        UserError: it cannot run.

    Example:
        >>> from mmcl import open_source
        >>> source = open_source("digits")
        >>> check("knn", {"ks": [5]}, Task("digits", source, bank=source), has_text=False)
    """
    EVALUATORS.check(name, args)
    own = getattr(EVALUATORS[name], "check", None)  # see `needs`; an evaluator from elsewhere may have none
    if own is not None:
        own(task, has_text, **args)


def _refuse_equal_names(kind: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two {kind} are called {name!r}: give each a name of its own, or run them one after the other")
