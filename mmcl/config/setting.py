"""Metadata of a setting, stored on its field: allowed range, where it is used, and whether it affects what is learned."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, get_args, get_type_hints

from mmcl.errors import UserError

_FACTS = "facts"


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Metadata of a setting besides its type and default.

    Attributes:
        at_least, above, at_most, below: the bounds of the value, or of each element of a sequence; None if unbounded.
        decides: whether the value affects what is learned; a resume requires such settings to be equal.
        used_by: the values of the sibling `name` for which the setting is used; () for all.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    decides: bool = True
    used_by: tuple[str, ...] = ()

    def allow(self, value: float) -> bool:
        """True if a number is in range; NaN never is."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    @property
    def range(self) -> str:
        """The range in words, such as "from 0 to below 1"; "" if any number is allowed."""
        if self.at_least is not None:
            if self.at_most is None and self.below is None:
                return f"of {self.at_least:g} or more"
            return f"from {self.at_least:g} to {f'below {self.below:g}' if self.at_most is None else f'{self.at_most:g}'}"
        bounds = {"above": self.above, "at most": self.at_most, "below": self.below}
        return " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)


def setting(default: Any = MISSING, *, default_factory: Any = MISSING, **facts: Any) -> Any:
    """Returns a dataclass field with `Facts`.

    Example:
        >>> @dataclass(frozen=True)
        ... class Schedule:
        ...     warmup: float = setting(0.05, at_least=0, below=1)
        >>> facts_of(dataclasses.fields(Schedule)[0]).range
        'from 0 to below 1'
    """
    metadata = {_FACTS: Facts(**facts)}
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def facts_of(one: dataclasses.Field[Any]) -> Facts:
    """Returns the facts of a field; an ordinary field has default facts."""
    facts: Facts = one.metadata.get(_FACTS, Facts())
    return facts


def check_ranges(settings: Any, where: str = "") -> None:
    """Raises UserError for a value out of range anywhere in a dataclass: "train.batch_size is 0: give ..."."""
    hints = hints_of(type(settings))
    for one in dataclasses.fields(settings):
        path, value = f"{where}{one.name}", getattr(settings, one.name)
        for key, below in _dataclasses_in(value):
            check_ranges(below, f"{path}{key}.")
        facts = facts_of(one)
        numbers = [one for one in (value if isinstance(value, tuple) else (value,)) if not isinstance(one, bool | None)]
        if facts.range and not all(facts.allow(number) for number in numbers):
            raise UserError(f"{path} is {format_value(value)}: give {_kind(hints[one.name])} {facts.range}")


def decides(schema: Any, key: str) -> bool:
    """True if the setting with a dotted key affects what is learned; a key that is not in the schema is taken to do so."""
    name, _, rest = key.partition(".")
    one = {one.name: one for one in dataclasses.fields(schema)}.get(name)
    if one is None:
        return True
    if not facts_of(one).decides:
        return False
    hint = without_none(hints_of(schema)[name])
    if getattr(hint, "__origin__", None) is dict:  # its keys are names
        hint, rest = get_args(hint)[1], rest.partition(".")[2]
    return not rest or not dataclasses.is_dataclass(hint) or decides(hint, rest)


def format_value(value: Any) -> str:
    """Formats a value for messages; a tuple as a YAML list."""
    return str(list(value) if isinstance(value, tuple) else value)


def _dataclasses_in(value: Any) -> Iterator[tuple[str, Any]]:
    items: list[tuple[str, Any]] = [("", value)]
    if isinstance(value, Mapping):
        items = [(f".{key}", item) for key, item in value.items()]
    elif isinstance(value, tuple):
        items = [(f".{number}", item) for number, item in enumerate(value)]
    return ((key, item) for key, item in items if dataclasses.is_dataclass(item))


def _kind(hint: Any) -> str:
    """Describes a type in words: "null or a whole number", "numbers", ..."""
    kind = without_none(hint)
    null = "" if kind is hint else "null or "
    if getattr(kind, "__origin__", None) is tuple:
        return f"{null}numbers"
    if get_args(kind) == (bool, int):
        return "true, false or a whole number"
    return f"{null}a whole number" if kind is int else f"{null}a number"


def hints_of(schema: Any) -> Mapping[str, Any]:
    """Returns the types of the fields of a dataclass. They are kept: a run asks for them hundreds of times."""
    return _kept_hints(schema)


_kept_hints = functools.cache(get_type_hints)


def without_none(hint: Any) -> Any:
    """Returns the type T of `T | None`; any other type as it is."""
    others = [one for one in get_args(hint) if one is not type(None)]
    return others[0] if type(None) in get_args(hint) and len(others) == 1 else hint
