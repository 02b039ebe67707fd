"""`mmcl compare`: comparison of two runs or reports on the same queries."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mmcl.cli.options import Json, Out
from mmcl.cli.output import show
from mmcl.cli.reports import All, show_next
from mmcl.errors import UserError
from mmcl.files.atomic import check_folder
from mmcl.interop.suggestions import is_unfinished, runs_in, unfinished_run, unknown_run
from mmcl.terminal import printable_line, terminal_width

if TYPE_CHECKING:
    from mmcl.evaluate import Report


def compare(
    a: Path,
    b: Path,
    /,
    *,
    models: tuple[str, str] = ("trained", "trained"),
    out: Out = None,
    all: All = False,
    json: Json = False,
) -> None:
    """Compare two results query by query.

    Examples:
        mmcl train clip_emoji --train.epochs 10 --run_dir runs/shorter
        mmcl compare runs/shorter runs/clip_emoji --out comparison
        mmcl compare runs/shorter runs/shorter --models untrained trained

    The difference B - A of every metric, its 95 % interval and p-value, and the queries that B wins and loses.

    Args:
        a: A run directory, a report folder, or a file in it.
        b: The other. Give the same one to compare two of its columns.
        models: The column of each that is compared, such as "raw pixels" trained.
        out: Write comparison.html and figures into this folder. Also comparison.md and comparison.json.
    """
    if out is not None:
        check_folder(out, flag="--out", made_by="comparison.md")
    names = _names(a, b, models)
    from mmcl.evaluate import compare as compare_reports
    from mmcl.runs.comparison import with_changes

    comparison = compare_reports(_report(a), _report(b), names=names, models=models)
    if out is not None:
        trained = models == ("trained", "trained")
        comparison = with_changes(comparison, _folder(a), _folder(b)) if trained else comparison
        comparison.write(out)
    if json:
        show(comparison.to_json())
        return
    show(comparison.to_text(brief=not all, width=terminal_width()))
    if out is not None:
        show(f"\nreport   {printable_line(str(out))}/comparison.html")
    elif not comparison.is_equal:
        of_columns = () if models[0] == models[1] == "trained" else ("--models", *models)
        show_next([shlex.join(["mmcl", "compare", str(a), str(b), *of_columns, "--out", "comparison"])])


def _names(a: Path, b: Path, models: tuple[str, str]) -> tuple[str, str]:
    """What tells the two apart: their runs or folders, their columns, or both.

    Raises:
        UserError: nothing does.
    """
    if a == b and models[0] == models[1]:
        raise UserError(f"{a} is given twice: give another run, or two of its columns, as in --models untrained trained")
    if a == b:
        return models
    places = [str(_folder(path)) for path in (a, b)]
    places = places if places[0] != places[1] else [str(a), str(b)]
    if models[0] != models[1]:
        places = [f"{place}, {model}" for place, model in zip(places, models, strict=True)]
    return places[0], places[1]


def _folder(path: Path) -> Path:
    """The run, or the folder that `mmcl eval --out` wrote, which has this report."""
    folder = _report_folder(path)
    return folder.parent if folder.name == "report" and (folder.parent / "config.yaml").is_file() else folder


def _report_folder(path: Path) -> Path:
    """The folder of a file, such as report.html or metrics.json, if it is one."""
    return path.parent if path.is_file() else path


def _report(path: Path) -> Report:
    from mmcl.evaluate import Report

    for folder in (_report_folder(path), path / "report"):
        if (folder / "metrics.json").is_file():
            return Report.load(folder)
    if is_unfinished(path):
        raise unfinished_run(path)
    if path.exists() and not runs_in(path):
        raise UserError(
            f"{path}: no report here; give a run directory, a folder that `mmcl eval --out` wrote, or its metrics.json"
        )
    raise unknown_run(path)
