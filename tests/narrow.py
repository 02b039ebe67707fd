"""Values of a narrower type than their annotation says: what a test relies on is asserted where it is read."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def present(value: T | None) -> T:
    """An optional value that is not None."""
    assert value is not None
    return value


def of_type(kind: type[T], value: Any) -> T:
    """A value of a union, or an attribute of a module, which torch calls `Tensor | Module`."""
    assert isinstance(value, kind)
    return value
