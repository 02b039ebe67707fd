"""What the columns of other people's tables are called, and what their cells may hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmcl.data.source import ImageLike
from mmcl.errors import UserError

USUAL_NAMES: Mapping[str, Sequence[str]] = {
    "image": ("image", "image_path", "filepath", "file_path", "file_name", "filename", "file", "path", "img", "jpg", "png"),
    "caption": (
        *("caption", "captions", "text", "texts", "txt", "title", "sentence", "sentences", "description"),
        *("anchor", "sentence1", "sent0"),
    ),
    "positive": ("positive", "positives", "sentence2", "sent1"),
    "negative": ("negative", "negatives", "hard_negative", "hard_neg"),
    "label": ("label", "class", "category"),
    "score": ("score", "similarity_score", "similarity"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """The columns of a table, as it spells them; None where it has none.

    Attributes:
        image, caption, label: of the sample itself.
        positive, negative: texts that mean the same as the caption, and that only seem to.
        score: how alike people find caption and positive.
    """

    image: str | None = None
    caption: str | None = None
    label: str | None = None
    positive: str | None = None
    negative: str | None = None
    score: str | None = None

    @property
    def texts(self) -> dict[str, str]:
        """Fields of `Sample` -> their columns."""
        fields = {"captions": self.caption, "positives": self.positive, "negatives": self.negative}
        return {field: column for field, column in fields.items() if column}


def find_column(columns: Sequence[str], given: str | None, usual: Sequence[str], *, argument: str, where: str) -> str | None:
    """Finds a column by the name that the user gave, else by the usual names, whatever their case.

    Returns:
        The column as the table spells it, or None when no name was given and no usual one is there.

    Raises:
        UserError: the given column is not there; lists those that are.
    """
    if given is not None:
        if given not in columns:
            raise UserError(f"{where}: no column {given!r} for `{argument}`; it has {', '.join(columns)}")
        return given
    spelling = {column.lower(): column for column in reversed(columns)}
    return next((spelling[name] for name in usual if name in spelling), None)


def find_columns(columns: Sequence[str], given: Mapping[str, str | None], where: str) -> Columns:
    """The columns that the user gave or that have a usual name. A caption, or an image and its label, must be there.

    Args:
        columns: all columns of the table.
        given: fields of `Columns` -> the user's names.

    Raises:
        UserError: names what is missing and lists the columns that are there.
    """
    found = {
        kind: find_column(columns, given.get(kind), usual, argument=f"{kind}_column", where=where)
        for kind, usual in USUAL_NAMES.items()
    }
    listing = f"its columns are {', '.join(columns)}"
    if found["caption"] is None and found["label"] is None:
        raise UserError(f"{where}: which column holds the captions? Set `caption_column` (or `label_column`); {listing}")
    if found["image"] is None and found["caption"] is None:
        raise UserError(f"{where}: which column holds the images? Set `image_column`; {listing}")
    if found["positive"] is None and given.get("score") is None:
        found["score"] = None  # A score of something else.
    return Columns(**found)


def captions_of(cell: Any) -> tuple[str, ...]:
    """A cell of a caption column, a text or a list of texts, as captions; missing ones are left out, numbers become texts.

    What is neither, such as bytes, stays as it is, for `checked_caption` to refuse by name.
    """
    cells = cell if isinstance(cell, list | tuple | np.ndarray) else [cell]
    present = (text for text in cells if text is not None and not (isinstance(text, float) and math.isnan(text)))
    return tuple(str(text) if isinstance(text, int | float | np.number) else text for text in present)


def image_of(cell: Any) -> ImageLike | None:
    """A cell of an image column: a path, encoded bytes, or the {"bytes", "path"} of a Hugging Face `Image`."""
    if isinstance(cell, dict):
        return cell.get("bytes") or cell.get("path")
    return cell or None


def scores_of(cells: Sequence[Any], where: str) -> np.ndarray:
    """A column of numbers, or of texts that are numbers: float64 [N]. Raises UserError with the first that is none."""
    for row, cell in enumerate(cells, 1):
        try:
            valid = np.isfinite(float(cell))
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise UserError(f"{where}, row {row}: {cell!r} is no number; every pair needs its score")
    return np.array(cells, np.float64)


def number_labels(values: Iterable[Any]) -> tuple[list[int | None], list[str]]:
    """Class names in sorted order (numbers by value) and the number of each value's class; None stays None."""
    values = list(values)
    present = {value for value in values if value is not None}
    numeric = all(isinstance(value, int | float) for value in present)
    names = sorted(present) if numeric else sorted(present, key=str)
    number = {name: i for i, name in enumerate(names)}
    return [None if value is None else number[value] for value in values], [str(name) for name in names]
