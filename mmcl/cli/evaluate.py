"""`mmcl eval`: a run's own evaluators, a single evaluator on any model and data, a suite, or tasks of mteb."""

from __future__ import annotations

import difflib
import functools
import json as json_module
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mmcl.cli.exit import PART
from mmcl.cli.options import RARE, Device, Json, NoCache, Out, Root
from mmcl.cli.output import say, show
from mmcl.cli.parse import parse_call
from mmcl.cli.reports import All, show_next, show_report
from mmcl.cli.sources import parse_mapping, parse_source
from mmcl.config import EvaluatorConfig
from mmcl.errors import UserError
from mmcl.files.atomic import check_folder
from mmcl.interop.available import check_available
from mmcl.terminal import listed, terminal_width

if TYPE_CHECKING:
    from mmcl.evaluate import CachedModel, Report
    from mmcl.evaluate.cache import EmbeddingCache

_SHORT = {"probe": "linear_probe", "map": "embedding_map"}
_SUITE, _MTEB = "suite", "mteb"


def evaluate(words: Sequence[str]) -> None:
    """Parses the words after `mmcl eval`: an evaluator, `suite` or `mteb` among them says which of the four forms it is.

    Raises:
        UserError: anything that the user can fix.
    """
    first, rest = _with_form_first(words)
    form: Callable[..., None] = evaluate_run
    if first in _FORMS:
        form = _FORMS[first]
    elif name := _evaluator(first):
        form = functools.partial(evaluate_one, name)
    elif first and not _may_be_run(first):
        raise _unknown(first)
    else:
        _refuse_model_and_data(words)
        parse_call(form, words, prog="mmcl eval")()
        return
    parse_call(form, rest, prog=f"mmcl eval {first}")()


def evaluate_run(
    run: str,
    /,
    *,
    out: Out = None,
    all: All = False,
    device: Device = None,
    json: Json = False,
    no_cache: NoCache = False,
) -> None:
    """Evaluate a run again, any model on any data, or many models.

    Examples:
        mmcl eval runs/clip_emoji
        mmcl eval retrieval --model runs/clip_emoji --data photos/
        mmcl eval suite eval/emoji --models runs/clip_emoji

    The words retrieval, zero-shot, knn, probe, map, ... (`mmcl list evaluators`), suite and mteb have a help of their own:
    mmcl eval knn --help

    Args:
        run: A run directory; or an evaluator, `suite` or `mteb`, see mmcl eval knn --help.
    """
    _check(out)
    from mmcl.interop.load import load_model
    from mmcl.runs.evaluation import evaluate_again

    report = evaluate_again(Path(run), load_model(run, device=device), cache=_cache(no_cache))
    _finish(report, out, json, all, _command(run))


def evaluate_one(
    evaluator: str,
    /,
    *,
    model: str | None = None,
    data: str | None = None,
    data_args: str = "{}",
    bank: str | None = None,
    bank_args: str = "{}",
    embeddings: Path | None = None,
    bank_embeddings: Annotated[Path | None, RARE] = None,
    args: str = "{}",
    dim: Annotated[int | None, RARE] = None,
    root: Root = None,
    out: Out = None,
    all: All = False,
    device: Device = None,
    json: Json = False,
    no_cache: NoCache = False,
) -> None:
    """Evaluate any model on any data, or embeddings from a file.

    Examples:
        mmcl eval knn --model runs/clip_emoji --bank digits \\
            --data digits --data_args "{fold: test}"

    Args:
        model: A run directory, open_clip:ARCH/TAG or hf:ID. `mmcl list models` shows what can be loaded.
        data: What to evaluate on: a path or a source. `mmcl list sources` lists the sources.
        data_args: Arguments of that source, such as "{fold: test}".
        bank: Labeled data that knn and probe learn from. A path or a source.
        bank_args: Arguments of the bank's source.
        embeddings: A parquet file, in place of model and data. As `mmcl embed` writes it, with a row for each image, text or
            class: the columns kind (image, text, class), embedding, id (equal ones belong together), label and name.
        bank_embeddings: Another parquet file, of the labeled images.
        args: Arguments of the evaluator, such as "{ks: [1, 5]}". `mmcl list evaluators --args` shows them all.
        dim: Width: only the first columns of the embeddings, scaled to unit length. For a model trained with train.matryoshka.
    """
    _check(out)
    if embeddings is not None:
        if any(one is not None for one in (model, data, bank, dim, device, root)) or data_args != "{}" or bank_args != "{}":
            raise UserError(
                "--embeddings replaces a model and data: remove --model, --data, --bank, --dim, --device and --root"
            )
        again = _command(evaluator, embeddings=embeddings, bank_embeddings=bank_embeddings, args=args)
        _finish(_of_embeddings(evaluator, embeddings, bank_embeddings, parse_mapping("--args", args)), out, json, all, again)
        return
    if bank_embeddings is not None:
        raise UserError("--bank_embeddings goes with --embeddings; with --model and --data, give --bank")
    if model is None or data is None:
        missing = {"--model": model, "--data (a path, or one of `mmcl list sources`)": data}
        needed = listed([flag for flag, value in missing.items() if value is None])
        raise UserError(f"mmcl eval {evaluator} needs {needed}{', or --embeddings' if model == data else ''}")
    if bank is None and bank_args != "{}":
        raise UserError("--bank_args goes with --bank: give the labeled data, or leave its arguments out")
    if dim is not None and evaluator == "classification":
        raise UserError("--dim is a width of embeddings, and classification compares logits: leave it out")
    check_available(model)
    from mmcl.evaluate import check as check_task
    from mmcl.runs.evaluation import build_tasks, evaluate_models
    from mmcl.runs.read_columns import check_columns

    config = EvaluatorConfig(
        name=evaluator,
        label=data,
        data=parse_source(data, data_args, flag="--data_args", with_answers=True),
        bank=parse_source(bank, bank_args, flag="--bank_args", with_answers=True) if bank else None,
        args=parse_mapping("--args", args),
    )
    check_columns({"--data_args: ": config.data, "--bank_args: ": config.bank}, [config])
    of_data = {"data": data, "data_args": data_args, "bank": bank, "bank_args": bank_args}
    again = _command(evaluator, model=model, **of_data, args=args, dim=None if dim is None else str(dim), root=root)
    [task] = build_tasks([config], root)
    check_task(evaluator, config.args, task, has_text=True)  # errors that no model can avoid come before it is loaded
    _finish(evaluate_models([load_cached(model, no_cache, device, dim)], [config], [task]), out, json, all, again)


def evaluate_suite(
    files: tuple[Path, ...],
    /,
    *,
    models: tuple[str, ...] = (),
    out: Out = None,
    root: Root = None,
    all: All = False,
    device: Device = None,
    json: Json = False,
    no_cache: NoCache = False,
) -> None:
    """Evaluate many models on many datasets.

    Examples:
        mmcl eval suite eval/emoji --models runs/clip_emoji

    Every result is kept as soon as it is there: a suite that was stopped goes on where it was, and one with a new model or data
    set computes only what is new.

    Args:
        files: Suites: YAML files, or names of shipped ones. Each has a list `evaluate`, as in the configuration of a run, and
            perhaps a list `models`.
        models: Run directories, open_clip:ARCH/TAG or hf:ID. In place of those that the files name.
        out: Folder of the tables and of the results that are kept. By default runs/eval/NAME, after the first file.
    """
    if not files:
        raise UserError("no suite given: mmcl eval suite eval/emoji")
    folder = out or Path("runs/eval") / files[0].stem
    _check(folder)
    from mmcl.runs.suite import load_suite, run_suite

    suite = load_suite(files, models=models)
    report = run_suite(suite, folder, root=root, device=device, cache=_cache(no_cache), progress=True)
    _finish(report, folder, json, all, "")


def evaluate_mteb(
    model: str,
    /,
    *,
    tasks: tuple[str, ...] = (),
    out: Path | None = None,
    dim: Annotated[int | None, RARE] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Evaluate a model on tasks of the benchmark library mteb.

    Examples:
        mmcl eval mteb runs/clip_emoji --tasks CIFAR10ZeroShot Flickr30kT2IRetrieval

    The data of the tasks are downloaded. Results are kept by name and fingerprint of the model: what has been evaluated is not
    evaluated again. Tasks that could not be evaluated are listed, and the exit code is then 1.

    Args:
        model: A run directory, open_clip:ARCH/TAG or hf:ID. `mmcl list models` shows what can be loaded.
        tasks: Names of tasks, as mteb lists them.
        out: Folder of mteb's results. Default: $MTEB_CACHE, else ~/.cache/mteb.
        dim: Width: only the first columns of the embeddings, scaled to unit length. For a model trained with train.matryoshka.
        json: Print JSON instead of text. It is one list: [{"task": ..., "metric": ..., "value": ..., "file": ...}].
    """
    if not tasks:
        raise UserError(f"no task given: mmcl eval mteb {model} --tasks CIFAR10ZeroShot")
    if out is not None:
        check_folder(out, flag="--out")
    check_available(model)
    from mmcl.interop.load import load_model
    from mmcl.interop.mteb import MTEBModel
    from mmcl.interop.truncated import at_dim
    from mmcl.runs.mteb import evaluate_tasks, named_tasks, result_name, scores_in_words

    chosen = named_tasks(tasks)  # before the model is loaded
    scores, failures = evaluate_tasks(MTEBModel(at_dim(load_model(model, device=device), dim), result_name(model)), chosen, out)
    if json:
        show(json_module.dumps([{**asdict(one), "file": str(one.file)} for one in scores], indent=1))
    elif scores:
        show(scores_in_words(scores, terminal_width()))
        say(f"results  {scores[0].file.parent}")
    for failure in failures:
        say(f"not evaluated: {failure}", error=True)
    if failures:
        sys.exit(PART)


_FORMS: dict[str, Callable[..., None]] = {_SUITE: evaluate_suite, _MTEB: evaluate_mteb}
FORMS: list[Callable[..., None]] = [evaluate_run, evaluate_one, *_FORMS.values()]


def _check(out: Path | None) -> None:
    if out is not None:
        check_folder(out, flag="--out", made_by="report.md")


def _with_form_first(words: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the evaluator, `suite` or `mteb`, and the other words; a flag may stand before it."""
    candidates = [0] if words and not words[0].startswith("-") else range(len(words))
    place = next((number for number in candidates if words[number] in _FORMS or _evaluator(words[number])), 0)
    return (words[place] if words else ""), [*words[:place], *words[place + 1 :]]


def _evaluator(word: str) -> str | None:
    """Returns the registered name of an evaluator from its name on the command line."""
    if not word or word.startswith("-"):
        return None
    from mmcl.evaluate import EVALUATORS

    name = _SHORT.get(word, word.replace("-", "_"))
    return name if name in EVALUATORS else None


def _refuse_model_and_data(words: Sequence[str]) -> None:
    """Raises UserError for a flag that only an evaluator has."""
    given = next((word for word in words if word.partition("=")[0] in ("--model", "--data", "--bank", "--embeddings")), None)
    if given is not None:
        raise UserError(
            f"{given.partition('=')[0]} needs an evaluator: mmcl eval retrieval --model RUN --data DATA; the others: "
            "`mmcl list evaluators`"
        )


def _may_be_run(word: str) -> bool:
    return word.startswith("-") or "/" in word or ":" in word or Path(word).exists()


def _unknown(word: str) -> UserError:
    from mmcl.evaluate import EVALUATORS

    known = sorted([*EVALUATORS, *_SHORT, *_FORMS])
    nearest = difflib.get_close_matches(word.replace("-", "_").lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"the evaluators are {', '.join(known)}"
    return UserError(f"{word!r} is neither a run directory nor an evaluator; {hint} (`mmcl list evaluators`)")


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
    from mmcl.evaluate.reporting.report import head_file
    from mmcl.runs.next_steps import against_baseline

    steps = (f"{again} --out report",) if out is None else against_baseline(report, out)
    if out is not None:
        replace(report, next_steps=steps).write(out)
    if json:
        show(report.to_json())
        for failure in report.failures:
            say(f"not evaluated: {failure}", error=True)
    else:
        show_report(report, everything=everything, again=again)
        if out is not None:
            say(f"report   {out}/report.html")
            for name in report.heads:
                say(f"head     {out / head_file(name)}")
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


def load_cached(name: str, no_cache: bool, device: str | None, dim: int | None = None) -> CachedModel:
    """Loads a model by name, at its width or a smaller one, with the cache of embeddings unless `no_cache` is set."""
    from mmcl.evaluate import CachedModel
    from mmcl.interop.load import load_model
    from mmcl.interop.truncated import at_dim

    return CachedModel(at_dim(load_model(name, device=device), dim), cache=_cache(no_cache))
