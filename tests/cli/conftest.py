"""Fixtures shared by the tests of the verbs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.runs import small_vocabulary


@pytest.fixture(autouse=True, scope="module")
def _small_vocabulary() -> Iterator[None]:
    """Text encoders of a few tokens: their runs take a third of the time."""
    with small_vocabulary():
        yield
