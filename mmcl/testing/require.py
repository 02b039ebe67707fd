"""Assertions and arguments for the checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def require(holds: bool, otherwise: str) -> None:
    """Raises AssertionError unless the condition holds, even if Python runs with assertions disabled."""
    if not holds:
        raise AssertionError(otherwise)


def small_args(factory: Callable[..., Any], args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments for a test: those given, else the entry's own `test_args`, else none: its defaults."""
    return dict(getattr(factory, "test_args", {}) if args is None else args)
