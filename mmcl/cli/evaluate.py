"""`mmcl eval`: a run's own evaluators, a single evaluator on any model and data, or a suite."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from mmcl.cli.exit import PART
from mmcl.cli.output import say, show
from mmcl.cli.parse import parse_call
from mmcl.cli.reports import All, show_next, show_report
from mmcl.cli.sources import parse_mapping, parse_source
from mmcl.config import EvaluatorConfig
from mmcl.errors import UserError
from mmcl.files.atomic import check_folder

if TYPE_CHECKING:
    from mmcl.evaluate import CachedModel, Report
    from mmcl.evaluate.cache import EmbeddingCache

_SHORT = {"probe": "linear_probe", "map": "embedding_map"}

NoCache = Annotated[
    bool, tyro.conf.arg(help="Encode again what is in the cache of embeddings ($MMCL_CACHE), and keep nothing.")
]
Out = Annotated[Path | None, tyro.conf.arg(help="Write report.html, report.md, metrics.json, .csv and the figures here.")]
Root = Annotated[
    str | None,
    tyro.conf.arg(
        help="Folder with downloaded datasets; default: the environment variable MMCL_DATA_ROOT, else ~/.cache/mmcl."
    ),
]
Json = Annotated[bool, tyro.conf.arg(help="Print the metrics as JSON instead of tables.")]


def evaluate(words: Sequence[str]) -> None:
    """Parses the words after `mmcl eval`: the first one says which of the three forms it is.

    Raises:
        UserError: anything that the user can fix.
    """
    first, prog = words[0] if words else "", "mmcl eval"
    form: Callable[..., None] = evaluate_run
    if first == "suite":
        form, prog, words = evaluate_suite, "mmcl eval suite", words[1:]
    elif _evaluator(first) is not None:
        form = evaluate_one
    parse_call(form, words, prog=prog)()


def evaluate_run(
    run: Positional[str], /, *, out: Out = None, all: All = False, json: Json = False, no_cache: NoCache = False
) -> None:
    """Evaluate a run again, next to its baselines: mmcl eval runs/clip_emoji

    Any model on any data: mmcl eval knn --model runs/clip_emoji --data photos/ --bank labelled/

    Embeddings from anywhere: mmcl eval retrieval --embeddings e.parquet

    Many models on many datasets: mmcl eval suite eval/emoji --models runs/a runs/b

    Args:
        run: A run directory; or one of the words retrieval, zero-shot, knn, probe, map, ... (`mmcl list evaluators`) and suite,
            which have a --help of their own: mmcl eval knn --help
    """
    _check(out)
    from mmcl.interop.load import load_model
    from mmcl.runs.evaluation import evaluate_again

    report = evaluate_again(Path(run), load_model(run), cache=_cache(no_cache))
    _finish(report, out, json, all, _command(run))


def evaluate_one(
    evaluator: Positional[str],
    /,
    *,
    model: str | None = None,
    data: str | None = None,
    data_args: str = "{}",
    bank: str | None = None,
    bank_args: str = "{}",
    embeddings: Path | None = None,
    bank_embeddings: Path | None = None,
    args: str = "{}",
    root: Root = None,
    out: Out = None,
    all: All = False,
    json: Json = False,
    no_cache: NoCache = False,
) -> None:
    """Evaluate any model on any data: mmcl eval retrieval --model runs/clip_emoji --data photos/

    Or embeddings that were computed elsewhere: mmcl eval knn --embeddings test.parquet --bank-embeddings train.parquet

    Args:
        evaluator: retrieval, zero-shot, knn, probe, map, ...: `mmcl list evaluators`.
        model: A run directory, open_clip:ARCH/PRETRAINED, hf:ID, timm:NAME or torchvision:NAME.
        data: What to evaluate on: a path, or the name of a source (`mmcl list sources`).
        data_args: The source's arguments as YAML, e.g. "{fold: test}".
        bank: The labelled data that knn and probe learn from; a path or a name.
        bank_args: Its arguments.
        embeddings: A parquet file instead of model and data; as `mmcl embed` writes it, with a row for each image, text or
            class: the columns kind (image, text, class), embedding, id (equal ones belong together), label and name.
        bank_embeddings: One with the labelled images that knn and probe learn from.
        args: The evaluator's arguments as YAML, e.g. "{ks: [1, 5]}" (`mmcl list evaluators --args`).
    """
    _check(out)
    name = _evaluator(evaluator)
    assert name is not None, "the words were parsed by their first"
    if embeddings is not None:
        if model is not None or data is not None or bank is not None:
            raise UserError("--embeddings takes the place of --model, --data and --bank; give one or the other")
        again = _command(evaluator, embeddings=embeddings, bank_embeddings=bank_embeddings, args=args)
        _finish(_of_embeddings(name, embeddings, bank_embeddings, parse_mapping("--args", args)), out, json, all, again)
        return
    if bank_embeddings is not None:
        raise UserError("--bank-embeddings goes with --embeddings; with --model and --data, give --bank")
    if model is None or data is None:
        raise UserError(
            f"mmcl eval {evaluator} needs --model and --data (a path, or one of `mmcl list sources`), or --embeddings"
        )
    from mmcl.runs.evaluation import build_tasks, evaluate_models

    config = EvaluatorConfig(
        name=name,
        label=data,
        data=parse_source(data, data_args, flag="--data-args"),
        bank=parse_source(bank, bank_args, flag="--bank-args") if bank else None,
        args=parse_mapping("--args", args),
    )
    of_data = {"data": data, "data_args": data_args, "bank": bank, "bank_args": bank_args}
    again = _command(evaluator, model=model, **of_data, args=args, root=root)
    report = evaluate_models([load_cached(model, no_cache)], [config], build_tasks([config], root))
    _finish(report, out, json, all, again)


def evaluate_suite(
    files: Positional[tuple[Path, ...]],
    /,
    *,
    models: tuple[str, ...] = (),
    out: Path | None = None,
    root: Root = None,
    all: All = False,
    json: Json = False,
    no_cache: NoCache = False,
) -> None:
    """Evaluate many models on many datasets: mmcl eval suite eval/emoji --models runs/a runs/b

    Every result is kept as soon as it is there: a suite that was stopped goes on where it was, and one with a new model or data
    set computes only what is new.

    Args:
        files: YAML files with a list `evaluate`, as in the configuration of a run, and perhaps a list `models`; or shipped ones
            by name, such as eval/emoji.
        models: Instead of those that the files name: run directories, open_clip:ARCH/PRETRAINED, hf:ID, ...
        out: Folder of the tables (report.md, report.html, metrics.csv, metrics.json) and of the results that are kept; default:
            runs/eval/<name of the first file>.
    """
    if not files:
        raise UserError("no suite given: mmcl eval suite eval/emoji")
    folder = out or Path("runs/eval") / files[0].stem
    _check(folder)
    from mmcl.runs.suite import load_suite, run_suite

    suite = load_suite(files, models=models)
    report = run_suite(suite, folder, root=root, cache=_cache(no_cache), progress=True)
    _finish(report, folder, json, all, "")


def _check(out: Path | None) -> None:
    if out is not None:
        check_folder(out, flag="--out")


def _evaluator(word: str) -> str | None:
    """Returns the registered name of an evaluator from its name on the command line."""
    if not word or word.startswith("-"):
        return None
    from mmcl.evaluate import EVALUATORS

    name = _SHORT.get(word, word.replace("-", "_"))
    return name if name in EVALUATORS else None


def _of_embeddings(evaluator: str, path: Path, bank: Path | None, args: dict[str, object]) -> Report:

    from mmcl.evaluate import CachedModel, run
    from mmcl.evaluate.embedding_file import stored_task

    model, task = stored_task(path, bank)
    return run([(evaluator, args)], [CachedModel(model)], [task])


def _finish(report: Report, out: Path | None, json: bool, everything: bool, again: str) -> None:
    """Writes and prints a report.

    Args:
        again: the command, which is printed with --out as what to run next, unless there is a folder with the report.
    """
    from mmcl.runs.next_steps import against_baseline

    steps = (f"{again} --out report",) if out is None else against_baseline(report, out)
    if out is not None:
        replace(report, next_steps=steps).write(out)
    if json:
        show(report.to_json())
        for failure in report.failures:
            say(f"not evaluated: {failure}", error=True)
    else:
        show_report(report, everything=everything)
        if out is not None:
            say(f"report   {out}/report.html")
        show_next(steps)
    if report.failures:  # listed above
        sys.exit(PART)


def _command(*words: str, **flags: str | Path | None) -> str:
    """A command line with those of the flags that are not at their default."""
    given = [part for name, value in flags.items() if value not in (None, "{}") for part in (f"--{name}", str(value))]
    return shlex.join(["mmcl", "eval", *words, *given])


def _cache(no_cache: bool) -> EmbeddingCache | None:
    from mmcl.evaluate.cache import default_cache

    return None if no_cache else default_cache()


def load_cached(name: str, no_cache: bool) -> CachedModel:
    """Loads a model by name, with the cache of embeddings unless `no_cache` is set."""
    from mmcl.evaluate import CachedModel
    from mmcl.interop.load import load_model

    return CachedModel(load_model(name), cache=_cache(no_cache))
