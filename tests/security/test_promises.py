"""Every promise of SECURITY.md has a test that exists and runs."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROMISES = re.findall(r"^\| .* \| `(tests/\S+)` \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)


def test_the_table_is_found() -> None:
    assert len(PROMISES) > 20
    assert len(set(PROMISES)) == len(PROMISES)


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_has_a_test_that_runs(promise: str) -> None:
    path, *names = promise.split("::")
    found: Any = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    marks: list[pytest.Mark] = []
    for name in names:
        marks += getattr(found, "pytestmark", [])
        found = getattr(found, name)
    marks += getattr(found, "pytestmark", [])
    assert callable(found)
    assert not {mark.name for mark in marks} & {"skip", "skipif", "xfail"}
