"""Evaluation of many models on many datasets; results are cached by a hash of their inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mmcl.config import EvaluatorConfig, read_as, refuse_equal_labels
from mmcl.config.shipped import find_config
from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS, CachedModel, Report, Task, run
from mmcl.evaluate.cache import EmbeddingCache, library_versions
from mmcl.evaluate.task import NeedsTexts
from mmcl.files.atomic import staged
from mmcl.files.digest import digest
from mmcl.interop.device import find_device
from mmcl.interop.load import load_model
from mmcl.interop.model import Model
from mmcl.logging import get_logger
from mmcl.progress import progress_bar
from mmcl.runs.evaluation import build_tasks
from mmcl.runs.read_columns import check_columns, evaluated_sources
from mmcl.terminal import printable_line

logger = get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """Contents of a suite file."""

    evaluate: tuple[EvaluatorConfig, ...]
    """Evaluators as in the configuration of a run; each must name its data."""
    models: tuple[str, ...] = ()
    """Run directories or other names that `load_model` accepts; each is a column."""


def load_suite(files: Sequence[Path], *, models: Sequence[str] = ()) -> Suite:
    """Read files into one suite.

    Args:
        files: paths, or names of shipped suites such as "eval/emoji".
        models: models to use instead of those in the files.

    Raises:
        UserError: a file is missing or invalid, there are no models, or an evaluator does not exist, lacks data or does
            not use their targets.
    """
    parts = [_read(file) for file in files]
    evaluators = tuple(evaluator for part in parts for evaluator in part.evaluate)
    refuse_equal_labels(evaluators, f"{', '.join(map(str, files))}: evaluate")
    named = tuple(dict.fromkeys(models or (model for part in parts for model in part.models)))
    if not named:
        raise UserError(f"{files[0]} names no model; give some: --models runs/a runs/b")
    return Suite(evaluate=evaluators, models=named)


def run_suite(
    suite: Suite,
    folder: Path,
    *,
    root: str | None = None,
    device: str | None = None,
    cache: EmbeddingCache | None = None,
    progress: bool = False,
) -> Report:
    """Run the evaluations that have no cached result, and combine all results. Baselines are computed for the first model.

    A model without a text tower skips evaluators that need texts, with a note. Models that cannot be loaded, and other
    evaluations that fail, are listed in the report's `failures`.

    Args:
        folder: results are stored in `folder/results`.
        root: folder with downloaded datasets.
        device: device to run the models on, see `load_model`.
        cache: cache for embeddings, if any.
        progress: whether to show a progress bar.

    Raises:
        UserError: data cannot be loaded, or nothing could be evaluated.
    """
    find_device(device)
    models = {name: partial(load_model, name, device=device) for name in suite.models}
    return evaluate_in_turn(suite.evaluate, models, folder, root=root, cache=cache, progress=progress)


def evaluate_in_turn(
    evaluators: Sequence[EvaluatorConfig],
    models: Mapping[str, Callable[[], Model]],
    folder: Path,
    *,
    root: str | None = None,
    cache: EmbeddingCache | None = None,
    progress: bool = False,
) -> Report:
    """Evaluate models, of which only one is in memory at a time, as `run_suite` does.

    Args:
        evaluators: each with its data.
        models: by the name of their column, each a function that loads or computes it.
        folder, root, cache, progress: see `run_suite`.
    """
    tasks = build_tasks(evaluators, root)
    report = Report()
    with progress_bar(total=len(models) * len(tasks), shown=progress, unit="result") as bar:
        for name, load in models.items():
            try:
                model = CachedModel(load(), name, cache=cache)
            except UserError as error:
                report += Report(failures=(f"{name}: not loaded: {error}",))
                bar.update(len(tasks))
                continue
            first = not report.provenance
            for evaluator, task in zip(evaluators, tasks, strict=True):
                bar.set_postfix_str(printable_line(f"{name}, {evaluator.name} of {evaluator.label}"))
                report += _result(folder / "results", model, evaluator, replace(task, baselines=first))
                bar.update()
    if not report.metrics and not report.figures:
        raise UserError(f"nothing could be evaluated: {' '.join((*report.notes, *report.failures))}")
    return report


def _read(file: Path) -> Suite:
    file = find_config(file)
    if not file.is_file():
        raise UserError(f"{file}: no such suite; shipped ones have names, such as eval/emoji, which `mmcl config` prints")
    suite = read_as(Suite, file)
    for number, evaluator in enumerate(suite.evaluate):
        EVALUATORS.check(evaluator.name, evaluator.args, where=f"{file}: evaluate.{number}")
        if evaluator.data is None:
            raise UserError(f"{file}: evaluate.{number}.data is missing: a suite has no other data")
        if evaluator.keep:
            raise UserError(f"{file}: evaluate.{number}.keep is for a run with init, which a suite is not; remove it")
    check_columns(evaluated_sources(suite.evaluate, f"{file}: evaluate"), suite.evaluate)
    return suite


def _result(folder: Path, model: CachedModel, evaluator: EvaluatorConfig, task: Task) -> Report:
    """Return the cached result, or compute and cache it."""
    place = folder / _key(model, evaluator, task)
    if place.is_dir():
        try:
            return Report.load(place)
        except UserError as error:
            logger.warning(str(error))
    try:
        report = run([(evaluator.name, evaluator.args)], [model], [task])
    except NeedsTexts as error:
        return Report(notes=(f"{model.name}, {evaluator.name} of {evaluator.label}: not evaluated: {error}",))
    except UserError as error:
        # Failures are not cached, because missing data may exist in a later run.
        return Report(failures=(f"{model.name}, {evaluator.name} of {evaluator.label}: {error}",))
    with staged(place) as stage:
        report.save(stage)
    return report


def _key(model: CachedModel, evaluator: EvaluatorConfig, task: Task) -> str:
    data = task.source.identity, None if task.bank is None else task.bank.identity
    args = json.dumps(evaluator.args, sort_keys=True)
    what = evaluator.name, evaluator.label, args, task.baselines
    return digest(model.name, model.model.fingerprint, what, data, sorted(library_versions().items()))[:32]
