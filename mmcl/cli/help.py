"""Help of the command line: examples first, then a line for each argument; the complete help has all sentences."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from mmcl.cli.arguments import Argument, Form, first_sentence
from mmcl.cli.output import show

_WIDEST = 24
"""Columns of the names of arguments."""


def print_help(form: Form, prog: str, *, complete: bool = False) -> None:
    """Prints the help of a verb.

    Args:
        form: its description.
        prog: what stands before its arguments.
        complete: with all sentences instead of the first of each description.
    """
    words = [prog, *(one.shown for one in form.positionals), "[--flag value ...]" if form.flags else ""]
    flags = sorted(form.flags.values(), key=lambda one: not one.is_required)
    parts = {
        "arguments": form.positionals,
        "flags": [one for one in flags if not one.is_common and (complete or not one.is_rare)],
        "common flags": [one for one in flags if one.is_common],
    }
    lines = [f"usage: {' '.join(filter(None, words))}", "", *wrapped(form.summary), *(f"  {one}" for one in form.examples)]
    lines += [line for note in form.notes for line in ("", *wrapped(note))] if complete else []
    for title, arguments in parts.items():
        if arguments:
            lines += ["", title, *entries([(one.shown, _text(one, complete)) for one in arguments])]
    rare = [] if complete else [f"--{one.name}" for one in flags if one.is_rare]
    lines += wrapped(f"more flags: {', '.join(rare)}") if rare else []
    if not complete and (form.notes or any(first_sentence(one.text) != one.text.rstrip(".") for one in form.arguments)):
        lines.append(f"{prog} --help_all explains more")
    show("\n".join(lines))


def entries(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Lines of two columns, of which the second is wrapped to the width of the terminal."""
    width = min(_WIDEST, max(len(name) for name, _ in rows))
    lines = []
    for name, text in rows:
        first, *rest = wrapped(text, columns() - width - 4) or [""]
        lines += [f"  {name:<{width}}  {first}".rstrip()] if len(name) <= width else [f"  {name}", f"{'':{width + 4}}{first}"]
        lines += [f"{'':{width + 4}}{line}" for line in rest]
    return lines


def wrapped(text: str, width: int | None = None) -> list[str]:
    """Lines of at most `width` columns; by default of the terminal's."""
    return textwrap.wrap(text, width or columns(), break_on_hyphens=False, break_long_words=False)


def columns() -> int:
    """Columns of the terminal, at most 100, which are easy to read."""
    return max(40, min(100, shutil.get_terminal_size().columns))


def _text(argument: Argument, complete: bool) -> str:
    text = argument.text if complete else first_sentence(argument.text)
    if argument.is_required and argument.is_flag:
        return f"{text} (required)"
    default = argument.default
    if argument.is_required or default in (None, False, "", "{}", "null", ()):
        return text
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"{text.rstrip('.')} [{shown}]"
