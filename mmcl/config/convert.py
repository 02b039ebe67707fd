"""Conversion between plain data (from YAML or JSON) and dataclasses, with checks of keys, types and values."""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from mmcl.config.plain_yaml import write_yaml
from mmcl.config.setting import hints_of
from mmcl.errors import UserError, unknown_name

T = TypeVar("T")

_NAMES = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}


def from_dict(schema: type[T], tree: Mapping[str, Any], where: str) -> T:
    """Builds a dataclass from plain data, checking keys and types.

    Raises:
        UserError: "where: key ..."; suggests the nearest key for an unknown one.
    """
    hints = hints_of(schema)
    fields = {f.name: f for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    if not isinstance(tree, Mapping):
        raise UserError(f"{where} must be a mapping with the keys {', '.join(fields)}{_instead(tree, fields)}")
    for key in tree:
        if key not in fields:
            raise unknown_name("key", _key(key, where), fields, where=where)
    values = {key: convert(hints[key], value, f"{where}: {key}") for key, value in tree.items()}
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: the key {name!r} is missing")
    return schema(**values)


def _instead(value: Any, fields: Mapping[str, Any]) -> str:
    """What to write in place of a value that is not a mapping."""
    if value in ("none", "null", ""):
        return "; a list without any is []"
    return f", such as {{name: {value}}}" if isinstance(value, str) and value.isidentifier() and "name" in fields else ""


def convert(hint: Any, value: Any, where: str) -> Any:
    """Converts plain data to a type of the schema. Raises UserError that begins with `where`."""
    if hint is Any:
        return _plain(value, where)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{where} is {_shown(value)}; choose one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if value is None:
            raise UserError(f"{where} must be a list; one without any is []")
        items = value if isinstance(value, list | tuple) else [value]
        if arguments[-1] is not Ellipsis and len(items) != len(arguments):
            raise UserError(f"{where} needs {len(arguments)} values, not {_shown(value)}")
        kinds = [arguments[0]] * len(items) if arguments[-1] is Ellipsis else arguments
        return tuple(convert(kind, item, f"{where}.{i}") for i, (kind, item) in enumerate(zip(kinds, items, strict=True)))
    # A mapping of null is empty, and a section has its defaults: so a file takes out what its base has, and a heading may have
    # nothing below it.
    if value is None and (origin is dict or dataclasses.is_dataclass(hint)):
        value = {}
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a mapping, not {_shown(value)}")
        keys = [_key(key, where) for key in value]
        return {key: convert(arguments[1], item, f"{where}.{key}") for key, item in zip(keys, value.values(), strict=True)}
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    return _convert_scalar(hint, value, where)


def _convert_union(kinds: Sequence[Any], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = [kind for kind in kinds if kind is not type(None)]
    for literal in (kind for kind in kinds if get_origin(kind) is Literal):
        if value in get_args(literal):
            return value
    others = [kind for kind in kinds if get_origin(kind) is not Literal]
    fitting = [kind for kind in others if type(value) is kind] or others
    if len(fitting) > 1:
        raise UserError(f"{where} must be {' or '.join(_NAMES[kind] for kind in fitting)}, not {_shown(value)}")
    return convert(fitting[0], value, where)


def _convert_scalar(kind: type, value: Any, where: str) -> Any:
    # JSON and quotes may hold a number as a text.
    if kind is float and not isinstance(value, bool) and _is_number(value):
        return float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return _plain(value, where)
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(_plain(value, where))
    raise UserError(f"{where} must be {_NAMES[kind]}, not {_shown(value)}")


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _plain(value: Any, where: str) -> Any:
    """Returns a value that YAML and JSON both preserve; YAML also has dates, sets, infinities and others, which are refused."""
    if isinstance(value, dict):
        keys = [_key(key, where) for key in value]
        return {key: _plain(item, f"{where}.{key}") for key, item in zip(keys, value.values(), strict=True)}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}.{number}") for number, item in enumerate(value)]
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)):
        raise UserError(f"{where} is {_shown(value)}, which is not valid Unicode")
    if isinstance(value, int | float) and not abs(value) < 2**63:
        raise UserError(f"{where} is {_shown(value)}: give a finite number below 2^63")
    if value is not None and not isinstance(value, str | int | float):
        raise UserError(f"{where} is {_shown(value)}, a {type(value).__name__}: put it in quotes, if it is a text")
    return value


def _key(key: Any, where: str) -> str:
    return str(_plain(key, f"{where}: the key"))


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def _shown(value: Any) -> str:
    """Formats a value for an error message."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python does not write integers of more than 4300 digits.
        return f"a {type(value).__name__} too long to show"


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a configuration to plain data, with lists for tuples; `from_dict` gives back an equal one."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def to_yaml(config: Any) -> str:
    """Writes the whole configuration as YAML, including defaults."""
    return write_yaml(to_dict(config))
