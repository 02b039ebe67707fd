"""`mmcl merge`: the mean of the weights of several models."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mmcl.cli.options import Device, Root
from mmcl.cli.output import say
from mmcl.cli.reports import show_next, show_report
from mmcl.cli.sources import parse_source
from mmcl.config import SourceConfig
from mmcl.errors import UserError
from mmcl.files.atomic import check_folder

if TYPE_CHECKING:
    from mmcl.data.source import Source
    from mmcl.evaluate import Report
    from mmcl.interop.model import Model
    from mmcl.runs.merging import Search

_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def merge(
    models: tuple[str, ...],
    /,
    *,
    out: Path,
    alpha: tuple[float, ...] = (),
    weights: tuple[float, ...] = (),
    soup: bool = False,
    evaluate: tuple[Path, ...] = (),
    choose: str | None = None,
    statistics: str | None = None,
    statistics_args: str = "{}",
    root: Root = None,
    device: Device = None,
) -> None:
    """Average the weights of models that were trained from the same one.

    Examples:
        mmcl train clip_finetune --data.train.path photos/
        mmcl merge runs/clip_emoji runs/clip_finetune --alpha 0.5 --out runs/half

    Halfway between a model and its fine-tuned copy, the new data often score as high as at the end, and the old ones nearly as
    high as at the start. Give data of both to see the curve. The best mean is written, so choose on data other than test data.

    Args:
        models: Two or more: a run directory, open_clip:ARCH/TAG or hf:ID. They must have the same architecture.
        out: Folder to write. It gets model/, and with --evaluate also report/ and merge.json.
        alpha: Shares of the second of two models; beyond 0 to 1 it extrapolates. With --evaluate by default 0 0.25 0.5 0.75 1.
        weights: One per model, which sum to 1. By default equal ones.
        soup: Add model after model while the score does not fall. To an equal mean, the best first.
        evaluate: Suites to choose the best by. YAML files, or names of shipped ones, as for `mmcl eval suite`.
        choose: LABEL/METRIC to choose by. By default the mean of the first metric of each evaluator.
        statistics: Training data, for statistics of batch norm. A path or a source; they are computed again from it.
        statistics_args: Arguments of that source, such as "{fold: train}".
    """
    check_folder(out, flag="--out")
    _check_flags(models, alpha, weights, soup, evaluate)
    given = _statistics_source(statistics, statistics_args)
    from mmcl.interop.load import load_model

    loaded = {name: load_model(name, device=device) for name in models}
    data = _statistics(loaded, given, root)
    if not evaluate:
        _write_one(loaded, _weights(loaded, alpha, weights), data, out)
        return
    evaluated = partial(_evaluate, evaluate, tuple(models), out, root)
    found = _search(loaded, alpha, soup, evaluated, choose, data)
    _finish(loaded, found, data, out)


def _check_flags(
    models: tuple[str, ...], alpha: tuple[float, ...], weights: tuple[float, ...], soup: bool, evaluate: tuple[Path, ...]
) -> None:
    if len(set(models)) < max(2, len(models)):
        raise UserError("mmcl merge needs two or more different models: mmcl merge runs/start runs/tuned --out runs/between")
    if sum((bool(alpha), bool(weights), soup)) > 1:
        raise UserError("--alpha, --weights and --soup exclude each other: give one of them")
    if alpha and len(models) != 2:
        raise UserError(f"--alpha is for two models, but there are {len(models)}: give --weights or --soup")
    if soup and not evaluate:
        raise UserError("--soup chooses by scores: give --evaluate SUITE")
    if len(alpha) > 1 and not evaluate:
        raise UserError("with several --alpha one is chosen by its scores: give --evaluate SUITE, or a single --alpha")
    if weights and evaluate:
        raise UserError("--weights are a choice, so there is none for --evaluate to make: leave one of them out")
    if evaluate and not soup and len(models) != 2:
        raise UserError(f"--evaluate chooses between two models, but there are {len(models)}: give --soup")


def _statistics_source(name: str | None, args: str) -> SourceConfig | None:
    if name is None and args != "{}":
        raise UserError("--statistics_args goes with --statistics: give the source, or leave its arguments out")
    return None if name is None else parse_source(name, args, flag="--statistics_args")


def _statistics(models: Mapping[str, Model], given: SourceConfig | None, root: str | None) -> Source | None:
    from mmcl.interop.merge import statistics_differ
    from mmcl.runs.build_data import build_source

    if given is not None:
        return build_source(given, root, "statistics")
    if statistics_differ([*models.values()]):
        raise UserError(
            "the models differ in their statistics of batch norm, which a mean of weights does not determine: give the "
            "training data, --statistics DATA"
        )
    return None


def _weights(models: Mapping[str, Model], alpha: tuple[float, ...], weights: tuple[float, ...]) -> tuple[float, ...] | None:
    return (1 - alpha[0], alpha[0]) if alpha else weights or None


def _write_one(models: Mapping[str, Model], weights: tuple[float, ...] | None, statistics: Source | None, out: Path) -> None:
    from mmcl.interop.merge import merge as merge_models

    merge_models([*models.values()], weights, statistics=statistics).save(out / "model")
    say(f"model    {out}/model")
    show_next([shlex.join(["mmcl", "eval", "suite", "SUITE", "--models", *models, str(out)])])


def _evaluate(
    files: tuple[Path, ...],
    names: tuple[str, ...],
    out: Path,
    root: str | None,
    models: Mapping[str, Callable[[], Model]],
) -> Report:
    from mmcl.evaluate.cache import default_cache
    from mmcl.runs.suite import evaluate_in_turn, load_suite

    suite = load_suite(files, models=names)
    return evaluate_in_turn(suite.evaluate, models, out, root=root, cache=default_cache(), progress=True)


def _search(
    models: Mapping[str, Model],
    alpha: tuple[float, ...],
    soup: bool,
    evaluate: Callable[[Mapping[str, Callable[[], Model]]], Report],
    choose: str | None,
    statistics: Source | None,
) -> Search:
    from mmcl.runs.merging import search_between, search_soup

    if soup:
        return search_soup(models, evaluate, choose=choose, statistics=statistics)
    return search_between(models, alpha or _ALPHAS, evaluate, choose=choose, statistics=statistics)


def _finish(models: Mapping[str, Model], found: Search, statistics: Source | None, out: Path) -> None:
    from mmcl.interop.merge import merge as merge_models

    found.write(out, merge_models([*models.values()], found.chosen.weights, statistics=statistics))
    show_report(found.report, everything=False)
    say(f"chosen   {found.chosen.name}, by {found.score}")
    say(f"model    {out}/model")
    say(f"report   {out}/report/report.html")
    show_next([shlex.join(["mmcl", "search", str(out), "a cat", "--images", "photos/"])])
