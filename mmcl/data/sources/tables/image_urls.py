"""Tables with image URLs, such as LAION, CC12M and WIT. mmcl does not download the images, but prints the command for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

LOOKED_AT = 100
"""Number of rows that are searched for URLs."""

_URL = re.compile(r"https?://", re.IGNORECASE)
_COLUMN = re.compile(
    r"(?:(?:image|img|photo|picture|thumb(?:nail)?|coco|flickr|original)[ _-]?)?(?:ur[li]s?|links?)", re.IGNORECASE
)
"""Names of image URL columns; excludes others such as page_url."""


def is_url_of_image(text: str) -> bool:
    """True if a cell is a URL."""
    return _URL.match(text) is not None


def find_url_column(columns: Iterable[str], first_cells: Callable[[str], Sequence[Any]] | None = None) -> str | None:
    """Finds the column with image URLs by its name and first cells; None if there is none.

    Args:
        columns: names of the columns.
        first_cells: returns the first `LOOKED_AT` cells of a column; None uses only the names.
    """
    named = max(filter(_COLUMN.fullmatch, columns), key=len, default=None)  # image_url before url
    if named is None or first_cells is None:
        return named
    holds_urls = any(isinstance(cell, str) and is_url_of_image(cell) for cell in first_cells(named))
    return named if holds_urls else None


def how_to_download(path: str, url_column: str, caption_column: str | None = None) -> str:
    """Returns the command that downloads the images of a table as shards, with their captions."""
    kind = "jsonl" if path.lower().endswith(".ndjson") else path.rpartition(".")[2].lower()
    return (
        f"img2dataset --url_list {path} --input_format {kind} --url_col {url_column} --caption_col {caption_column or '...'} "
        "--output_format webdataset --output_folder images"
    )
