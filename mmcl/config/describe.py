"""Description of every setting: its dotted path, its type in words, its default and what it does, read from the schema."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from mmcl.config.schema import Config
from mmcl.config.setting import facts_of, hints_of


@dataclass(frozen=True)
class Setting:
    """A setting of a configuration.

    Attributes:
        path: dotted, as a flag has it; NAME and 0 stand for a name and a number of your choice.
        field: its field in the schema.
        hint: its type.
        text: what it does, as the schema says it.
    """

    path: str
    field: dataclasses.Field[Any]
    hint: Any
    text: str

    @property
    def kind(self) -> str:
        """Its type and its range, as a reader of YAML would say them."""
        return " ".join(filter(None, [in_words(self.hint), facts_of(self.field).range]))

    @property
    def is_leaf(self) -> bool:
        """True if it has no settings below it."""
        return not any(schemas_of(self.hint))


def sections(schema: type = Config, path: str = "") -> Iterator[tuple[str, type]]:
    """Yields the dataclasses of the schema, each with its place: "" for Config, "data.mix.NAME", "evaluate.0", ..."""
    yield path.removesuffix("."), schema
    hints = hints_of(schema)
    for field in dataclasses.fields(schema):
        for below, item in schemas_of(hints[field.name]):
            yield from sections(below, f"{path}{field.name}{item}.")


def settings_in(schema: type, path: str) -> list[Setting]:
    """Returns the settings of one dataclass, which stands at `path`."""
    hints, texts = hints_of(schema), _texts(schema)
    prefix = f"{path}." if path else ""
    return [
        Setting(f"{prefix}{field.name}", field, hints[field.name], texts[field.name]) for field in dataclasses.fields(schema)
    ]


def all_settings() -> Iterator[Setting]:
    """Every setting of a configuration that holds a value itself.

    Example:
        >>> next(one.kind for one in all_settings() if one.path == "train.batch_size")
        'a whole number of 1 or more'
    """
    for path, schema in sections():
        yield from (one for one in settings_in(schema, path) if one.is_leaf)


def schemas_of(hint: Any) -> Iterator[tuple[type, str]]:
    """Yields the dataclasses in a type, each with the item that holds it: ".NAME" of a mapping, ".0" of a list."""
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        yield hint, ""  # type: ignore[misc]
    elif origin is dict:
        yield from ((below, ".NAME") for below, _ in schemas_of(get_args(hint)[1]))
    elif origin is tuple:
        yield from ((below, ".0") for below, _ in schemas_of(get_args(hint)[0]))
    else:
        for one in get_args(hint):
            yield from schemas_of(one) if one is not type(None) else ()


def in_words(hint: Any) -> str:
    """Returns a type as a reader of YAML would say it."""
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null", Any: "any value"}
    if hint in plain:
        return plain[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in args)
    if origin is dict:
        return "a mapping from names" if dataclasses.is_dataclass(args[1]) else "a mapping"
    if origin is tuple:
        return "a list" if args[-1] is Ellipsis else f"{len(args)} numbers"
    if args:
        ordered = sorted(args, key=lambda one: one is not type(None))
        return " or ".join(in_words(one) for one in ordered)
    return "a mapping with the settings below" if dataclasses.is_dataclass(hint) else re.sub(r".*\.", "", str(hint))


def default_of(field: dataclasses.Field[Any]) -> str:
    """Returns a field's default as JSON; "" for a dataclass, whose fields have defaults of their own."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return "" if dataclasses.is_dataclass(value) else "none" if not value else json.dumps(value)
    if field.default is dataclasses.MISSING:
        return "none: it must be given"
    return as_flag(field.default)


def as_flag(value: Any) -> str:
    """Returns a value as a flag takes it: text as it is, everything else as JSON, which is YAML too."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


@functools.cache
def _texts(schema: type) -> dict[str, str]:
    """Returns the docstring after each field, those of base classes included."""
    texts: dict[str, str] = {}
    for base in reversed(schema.__mro__[:-1]):
        [definition] = ast.parse(inspect.getsource(base)).body
        assert isinstance(definition, ast.ClassDef)
        for field, comment in zip(definition.body, definition.body[1:], strict=False):
            match field, comment:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = " ".join(text.split())
                case _:
                    pass
    return texts
