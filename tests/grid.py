"""Grids of test cases, of which a part runs by default and all with the long tier."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import pytest
from _pytest.mark import ParameterSet


def sample_of(*axes: Collection[Any]) -> set[tuple[Any, ...]]:
    """A part of all combinations, one of as many as the shortest axis is long, like a Latin square.

    Any two values of different axes occur together if there are three axes or more, and every value of two axes.
    """
    part = min(map(len, axes))
    numbered = itertools.product(*(tuple(enumerate(axis)) for axis in axes))
    return {tuple(value for _, value in case) for case in numbered if sum(number for number, _ in case) % part == 0}


def grid(*axes: Collection[Any], sample: Collection[tuple[Any, ...]] | None = None) -> list[ParameterSet]:
    """All combinations, for `pytest.mark.parametrize`; those outside of the sample, `sample_of` them if none is given, are
    marked long."""
    sample = sample_of(*axes) if sample is None else sample
    return [
        pytest.param(*case, marks=() if case in sample else pytest.mark.long, id="-".join(map(_name, case)))
        for case in itertools.product(*axes)
    ]


def _name(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
