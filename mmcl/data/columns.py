"""What the columns of other people's tables are called, and what their cells may hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mmcl.data.source import ImageLike
from mmcl.errors import UserError

IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_path", "file_name", "filename", "file", "path", "img", "jpg", "png")
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "txt", "title", "sentence", "sentences", "description")
LABEL_COLUMNS = ("label", "class", "category")


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


def find_columns(
    columns: Sequence[str], image: str | None, caption: str | None, label: str | None, where: str
) -> tuple[str, str | None, str | None]:
    """The columns of image, caption and label. An image and one of the others must be there.

    Raises:
        UserError: names what is missing and lists the columns that are there.
    """
    image = find_column(columns, image, IMAGE_COLUMNS, argument="image_column", where=where)
    caption = find_column(columns, caption, CAPTION_COLUMNS, argument="caption_column", where=where)
    label = find_column(columns, label, LABEL_COLUMNS, argument="label_column", where=where)
    listing = f"its columns are {', '.join(columns)}"
    if image is None:
        raise UserError(f"{where}: which column holds the images? Set `image_column`; {listing}")
    if caption is None and label is None:
        raise UserError(f"{where}: which column holds the captions? Set `caption_column` (or `label_column`); {listing}")
    return image, caption, label


def captions_of(cell: Any) -> tuple[str, ...]:
    """A cell of a caption column, a text or a list of texts, as captions; missing ones are left out."""
    cells = cell if isinstance(cell, list | tuple | np.ndarray) else [cell]
    return tuple(str(text) for text in cells if text is not None and text == text)  # NaN is the one that differs from itself.


def image_of(cell: Any) -> ImageLike | None:
    """A cell of an image column: a path, encoded bytes, or the {"bytes", "path"} of a Hugging Face `Image`."""
    if isinstance(cell, dict):
        return cell.get("bytes") or cell.get("path")
    return cell or None


def number_labels(values: Iterable[Any]) -> tuple[list[int | None], list[str]]:
    """Class names in sorted order (numbers by value) and the number of each value's class; None stays None."""
    values = list(values)
    present = {value for value in values if value is not None}
    numeric = all(isinstance(value, int | float) for value in present)
    names = sorted(present) if numeric else sorted(present, key=str)
    number = {name: i for i, name in enumerate(names)}
    return [None if value is None else number[value] for value in values], [str(name) for name in names]
