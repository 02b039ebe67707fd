r"""Filters: `taken >= 2020-01-01 and folder under "trip"`, parsed by a grammar of their own and typed by the columns.

    filter     = conjunction {"or" conjunction}
    conjunction = term {"and" term}
    term       = "not" term | "(" filter ")" | field test
    test       = ("=" | "!=" | "<" | "<=" | ">" | ">=") value | "in" "(" value {"," value} ")"
               | "contains" text | "under" text | "exists"
    value      = text in quotes | number | true | false | date, such as 2020-01-31 or "2020-01-31 12:30"

A quote in a text is doubled. `contains` looks for a part of a text, or of one of several, whatever the case of its letters;
`under` for a folder and all below it. What is missing in a row is not equal to, below or above anything, so every comparison
with it is false, also `!=`, and `exists` finds where something is there. Nothing is handed on to another language.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmcl.errors import UserError, unknown_name
from mmcl.search.items import Kind

Column = Callable[[str], pa.Array]
Value = str | int | float | bool | datetime

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"]|"")*"|'(?:[^']|'')*')|(?P<date>\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?)
    |(?P<number>[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)(?![\w.])|(?P<word>[^\W\d]\w*)|(?P<sign><=|>=|!=|[=<>(),]))""",
    re.VERBOSE,
)
_SIGNS: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_WORDS = ("in", "contains", "under", "exists")
_IN_WORDS: Mapping[Kind, str] = {
    "text": 'a text in quotes, such as "trip"',
    "texts": 'a text in quotes, such as "dog"',
    "whole": "a number",
    "number": "a number",
    "truth": "true or false",
    "date": "a date, such as 2020-01-31",
}
_ORDERED = ("whole", "number", "date", "text")
_DEEPEST = 50


@dataclass(frozen=True, slots=True)
class Condition:
    """A test of one column: `test` is a sign of comparison, "in", "contains", "under" or "exists"."""

    field: str
    test: str
    values: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class Joined:
    """Filters joined by "and" or "or"; "not" has one part."""

    by: Literal["and", "or", "not"]
    parts: tuple[Filter, ...]


Filter = Condition | Joined


def parse_where(text: str, kinds: Mapping[str, Kind]) -> Filter:
    """Parses a filter.

    Args:
        text: the filter.
        kinds: type of each column.

    Raises:
        UserError: it does not follow the grammar, names a column that there is not, or compares one with a value of another
            type; says where.

    Example:
        >>> parse_where('width > 100 and not folder under "trip"', {"width": "whole", "folder": "text"}).by
        'and'
    """
    return _Parser(text, kinds).parse()


def mask_of(filter: Filter, kinds: Mapping[str, Kind], column: Column) -> np.ndarray:
    """Returns the rows that a filter lets through, bool [N].

    Args:
        filter: from `parse_where`.
        kinds: type of each column.
        column: returns a column's N values.
    """
    if isinstance(filter, Joined):
        masks = [mask_of(part, kinds, column) for part in filter.parts]
        if filter.by == "not":
            return ~masks[0]
        joined: np.ndarray = (np.logical_and if filter.by == "and" else np.logical_or).reduce(masks)
        return joined
    found = _tested(filter, kinds[filter.field], column(filter.field))
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    mask: np.ndarray = pc.fill_null(found, False).to_numpy(zero_copy_only=False).astype(bool)
    return mask


def _tested(test: Condition, kind: Kind, values: pa.Array) -> pa.Array:
    """Applies a test to a column; null or false where it fails."""
    if kind == "texts":
        lengths = pc.fill_null(pc.list_value_length(values), 0)
        if test.test == "exists":
            return pc.greater(lengths, 0)
        hits = np.zeros(len(values), bool)
        matches = _contains(pc.list_flatten(values), test.values[0]).to_numpy(zero_copy_only=False).astype(bool)
        hits[pc.list_parent_indices(values).to_numpy()[matches]] = True
        return pa.array(hits)
    if test.test == "exists":
        return (
            pc.and_(pc.is_valid(values), pc.fill_null(pc.not_equal(values, ""), False))
            if kind == "text"
            else pc.is_valid(values)
        )
    if test.test == "contains":
        return _contains(values, test.values[0])
    if test.test == "under":
        folder = str(test.values[0]).strip("/")
        below = pc.starts_with(values, f"{folder}/")
        return pc.or_(pc.equal(values, folder), below) if folder else pc.is_valid(values)
    if test.test == "in":
        return pc.and_(pc.is_valid(values), pc.is_in(values, value_set=_literals(test.values, values.type)))
    return _SIGNS[test.test](values, _literals(test.values, values.type)[0])


def _contains(values: pa.Array, part: Value) -> pa.Array:
    return pc.fill_null(pc.match_substring(pc.utf8_lower(values), str(part).lower()), False)


def _literals(values: Sequence[Value], kind: pa.DataType) -> pa.Array:
    """The values of a test in the type of the column; a number between two whole ones is compared as it is."""
    if pa.types.is_integer(kind) and any(isinstance(value, float) for value in values):
        return pa.array([float(value) for value in values], pa.float64())  # type: ignore[arg-type]
    return pa.array(values, kind)


class _Parser:
    """Recursive descent over the tokens of one filter."""

    def __init__(self, text: str, kinds: Mapping[str, Kind]):
        self.text, self.kinds = text, kinds
        self.tokens = list(self._tokens())
        self.place = self.depth = 0

    def parse(self) -> Filter:
        if not self.tokens:
            raise self._error("is empty; give a test, such as width > 1000", 0)
        found = self._joined("or")
        if self.place < len(self.tokens):
            raise self._error(f"{self._word()!r} is too much; join tests by `and` or `or`")
        return found

    def _tokens(self) -> Any:
        place = 0
        while place < len(self.text.rstrip()):
            match = _TOKEN.match(self.text, place)
            if match is None:
                shown = self.text[place:].strip()[:20]
                quote = "a quote is not closed" if shown[:1] in ("'", '"') else "it is no part of a filter"
                raise self._error(f"cannot read {shown!r}: {quote}", place)
            kind = str(match.lastgroup)
            yield kind, match[kind], match.start(kind)
            place = match.end()

    def _joined(self, by: Literal["or", "and"]) -> Filter:
        part = self._term if by == "and" else lambda: self._joined("and")
        parts = [part()]
        while self._takes(by):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Joined(by, tuple(parts))

    def _term(self) -> Filter:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self._error(f"is nested more than {_DEEPEST} deep")
        try:
            if self._takes("not"):
                return Joined("not", (self._term(),))
            if self._takes("("):
                inner = self._joined("or")
                self._need(")")
                return inner
            return self._test()
        finally:
            self.depth -= 1

    def _test(self) -> Condition:
        kind, name, at = self._next("the name of a column")
        if kind != "word" or name in ("and", "or"):
            raise self._error(f"{name!r} stands where the name of a column belongs; known: {', '.join(sorted(self.kinds))}", at)
        if name not in self.kinds:
            raise unknown_name("column", name, self.kinds, where="where")
        _, test, at = self._next(f"a test of {name}, such as `=`")
        if test not in (*_SIGNS, *_WORDS):
            raise self._error(f"{test!r} is no test; known: {', '.join((*_SIGNS, *_WORDS))}", at)
        self._check_fits(name, test, at)
        if test == "exists":
            return Condition(name, test)
        if test != "in":
            return Condition(name, test, (self._value(name),))
        self._need("(")
        values = [self._value(name)]
        while self._takes(","):
            values.append(self._value(name))
        self._need(")")
        return Condition(name, test, tuple(values))

    def _check_fits(self, name: str, test: str, at: int) -> None:
        kind = self.kinds[name]
        if kind == "texts" and test not in ("contains", "exists"):
            raise self._error(f"{name} has several texts: test it by contains or exists, not {test}", at)
        if kind == "truth" and test in ("<", "<=", ">", ">="):
            raise self._error(f"{name} is true or false, and has no order: test it by = or !=", at)
        if test == "contains" and kind not in ("text", "texts"):
            raise self._error(f"{name} is not a text, so it contains none: compare it by = < > ...", at)
        if test == "under" and name != "folder" and name != "path":
            raise self._error(f"under is a test of folder, not of {name}", at)

    def _value(self, name: str) -> Value:
        kind = self.kinds[name]
        token, word, at = self._next(_IN_WORDS[kind])
        value = _value_of(kind, token, word)
        if value is None:
            raise self._error(f"{name} is compared with {word}; give {_IN_WORDS[kind]}", at)
        return value

    def _takes(self, word: str) -> bool:
        found = self.place < len(self.tokens) and self.tokens[self.place][0] != "text" and self._word() == word
        self.place += found
        return found

    def _need(self, sign: str) -> None:
        if not self._takes(sign):
            given = f"{self._word()!r}" if self.place < len(self.tokens) else "the end"
            raise self._error(f"{given} stands where {sign!r} belongs")

    def _next(self, expected: str) -> tuple[str, str, int]:
        if self.place == len(self.tokens):
            raise self._error(f"ends where {expected} belongs", len(self.text))
        self.place += 1
        token: tuple[str, str, int] = self.tokens[self.place - 1]
        return token

    def _word(self) -> str:
        return str(self.tokens[self.place][1])

    def _error(self, message: str, at: int | None = None) -> UserError:
        if at is None:
            at = self.tokens[self.place][2] if self.place < len(self.tokens) else len(self.text)
        return UserError(f"where, column {at + 1}: {message}")


def _value_of(kind: Kind, token: str, word: str) -> Value | None:
    """Returns a word as a value of a column's kind, None if it is of another."""
    if kind == "date":
        return _date(_unquoted(word)) if token in ("date", "text") else None
    if kind in ("text", "texts"):
        return _unquoted(word) if token == "text" else None
    if kind == "truth":
        return {"true": True, "false": False}.get(word) if token == "word" else None
    if token != "number":
        return None
    if re.fullmatch(r"[-+]?\d+", word) and kind == "whole":
        return int(word) if abs(int(word)) < 2**63 else float(word)
    return float(word)


def _unquoted(word: str) -> str:
    return word[1:-1].replace(2 * word[0], word[0]) if word[0] in ("'", '"') else word


def _date(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        return None
