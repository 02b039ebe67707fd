"""Printing of reports and of what to run next, in the width of the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from mmcl.cli.output import say, show
from mmcl.terminal import counted, terminal_width

if TYPE_CHECKING:
    from mmcl.evaluate import Metric, Report

All = Annotated[bool, "Print all metrics. By default those that are commonly quoted."]


def show_report(report: Report, *, everything: bool, again: str | None = None) -> None:
    """Prints the verdict and the tables, and says how many metrics are not shown.

    Args:
        report: of a run or an evaluation.
        everything: print all metrics, not only those that are commonly quoted.
        again: the command that evaluates the same again, if there is one.
    """
    from mmcl.evaluate.reporting.metric import quoted, without_repeats

    show(report.to_text(brief=not everything, width=terminal_width()))
    hidden = 0 if everything else _count(without_repeats(report.metrics)) - _count(quoted(report.metrics))
    if hidden > 0:
        say("")
        say(f"{counted(hidden, 'more metric')}: {'see the report' if again is None else ''}".rstrip())
        show_commands([f"{again} --all"] if again else [])


def show_next(commands: Iterable[str]) -> None:
    """Prints commands to run next."""
    lines = list(commands)
    if lines:
        show("\ntry next")
    show_commands(lines)


def show_commands(commands: Iterable[str]) -> None:
    """Prints commands, each on a line of its own that is not broken, to be copied."""
    for command in commands:
        say(f"  {command}")


def _count(metrics: Iterable[Metric]) -> int:
    return len({metric.key[:3] for metric in metrics})
