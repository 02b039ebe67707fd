"""Running of evaluators on models and tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmcl.errors import UserError, first_line
from mmcl.evaluate import EVALUATORS
from mmcl.evaluate.reporting.report import Report
from mmcl.evaluate.task import CachedModel, Task
from mmcl.logging import get_logger
from mmcl.progress import progress_bar
from mmcl.terminal import printable_line

logger = get_logger(__name__)


def run(evaluators: Iterable[tuple[str, Mapping[str, Any]]], models: Iterable[CachedModel], tasks: Iterable[Task]) -> Report:
    """Runs every evaluator with every model on every task. The report includes provenance and the names of the rows.

    Args:
        evaluators: names in `EVALUATORS`, each with its arguments.
        models: one column of the report each, such as trained and untrained. Baselines are computed for the first model only.
        tasks: datasets to evaluate on.

    Raises:
        UserError: two evaluators, models or tasks have the same name, so that their results would replace each other; or
            nothing could be evaluated, see `run_all`.

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
    """Runs jobs of one evaluator and one task each: (name, arguments, task); see `run`.

    A job that fails does not stop the others; it is listed in the report's `failures`. If all jobs fail, the first error is
    raised.

    Example:
        >>> from mmcl import load_model, open_source
        >>> model, source = CachedModel(load_model("runs/clip_emoji")), open_source("digits")
        >>> task = Task("digits", source, baselines=False)
        >>> report = run_all([("geometry", {}, task), ("retrieval", {}, task)], [model])
        >>> report["effective_rank"] > 1, report.failures[0].partition(";")[0]
        (True, 'retrieval, digits, trained: digits: no sample has a caption, which retrieval needs')
    """
    report, errors = Report(), []
    todo = [(*job, number, model) for job in jobs for number, model in enumerate(models)]
    with progress_bar(total=len(todo), shown=len(todo) > 1, unit="result") as bar:
        for name, args, task, number, model in todo:
            title = ", ".join(filter(None, (name, task.name, model.name)))
            bar.set_postfix_str(printable_line(title))
            try:
                EVALUATORS.check(name, args)
                own: Report = EVALUATORS[name](
                    model, task if number == 0 else replace(task, baselines=False, figures=False), **args
                )
                report += own.with_names(task.row_names) + Report(provenance=(task.provenance(name, model),))
            except Exception as error:  # even a bug must not discard the results of hours of training and evaluation
                if not isinstance(error, UserError):
                    logger.exception(f"{name} of {model.name}: not evaluated")
                errors.append(error)
                what = first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
                report += Report(failures=(f"{title}: {what}",))
            bar.update()
    if errors and not report.metrics and not report.figures:
        raise errors[0]
    return report


def check(name: str, args: Mapping[str, Any], task: Task, *, has_text: bool) -> None:
    """Checks the arguments and the data of an evaluator before a model exists.

    Args:
        has_text: True if the model will embed texts.

    Raises:
        UserError: the evaluator cannot run.

    Example:
        >>> from mmcl import open_source
        >>> source = open_source("digits")
        >>> check("knn", {"ks": [5]}, Task("digits", source, bank=source), has_text=False)
    """
    EVALUATORS.check(name, args)
    own = getattr(EVALUATORS[name], "check", None)  # set by `needs`; third-party evaluators may not have one
    if own is not None:
        own(task, has_text, **args)


def _refuse_equal_names(kind: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two {kind} are called {name!r}: give each a name of its own, or run them one after the other")
