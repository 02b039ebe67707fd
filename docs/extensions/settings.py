"""The reference of every setting, from the dataclasses of the schema, their docstrings and the facts at their fields."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sphinx.pycode import ModuleAnalyzer

from mmcl.config import Config
from mmcl.config.setting import decides, facts_of

_TITLES = {
    "Config": "The run as a whole",
    "ComponentConfig": "Components by name",
    "TowerConfig": "`image` and `text`",
    "SourceConfig": "Datasets",
    "EvaluatorConfig": "`evaluate`",
}


def settings_reference() -> str:
    """Markdown: a section for each dataclass of the schema, in the order in which `Config` names them."""
    places: dict[type, list[str]] = {}
    for schema, path in _walk(Config, ""):
        places.setdefault(schema, []).append(path)
    return "\n".join(_section(schema, paths) for schema, paths in places.items())


def _walk(schema: type, path: str) -> Iterator[tuple[type, str]]:
    """Every dataclass of the schema with the places at which it stands: `data.mix.NAME`, `evaluate.0`."""
    yield schema, path
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        for below, item in _dataclasses_of(hints[field.name]):
            yield from _walk(below, f"{path}{field.name}{item}.")


def _dataclasses_of(hint: Any) -> Iterator[tuple[type, str]]:
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        yield hint, ""  # type: ignore[misc]
    elif origin is dict:
        yield from ((below, ".NAME") for below, _ in _dataclasses_of(get_args(hint)[1]))
    elif origin is tuple:
        yield from ((below, ".0") for below, _ in _dataclasses_of(get_args(hint)[0]))
    else:
        for one in get_args(hint):
            yield from _dataclasses_of(one) if one is not type(None) else ()


def _section(schema: type, paths: list[str]) -> str:
    title = _TITLES.get(schema.__name__) or f"`{paths[0].removesuffix('.')}`"
    purpose = (schema.__doc__ or "").partition("\n\n")[0]  # what follows is for Python
    lines = [f"## {title}", "", purpose, ""]
    if len(paths) > 1:
        names = ", ".join(f"`{path.removesuffix('.')}`" for path in dict.fromkeys(paths))
        lines += [f"Stands at {names}.", ""]
    comments = _comments(schema)
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        lines += _setting(field, hints[field.name], f"{paths[0]}{field.name}", comments[field.name])
    return "\n".join(lines)


def _setting(field: dataclasses.Field[Any], hint: Any, path: str, comment: list[str]) -> list[str]:
    facts = facts_of(field)
    kind = " ".join(filter(None, [_words(hint), facts.range]))
    lines = [f"```{{confval}} {path}", f":type: {kind}"]
    default = _default(field)
    lines += [f":default: {default}"] if default else []
    lines += ["", *comment, ""]
    if facts.used_by:
        names = " and ".join(f"`{name}`" for name in facts.used_by)
        lines += [f"Used where `name` is {names}; refused elsewhere.", ""]
    if not any(_dataclasses_of(hint)):
        learns = "Decides what is learned" if decides(Config, path) else "Does not decide what is learned"
        lines += [f"*{learns}.*", ""]
    return [*lines, "```", ""]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return "" if dataclasses.is_dataclass(value) else "none" if not value else f"`{json.dumps(value)}`"
    if field.default is dataclasses.MISSING:
        return "none: it must be given"
    if isinstance(field.default, tuple):
        return f"`{json.dumps(list(field.default))}`"
    return f"`{field.default if isinstance(field.default, str) else json.dumps(field.default)}`"


def _words(hint: Any) -> str:
    """A type as a reader of YAML would say it."""
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
        return " or ".join(_words(one) for one in ordered)
    return "a mapping with the settings below" if dataclasses.is_dataclass(hint) else re.sub(r".*\.", "", str(hint))


def _comments(schema: type) -> dict[str, list[str]]:
    """The docstring after each field, those of base classes included."""
    comments: dict[str, list[str]] = {}
    for base in reversed(schema.__mro__[:-1]):
        found = ModuleAnalyzer.for_module(base.__module__).find_attr_docs()
        comments |= {name: lines for (owner, name), lines in found.items() if owner == base.__name__}
    return comments
