"""Answers to yes/no questions in the cells of tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcl.data.sources.tables.column_names import number_labels
from mmcl.errors import UserError

ANSWERS: Mapping[str, int] = {"1": 1, "True": 1, "true": 1, "0": 0, "False": 0, "false": 0, "-1": -1}
"""Answers by their text in a cell: 1 yes, 0 no, -1 unknown."""


def answer_of(cell: Any, where: str) -> int:
    """Parses the answer in a cell: 1 yes, 0 no, -1 unknown.

    Raises:
        UserError: the cell is something else.
    """
    _, texts = number_labels([cell], where, "target")
    if not texts:
        return -1
    if texts[0] not in ANSWERS:
        raise not_an_answer(texts[0], where)
    return ANSWERS[texts[0]]


def not_an_answer(text: str, where: str) -> UserError:
    """The error of a cell that is no answer."""
    return UserError(f"{where}: {text!r:.60} is not an answer; write 1, 0, or nothing if it is unknown")
