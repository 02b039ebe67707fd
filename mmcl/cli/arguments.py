"""Arguments of a verb, read from the signature and the docstring of its function.

Positional-only parameters are positional arguments, and keyword-only ones are flags; a parameter `*settings` receives all other
flags with their values, as settings of a configuration. The first sentence of an argument's description is its short help, so
it has no full stop inside; `--help_all` shows all of it. Examples are the indented lines below "Examples:".
"""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mmcl.cli.options import RARE

_SECTION = re.compile(r"^(Examples|Args|Raises):\n((?:(?: +.*)?(?:\n|\Z))*)", re.MULTILINE)


@dataclass(frozen=True)
class Argument:
    """An argument of the command line.

    Attributes:
        name: the parameter's name.
        kind: its type, without None: str, Path, int, float, bool, a Literal or a tuple.
        default: `inspect.Parameter.empty` if it is required.
        text: its description.
        is_flag: False for a positional argument.
        is_common: True if several verbs share it (`mmcl.cli.options`).
        is_rare: True if the short help only names it.
    """

    name: str
    kind: Any
    default: Any
    text: str
    is_flag: bool
    is_common: bool
    is_rare: bool = False

    @property
    def is_required(self) -> bool:
        """True if the command line must have it."""
        return self.default is inspect.Parameter.empty

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The words to choose from, if it is one of several."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else None

    @property
    def items(self) -> tuple[Any, ...] | None:
        """The types of its values, if it takes several: (str, ...) or (str, str)."""
        return get_args(self.kind) if get_origin(self.kind) is tuple else None

    @property
    def value(self) -> str:
        """Placeholder of its value in the help: N, PATH, YAML, one|other, NAME, NAME ..., or nothing."""
        if self.kind is bool:
            return ""
        if self.items is not None:
            return f"{self.name.upper()} ..." if self.items[-1] is ... else " ".join([self.name.upper()] * len(self.items))
        if self.choices and self.is_flag:
            return "|".join(self.choices)
        if self.is_flag and self.name.endswith("args"):
            return "YAML"
        return "N" if self.kind in (int, float) else "PATH" if self.is_flag and self.kind is Path else self.name.upper()

    @property
    def shown(self) -> str:
        """As it is written: `--top_k N`, `MODEL`, `[TEXT]`."""
        if self.is_flag:
            return f"--{self.name} {self.value}".rstrip()
        return self.value if self.is_required else f"[{self.value}]"


@dataclass(frozen=True)
class Form:
    """A verb with its arguments.

    Attributes:
        summary: one sentence.
        examples: command lines.
        notes: further paragraphs.
        arguments: in the order of the signature.
        takes_settings: whether settings of a configuration may follow as flags.
    """

    summary: str
    examples: tuple[str, ...]
    notes: tuple[str, ...]
    arguments: tuple[Argument, ...]
    takes_settings: bool

    @property
    def flags(self) -> dict[str, Argument]:
        """Flags by name."""
        return {one.name: one for one in self.arguments if one.is_flag}

    @property
    def positionals(self) -> tuple[Argument, ...]:
        """Positional arguments."""
        return tuple(one for one in self.arguments if not one.is_flag)


def form_of(verb: Callable[..., object]) -> Form:
    """Describes a verb by its function.

    Example:
        >>> def find(text: str, /, *, top_k: int = 10) -> None:
        ...     '''Find an image.
        ...
        ...     Args:
        ...         text: What to look for.
        ...         top_k: How many to find.
        ...     '''
        >>> [one.shown for one in form_of(find).arguments]
        ['TEXT', '--top_k N']
    """
    function = verb.func if isinstance(verb, functools.partial) else verb
    documentation = inspect.getdoc(function) or ""
    examples = re.search(r"^Examples:\n((?: .*\n?)+)", documentation, re.MULTILINE)
    summary, *notes = re.split(r"\n\n+", _SECTION.sub("", documentation).strip())
    return Form(
        summary=_flowing(summary),
        examples=tuple(textwrap.dedent(examples[1]).splitlines()) if examples else (),
        notes=tuple(map(_flowing, notes)),
        arguments=tuple(_arguments(verb, argument_texts(function))),
        takes_settings=any(one.kind is one.VAR_POSITIONAL for one in inspect.signature(verb).parameters.values()),
    )


def first_sentence(text: str) -> str:
    """Returns the part of a description that the short help shows, without its full stop."""
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0].rstrip(".")


def argument_texts(function: Callable[..., object]) -> dict[str, str]:
    """Returns the descriptions in the section "Args:" of a docstring, by name."""
    sections = {match[1]: textwrap.dedent(match[2]).strip() for match in _SECTION.finditer(inspect.getdoc(function) or "")}
    entries = re.findall(r"^([\w, ]+): (.*(?:\n .*)*)", sections.get("Args", ""), re.MULTILINE)
    return {name: _flowing(text) for names, text in entries for name in names.split(", ")}


def _arguments(verb: Callable[..., object], texts: dict[str, str]) -> Iterator[Argument]:
    function = verb.func if isinstance(verb, functools.partial) else verb
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(verb).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            continue
        kind, shared = hints[name], None
        if get_origin(kind) is Annotated:
            kind, shared = get_args(kind)
        is_rare, shared = shared == RARE, None if shared == RARE else shared
        yield Argument(
            name=name,
            kind=_without_none(kind),
            default=parameter.default,
            text=texts.get(name) or shared or "",
            is_flag=parameter.kind is inspect.Parameter.KEYWORD_ONLY,
            is_common=shared is not None,
            is_rare=is_rare,
        )


def _without_none(kind: Any) -> Any:
    others = [one for one in get_args(kind) if one is not type(None)]
    return others[0] if get_origin(kind) in (Union, types.UnionType) and len(others) == 1 else kind


def _flowing(text: str) -> str:
    return " ".join(text.split())
