"""Search for the best mean of several models: between a model and its fine-tuned copy, or a soup of several copies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmcl.data.source import Source
from mmcl.errors import UserError
from mmcl.evaluate import Metric, Report
from mmcl.evaluate.reporting.figures import merge_curve
from mmcl.evaluate.reporting.metric import headline, lower_is_better
from mmcl.files.atomic import write_file
from mmcl.interop.merge import merge
from mmcl.interop.model import Model

Evaluate = Callable[[Mapping[str, Callable[[], Model]]], Report]
"""Evaluates models, by the name of their column; each is computed when it is its turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A mean of models.

    Attributes:
        name: its column in the report: "alpha 0.25".
        weights: one per model.
        score: by which it is chosen; higher is better.
    """

    name: str
    weights: tuple[float, ...]
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """Outcome of a search.

    Attributes:
        models: names of the merged models.
        candidates: in the order of evaluation.
        chosen: the best of them.
        score: what the score is, in words.
        report: results of all candidates.
    """

    models: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    score: str
    report: Report

    def write(self, folder: Path, model: Model) -> None:
        """Write the model, the report and merge.json, which holds the weights and scores of all candidates."""
        model.save(folder / "model")
        self.report.write(folder / "report")
        facts = {
            "models": list(self.models),
            "score": self.score,
            "candidates": [{"name": one.name, "weights": list(one.weights), "score": one.score} for one in self.candidates],
            "chosen": self.chosen.name,
        }
        write_file(folder / "merge.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def search_between(
    models: Mapping[str, Model],
    alphas: Sequence[float],
    evaluate: Evaluate,
    *,
    choose: str | None = None,
    statistics: Source | None = None,
) -> Search:
    """Evaluate means (1 - alpha) * first + alpha * second, and choose the best; of equal ones the first.

    Args:
        models: two, by name.
        alphas: shares of the second.
        evaluate: evaluates the means.
        choose: LABEL/METRIC to choose by; None for the mean over all data of the metric that is quoted first.
        statistics: see `merge`.

    Raises:
        UserError: there are not two models, they cannot be merged, or `choose` names no metric.
    """
    if len(models) != 2:
        raise UserError(f"alpha is a share of the second of two models, but there are {len(models)}: give weights, or a soup")
    weights = {f"alpha {alpha:g}": (1 - alpha, alpha) for alpha in alphas}
    report = evaluate({name: partial(merge, [*models.values()], one, statistics=statistics) for name, one in weights.items()})
    found = [Candidate(name=name, weights=one, score=_score(report, name, choose)) for name, one in weights.items()]
    chosen = max(found, key=lambda one: one.score)
    curve = merge_curve(alphas, [_values(report, key, weights) for key in _keys(report, choose)], chosen.weights[1])
    report = replace(report, figures={**report.figures, "merge": curve})
    return _search(models, found, chosen, report, choose)


def search_soup(
    models: Mapping[str, Model],
    evaluate: Evaluate,
    *,
    choose: str | None = None,
    statistics: Source | None = None,
) -> Search:
    """Add the models to an equal mean, the best first, each only if the score does not fall (Wortsman et al., "Model soups",
    2022, algorithm 1, "greedy soup").

    Args:
        models: two or more, by name.
        evaluate, choose, statistics: see `search_between`.

    Raises:
        UserError: they cannot be merged, or `choose` names no metric.
    """
    names = list(models)
    merge([*models.values()])  # refuses models that differ, before any is evaluated

    def mean(members: Sequence[str]) -> tuple[float, ...]:
        return tuple(1 / len(members) if name in members else 0.0 for name in names)

    report = evaluate({name: partial(merge, [*models.values()], mean([name])) for name in names})
    found = [Candidate(name=name, weights=mean([name]), score=_score(report, name, choose)) for name in names]
    best, *others = sorted(found, key=lambda one: -one.score)
    chosen, members = best, [best.name]
    for other in others:
        weights = mean([*members, other.name])
        name = " + ".join([*members, other.name])
        report += evaluate({name: partial(merge, [*models.values()], weights, statistics=statistics)})
        candidate = Candidate(name=name, weights=weights, score=_score(report, name, choose))
        found.append(candidate)
        if candidate.score >= chosen.score:
            chosen, members = candidate, [*members, other.name]
    return _search(models, found, chosen, report, choose)


def _search(
    models: Mapping[str, Model], found: Sequence[Candidate], chosen: Candidate, report: Report, choose: str | None
) -> Search:
    keys = _keys(report, choose)
    score = ("the mean of " if len(keys) > 1 else "") + ", ".join(f"{metric} of {data}" for _, data, metric in keys)
    note = f"{chosen.name} was chosen by {score}, so its own score there is optimistic."
    return Search(
        models=tuple(models),
        candidates=tuple(found),
        chosen=chosen,
        score=score,
        report=replace(report, notes=(*report.notes, note)),
    )


def _keys(report: Report, choose: str | None) -> list[tuple[str, str, str]]:
    """Evaluator, data and metric of every number that the score is the mean of."""
    if choose is not None:
        named = dict.fromkeys(metric.key[:3] for metric in report.metrics if f"{metric.data}/{metric.metric}" == choose)
        if not named:
            known = ", ".join(dict.fromkeys(f"{data}/{metric}" for _, data, metric in _keys(report, None)))
            raise UserError(f"--choose {choose}: no evaluator gives this; give LABEL/METRIC, such as {known}")
        return list(named)
    places: dict[tuple[str, str], list[Metric]] = {}
    for metric in report.metrics:
        places.setdefault(metric.key[:2], []).append(metric)
    first = [headline(metrics, most=1) for metrics in places.values()]
    keys = [shown[0][0].key[:3] for shown in first if shown]
    if not keys:
        raise UserError("no evaluator gives a score to choose by: choose one by name, LABEL/METRIC")
    return keys


def _score(report: Report, model: str, choose: str | None) -> float:
    values = []
    for key in _keys(report, choose):
        value = next((one.value for one in report.metrics if one.key == (*key, model)), None)
        if value is None:
            raise UserError(f"{model} has no {key[2]} of {key[1]}: {' '.join(report.failures) or 'choose by another metric'}")
        values.append(-value if lower_is_better(key[2]) else value)
    return sum(values) / len(values)


def _values(report: Report, key: tuple[str, str, str], names: Mapping[str, Any]) -> list[Metric]:
    return [one for name in names for one in report.metrics if one.key == (*key, name)]
