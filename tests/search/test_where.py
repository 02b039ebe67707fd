"""Filters: the grammar, its errors, and masks against plain Python."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.errors import UserError
from mmcl.search.arrow import array_of
from mmcl.search.items import Kind
from mmcl.search.where import Condition, Filter, Joined, mask_of, parse_where

KINDS: dict[str, Kind] = {
    "folder": "text",
    "captions": "texts",
    "width": "whole",
    "rating": "number",
    "flash": "truth",
    "taken": "date",
}
ROWS: list[dict[str, Any]] = [
    {"folder": "", "captions": [], "width": 5, "rating": None, "flash": True, "taken": None},
    {
        "folder": "trip",
        "captions": ["A dog", "二匹の犬"],
        "width": 50,
        "rating": 0.5,
        "flash": False,
        "taken": datetime(2020, 1, 1),
    },
    {
        "folder": "trip/it's",
        "captions": ["cat"],
        "width": None,
        "rating": -1.0,
        "flash": None,
        "taken": datetime(2020, 1, 1, 12),
    },
    {"folder": "trip2", "captions": None, "width": 7, "rating": 5.0, "flash": True, "taken": datetime(2021, 6, 5)},
    {"folder": "100%_x", "captions": ["a 100% dog"], "width": -3, "rating": 2.5, "flash": False, "taken": datetime(1999, 1, 1)},
]


def column(name: str) -> pa.Array:
    return array_of([row[name] for row in ROWS], KINDS[name])


def found(text: str) -> list[int]:
    return np.flatnonzero(mask_of(parse_where(text, KINDS), KINDS, column)).tolist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("width > 5", [1, 3]),
        ("width != 5", [1, 3, 4]),
        ("not width = 5", [1, 2, 3, 4]),
        ("width in (5, 7)", [0, 3]),
        ("width > 4.5 and width < 5.5", [0]),
        ("width exists", [0, 1, 3, 4]),
        ("width = -3", [4]),
        ("rating >= 0.5", [1, 3, 4]),
        ("rating = 5", [3]),
        ("flash = true or flash = false", [0, 1, 3, 4]),
        ('folder under "trip"', [1, 2]),
        ('folder under "/trip/"', [1, 2]),
        ('folder under ""', [0, 1, 2, 3, 4]),
        ('folder under "100%"', []),
        ("folder under '100%_x'", [4]),
        ("folder = 'trip/it''s'", [2]),
        ('folder = "trip/it\'s"', [2]),
        ("folder exists", [1, 2, 3, 4]),
        ("folder contains '%'", [4]),
        ("captions contains 'DOG'", [1, 4]),
        ("captions contains '犬'", [1]),
        ("captions exists", [1, 2, 4]),
        ("not captions exists", [0, 3]),
        ("taken >= 2020-01-01", [1, 2, 3]),
        ("taken > 2020-01-01", [2, 3]),
        ('taken = "2020-01-01 12:00"', [2]),
        ("taken = 2020-01-01T12:00", [2]),
        ("not (width > 5 or folder = 'trip')", [0, 2, 4]),
        ("width > 5 or width < 0 and rating > 100", [1, 3]),
    ],
)
def test_a_filter_finds(text: str, rows: list[int]) -> None:
    assert found(text) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("width", "ends where a test of width"),
        ("width >", "ends where a number belongs"),
        ("width = 'a'", "width is compared with 'a'; give a number"),
        ("width = true", "give a number"),
        ("taken > 2020-13-45", "give a date"),
        ("taken > 2020", "give a date"),
        ("flash > true", "has no order"),
        ("captions = 'a'", "test it by contains or exists"),
        ("width contains '1'", "is not a text"),
        ("captions under 'a'", "test it by contains"),
        ("label = 'a'", "unknown column 'label'"),
        ("widht > 4", "did you mean 'width'"),
        ("width = 1; drop table items", "cannot read '; drop table items'"),
        ("width = 2003) or (1=1", r"'\)' is too much"),
        ("1=1", "stands where the name of a column belongs"),
        ("width = 1 --", "cannot read '--'"),
        ("width = 1 width = 2", "'width' is too much"),
        ("width in ()", "give a number"),
        ("width in (1", "the end stands where"),
        ("(width = 1", r"the end stands where '\)' belongs"),
        ("folder = 'open", "a quote is not closed"),
        ('folder = "a" x', "'x' is too much"),
        ("width = 1 or", "the name of a column"),
        ("width like '%'", "'like' is no test"),
        ("width = 1e", "cannot read"),
        ("width = (select 1)", "give a number"),
        ("(" * 60 + "width = 1" + ")" * 60, "nested more than"),
        ("not " * 60 + "width = 1", "nested more than"),
    ],
)
def test_rubbish_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_where(text, KINDS)
    assert "\n" not in str(error.value)


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse_where(text, KINDS)
    except UserError:
        return


def test_any_quoted_text_is_taken_as_it_is() -> None:
    for value in ("'", '"', "a''b", "\\", "%_", "') or (1=1", "😀", "\n", "--"):
        test = parse_where("folder = '" + value.replace("'", "''") + "'", KINDS)
        assert isinstance(test, Condition)
        assert test.values == (value,)


SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def passes(filter: Filter, row: dict[str, Any]) -> bool:
    """The same filter of one row in plain Python."""
    if isinstance(filter, Joined):
        parts = [passes(part, row) for part in filter.parts]
        return not parts[0] if filter.by == "not" else all(parts) if filter.by == "and" else any(parts)
    value = row[filter.field]
    if filter.test == "exists":
        return value not in (None, "", [])
    if value is None:
        return False
    if filter.test == "in":
        return value in filter.values
    if filter.test == "contains":
        texts = value if isinstance(value, list) else [value]
        return any(str(filter.values[0]).lower() in text.lower() for text in texts)
    if filter.test == "under":
        folder = str(filter.values[0]).strip("/")
        return value == folder or value.startswith(f"{folder}/") or folder == ""
    return SIGNS[filter.test](value, filter.values[0])


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


texts = st.sampled_from(["trip", "trip/it's", "", "100%_x", "dog", 'a"b', "T"])
numbers = st.one_of(st.integers(-5, 60), st.sampled_from([4.5, 0.5, -1.0]))
dates = st.sampled_from(["2020-01-01", '"2020-01-01 12:00"', "1999-01-01", "2030-01-01"])
signs = st.sampled_from(sorted(SIGNS))
tests = st.one_of(
    st.builds("{} {} {}".format, st.sampled_from(["width", "rating"]), signs, numbers),
    st.builds("width in ({}, {})".format, st.integers(-5, 60), st.integers(-5, 60)),
    st.builds("taken {} {}".format, signs, dates),
    st.builds("folder {} {}".format, st.sampled_from([*SIGNS, "under", "contains"]), texts.map(quoted)),
    st.builds("captions contains {}".format, texts.map(quoted)),
    st.builds("{} exists".format, st.sampled_from(sorted(KINDS))),
    st.builds("flash {} {}".format, st.sampled_from(["=", "!="]), st.sampled_from(["true", "false"])),
)


def joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    both = [st.builds(form.format, inner, inner) for form in ("({} and {})", "({} or {})")]
    return st.one_of(*both, st.builds("not {}".format, inner))


filters = st.recursive(tests, joined, max_leaves=6)


@given(filters)
def test_masks_are_those_of_plain_python(text: str) -> None:
    filter = parse_where(text, KINDS)
    assert found(text) == [number for number, row in enumerate(ROWS) if passes(filter, row)]
