"""Parsing of the command line into a call; an error is one line that names the wrong word and the fix."""

from __future__ import annotations

import argparse
import difflib
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmcl.cli.arguments import Argument, Form, form_of
from mmcl.cli.help import print_help
from mmcl.config.flags import SINGLE_DASH
from mmcl.errors import UserError

HELP = ("-h", "--help")
HELP_ALL = "--help_all"


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line.

    Attributes:
        example: a command line, for the error on what is missing.
    """

    example = ""

    def error(self, message: str) -> NoReturn:
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            raise UserError(f"{missing} is missing, as in {self.example}; see {self.prog} --help")
        raise UserError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def with_underscores(words: Iterable[str]) -> list[str]:
    """Returns the words with underscores in the names of flags, where hyphens may stand too: `--top-k` is `--top_k`."""
    return [re.sub(r"^--[^=]+", lambda name: f"--{name[0][2:].replace('-', '_')}", word) for word in words]


def asks_for_help(words: Sequence[str]) -> bool:
    """True if the words ask for the help, short or complete."""
    return HELP_ALL in words or any(word in words for word in HELP)


def parse_call(verb: Callable[..., object], words: Sequence[str], *, prog: str) -> Callable[[], object]:
    """Returns the call of a verb with the arguments that the words give, or of its help, if they ask for it.

    Args:
        verb: the function; see `mmcl.cli.arguments`.
        words: of the command line.
        prog: what stands before them.

    Raises:
        UserError: a word is wrong or missing.
    """
    form = form_of(verb)
    if asks_for_help(words):
        return functools.partial(print_help, form, prog, complete=HELP_ALL in words)
    words, settings = _split(form, words) if form.takes_settings else (list(words), [])
    _check_flags(form, words, prog)
    found, surplus = _parser(form, prog).parse_known_intermixed_args(words)
    if surplus:
        raise _unexpected(surplus[0], form, prog)
    values = {one.name: _value(one, getattr(found, one.name)) for one in form.arguments}
    given = [values[one.name] for one in form.positionals]
    return functools.partial(verb, *given, *settings, **{name: values[name] for name in form.flags})


def _unexpected(word: str, form: Form, prog: str) -> UserError:
    """Returns the error for a word too many."""
    taken = " ".join(one.shown for one in form.positionals)
    if any(one.name == "text" for one in form.positionals):
        hint = 'a text of several words needs quotes, as in "a red apple"'
    elif form.takes_settings:
        hint = "settings are flags, as in --optim.lr 3e-4"
    else:
        hint = f"the rest are flags: {', '.join(f'--{name}' for name in form.flags) or 'none'}"
    return UserError(f"unexpected {word!r}: {prog} takes {taken or 'no positional arguments'}; {hint} (see {prog} --help)")


def _split(form: Form, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the words of a form itself, and the settings among them."""
    own: list[str] = []
    settings: list[str] = []
    current = own
    names = [one.name for one in form.arguments]
    for word in words:
        if word.startswith("--") or SINGLE_DASH.fullmatch(word):
            current = own if word[2:].partition("=")[0] in names else settings
        current.append(word)
    return own, settings


def _check_flags(form: Form, words: Sequence[str], prog: str) -> None:
    """Raises UserError for a flag that the form does not have, with the nearest that it has, and for a repeated list."""
    known = [f"--{name}" for name in form.flags]
    taken = " ".join(one.shown for one in form.positionals)
    seen: set[str] = set()
    for name in (word.partition("=")[0] for word in words):
        if name == "--":
            return
        if name in (f"--{one.name}" for one in form.positionals):
            raise UserError(f"{name[2:].upper()} is given without {name}: {prog} {taken}; see {prog} --help")
        if SINGLE_DASH.fullmatch(name) or (name.startswith("--") and name not in known):
            raise UserError(f"unknown flag {name}{_suggestion(name, known)} (see {prog} --help)")
        if name in seen and form.flags[name[2:]].items:
            raise UserError(f"{name} is given twice: give all its values after one {name}")
        seen |= {name} & {*known}


def _suggestion(name: str, known: Sequence[str]) -> str:
    whole = f"--{name.lstrip('-').replace('-', '_').lower()}"
    if whole in known:
        return f": did you mean {whole}?"
    nearest = difflib.get_close_matches(whole, known, n=1, cutoff=0.6)
    return f": did you mean {nearest[0]}?" if nearest else f"; known: {', '.join(known) or 'none'}"


def _parser(form: Form, prog: str) -> _Parser:
    parser = _Parser(prog=prog, add_help=False, allow_abbrev=False)
    parser.example = next((one for one in form.examples if one.startswith(prog)), prog)
    for one in form.arguments:
        name = f"--{one.name}" if one.is_flag else one.name
        options: dict[str, Any] = {"default": () if one.is_required and one.items else one.default}
        if one.kind is bool:
            parser.add_argument(name, action="store_true", **options)
            continue
        options |= {"metavar": one.name.upper(), "type": _converter(one)}
        if one.items is not None:
            options["nargs"] = len(one.items) if one.items[-1] is not ... else "+" if one.is_flag else "*"
        elif not one.is_flag and not one.is_required:
            options["nargs"] = "?"
        if one.is_flag:
            options["required"] = one.is_required
        parser.add_argument(name, **options)
    return parser


def _converter(argument: Argument) -> Callable[[str], object]:
    if argument.choices:
        return functools.partial(_choice, choices=argument.choices)
    kind = argument.items[0] if argument.items else argument.kind
    converters: dict[Any, Callable[[str], object]] = {int: _whole_number, float: _number, Path: _path}
    return converters.get(kind, str)


def _choice(word: str, *, choices: Sequence[str]) -> str:
    if word in choices:
        return word
    nearest = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.6)
    hint = f"did you mean {nearest[0]}?" if nearest else f"give {', '.join(choices[:-1])} or {choices[-1]}"
    raise argparse.ArgumentTypeError(f"{word!r} is unknown; {hint}")


def _whole_number(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number") from None


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number") from None


def _path(word: str) -> Path:
    """Returns a path, with the home folder for `~`, which a shell leaves alone in quotes and behind an equals sign."""
    if not word:
        raise argparse.ArgumentTypeError("the path is empty")
    if "://" in word:
        raise argparse.ArgumentTypeError(f"{word} is on a server, and a file here is needed; download it first")
    return Path(word).expanduser()


def _value(argument: Argument, value: Any) -> Any:
    return tuple(value) if argument.items is not None and isinstance(value, list) else value
