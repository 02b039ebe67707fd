"""Parsing of the command line into a call; an error is one line that names the wrong argument."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from typing import Any

import tyro

from mmcl.errors import UserError

_FRAME = "│╭╮╰╯─ "
_CONFIG = (tyro.conf.FlagCreatePairsOff,)


def parse_call(
    form: Callable[..., object] | Mapping[str, Callable[..., object]],
    words: Sequence[str],
    *,
    prog: str,
    description: str | None = None,
) -> Callable[[], object]:
    """Returns the requested function call, with its arguments.

    Args:
        form: the function; or several by the verb that chooses one.
        words: the words of the command line.
        prog: what stands before them.
        description: of several functions, for their help.

    Raises:
        UserError: a word is wrong or missing.
    """
    call: Callable[[], object]
    if callable(form):
        call = one_line(prog, lambda: tyro.cli(_deferred(form), prog=prog, args=words, config=_CONFIG))
        return call
    verbs = {name: _deferred(verb) for name, verb in form.items()}
    several = functools.partial(tyro.extras.subcommand_cli_from_dict, prog=prog, description=description, config=_CONFIG)
    call = one_line(prog, lambda: several(verbs, args=words))
    return call


def one_line(prog: str, parse: Callable[[], Any]) -> Any:
    """Returns the result of a tyro parser. Raises UserError with one line instead of tyro's frame of many lines."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return parse()
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{_unframed(said.getvalue())}; see {prog} --help") from None


def _deferred(verb: Callable[..., object]) -> Callable[..., object]:
    """Returns a function with the same arguments that defers the call, so that only errors of parsing are caught as such."""
    if isinstance(verb, type):
        return verb

    @functools.wraps(verb)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], object]:
        return functools.partial(verb, *args, **kwargs)

    return bind


def _unframed(text: str) -> str:
    """Returns the first paragraph of a framed message, and the second one if it is a hint."""
    plain = re.sub("\x1b\\[[0-9;]*m", "", text)
    lines = [re.sub("^[-─]+$", "", line.strip(_FRAME)) for line in plain.splitlines()]
    title = next((number for number, line in enumerate(lines) if line), 0)
    paragraphs = [" ".join(part) for part in _split(lines[title + 1 :])] or ["the command line is not understood"]
    hints = [part for part in paragraphs[1:2] if part.startswith(("Perhaps you meant", "Available subcommands"))]
    return ". ".join([paragraphs[0].rstrip(" ."), *hints])


def _split(lines: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for line in lines:
        if line:
            parts[-1].append(line)
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]
