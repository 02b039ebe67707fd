"""Evaluation of a model on named tasks of mteb, whose results lie where mteb keeps them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mmcl.errors import UserError
from mmcl.evaluate.reporting.text_table import text_table
from mmcl.files.hub import data_not_found, is_reachable, offline_if_unreachable
from mmcl.files.untrusted import reason
from mmcl.interop.mteb import MTEBModel, import_mteb
from mmcl.terminal import listed

_BATCH = 256
_DIGITS = 6
"""Those of the scores in mteb's files, so that a result is the same when it is read again."""


@dataclass(frozen=True, slots=True)
class Score:
    """The main score of a model on a subset of a split of a task.

    Attributes:
        task: name of the task.
        type: what kind of task it is, in the words of mteb: "Any2AnyRetrieval".
        split, subset: which of its data.
        metric: name of the score in mteb, such as "ndcg_at_10".
        value: the score.
        file: where all scores of the task are.
    """

    task: str
    type: str
    split: str
    subset: str
    metric: str
    value: float
    file: Path


def result_name(model: str) -> str:
    """Returns the name of a model in mteb's results: that of its folder, or its own in letters that a file name may have."""
    name = Path(model).resolve().name if Path(model).is_dir() else model
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "model"


def named_tasks(names: Sequence[str]) -> list[Any]:
    """Returns tasks of mteb by name, which loads no data.

    Raises:
        UserError: mteb is not installed, or has no such task.
    """
    mteb = import_mteb()
    return [_named_task(mteb, name) for name in dict.fromkeys(names)]


def _named_task(mteb: Any, name: str) -> Any:
    try:
        return mteb.get_task(name)
    except KeyError as error:
        nearest = re.search("Did you mean: ('.*')", str(error))
        hint = f"did you mean {nearest[1]}?" if nearest else "its site lists them all"
        raise UserError(f"mteb {mteb.__version__} has no task {name!r}; {hint}") from None


def evaluate_tasks(model: MTEBModel, tasks: Sequence[Any], folder: Path | None) -> tuple[list[Score], list[str]]:
    """Evaluates a model on tasks of mteb, as `mteb.evaluate` does: tasks that it has results for are not run again.

    Args:
        tasks: instances of mteb's tasks.
        folder: mteb's folder of results; None for the default, $MTEB_CACHE or else ~/.cache/mteb.

    Returns:
        The main scores, and for every task that could not be evaluated, a line that says why.
    """
    scores, failures = [], []
    for task in tasks:
        try:
            scores += _evaluated(model, task, folder)
        except Exception as error:  # from the hub, the network, the file system, the data, or the task's own code
            failures.append(str(_in_a_line(error, task)))
    return scores, failures


def scores_in_words(scores: Sequence[Score], width: int) -> str:
    """A table with a row for each split of a task, with the mean over its subsets."""
    parts: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        parts.setdefault((score.task, score.split), []).append(score)
    rows = []
    for (task, split), own in parts.items():
        kind = re.sub(r"(?<=[a-z\d])(?=[A-Z][a-z])", " ", own[0].type)
        on = split if len(own) == 1 else f"{split}, mean of {len(own)} subsets"
        rows.append([task, f"{fmean(one.value for one in own):.3f}", own[0].metric.replace("_", " "), kind, on])
    return text_table("main scores of mteb", ["task", "score", "of", "kind of task", "data"], rows, width)


def _evaluated(model: MTEBModel, task: Any, folder: Path | None) -> list[Score]:
    mteb = import_mteb()
    meta, facts = model.mteb_model_meta, task.metadata
    if missing := sorted({*facts.modalities} - {*meta.modalities}):
        raise UserError(f"needs a model of {listed(sorted(facts.modalities))}, and this one does not embed {listed(missing)}")
    results = mteb.ResultCache(folder)
    with offline_if_unreachable():
        found = mteb.evaluate(
            model,
            task,
            cache=results,
            co2_tracker=False,
            encode_kwargs={"batch_size": _BATCH, "show_progress_bar": False},
            public_only=False,  # private data that cannot be had are an error, too
            show_progress_bar=False,
        )
    file = results.get_task_result_path(facts.name, meta)
    return [
        Score(facts.name, facts.type, split, one["hf_subset"], facts.main_score, round(float(one["main_score"]), _DIGITS), file)
        for result in found.task_results
        for split, subsets in result.scores.items()
        for one in subsets
    ]


def _in_a_line(error: Exception, task: Any) -> UserError:
    name = task.metadata.name
    if isinstance(error, UserError) or task.data_loaded or is_reachable():
        return UserError(f"{name}: {reason(error)}")
    return data_not_found(name)
