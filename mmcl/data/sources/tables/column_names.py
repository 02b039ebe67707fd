"""Detection of the columns of tables by name, and parsing of their cells."""

from __future__ import annotations

import ast
import base64
import json
import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from mmcl.data.captions import text_hash, text_or_not
from mmcl.data.sample import ImageLike
from mmcl.data.sources.tables.image_urls import find_url_column, how_to_download
from mmcl.errors import UserError

MAX_PATH_BYTES = 4096
_BASE64 = re.compile(r"(?:data:image/[\w.+-]+;base64,)?((?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk)[A-Za-z0-9+/\s]{60,}={0,2})\s*")
"""An encoded PNG, JPEG, GIF, WebP or BMP file. A path is not so long without a dot."""
_LIST = re.compile(r"\s*\[\s*(?:['\"]|\]\s*\Z)")

USUAL_NAMES: Mapping[str, Sequence[str]] = {
    "image": (
        *("image", "image_path", "filepath", "file_path", "file_name", "filename", "file", "path", "img", "jpg", "png"),
        *("image_name", "image_file", "img_path", "images"),
    ),
    "caption": (
        *("caption", "captions", "text", "texts", "txt", "title", "sentence", "sentences", "description", "comment"),
        *("anchor", "sentence1", "sent0"),
    ),
    "positive": ("positive", "positives", "sentence2", "sent1"),
    "negative": ("negative", "negatives", "hard_negative", "hard_neg"),
    "label": ("label", "class", "category"),
    "score": ("score", "similarity_score", "similarity"),
    "group": (),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Column names of a table, as spelt in it; None for missing columns.

    Attributes:
        image, caption, label: columns of the sample itself.
        positive, negative: texts with the same meaning as the caption, and hard negatives.
        score: human similarity ratings of caption and positive.
        group: what makes samples dependent on each other, such as the patient; it has no usual name.
        targets: answers to yes/no questions; they have no usual name.
        more_captions: further captions of the same images: caption_1 to caption_4 beside caption_0.
    """

    image: str | None = None
    caption: str | None = None
    label: str | None = None
    positive: str | None = None
    negative: str | None = None
    score: str | None = None
    group: str | None = field(default=None, repr=False)  # Caches of the rows of images are the same with and without it.
    targets: tuple[str, ...] = field(default=(), repr=False)
    more_captions: tuple[str, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        """All caption columns."""
        return (self.caption, *self.more_captions) if self.caption else ()

    @property
    def texts(self) -> dict[str, tuple[str, ...]]:
        """Maps text fields of `Sample` to their columns."""
        fields: dict[str, tuple[str | None, ...]] = {
            "captions": self.captions,
            "positives": (self.positive,),
            "negatives": (self.negative,),
        }
        present = ((field, tuple(filter(None, columns))) for field, columns in fields.items())
        return {field: columns for field, columns in present if columns}

    @property
    def names(self) -> list[str]:
        """All columns, each once."""
        others = (self.image, self.label, self.score, self.group)
        return list(
            dict.fromkeys([*filter(None, others), *self.targets, *(name for names in self.texts.values() for name in names)])
        )


_NUMBERED = re.compile(r"(caption|text|title|sentence|description|comment|sent)s?[ _-]?(\d*)")

TEXT_KEYS = ("raw", *USUAL_NAMES["caption"])
"""Keys of the text in a caption that is an object, as in {"raw": ..., "tokens": ...}."""


def find_column(columns: Sequence[str], given: str | None, usual: Sequence[str], *, argument: str, where: str) -> str | None:
    """Finds a column by the user's name, else by the usual names, ignoring case.

    Returns:
        The column name as spelt in the table, or None if no name was given and there is no usual one.

    Raises:
        UserError: the given column does not exist (lists the existing ones), or the name occurs twice.
    """
    if given is not None and given not in columns:
        raise UserError(f"{where}: no column {given!r} for `{argument}`; it has {', '.join(columns)}")
    spelling = {column.lower(): column for column in reversed(columns)}
    found = given or next((spelling[name] for name in usual if name in spelling), None)
    if found is not None and columns.count(found) > 1:
        raise UserError(f"{where}: has {columns.count(found)} columns of the name {found!r}; rename all but one")
    return found


def find_columns(
    columns: Sequence[str], given: Mapping[str, str | None], where: str, *, fix: str = "set `image_column` or `caption_column`"
) -> Columns:
    """Finds the columns given by the user or with a usual name. An image or a caption column is required.

    Args:
        columns: all columns of the table.
        given: fields of `Columns` -> the user's names.
        where: prefix of error messages.
        fix: advice if no column has a usual name.

    Raises:
        UserError: names the missing column and lists the existing ones.
    """
    found = {
        kind: find_column(columns, given.get(kind), usual, argument=f"{kind}_column", where=where)
        for kind, usual in USUAL_NAMES.items()
    }
    has_images = found["image"] is not None
    further = () if given.get("caption") else _numbered_captions(columns, found["caption"], has_images=has_images)
    if further:
        found["caption"] = further[0]
        found["positive"] = found["positive"] if found["positive"] not in further else None
    if found["image"] is None and found["caption"] is None:
        urls = find_url_column(columns)
        more = f"; the images are URLs, to be downloaded: {how_to_download(where, urls)}" if urls else ""
        listing = f"Its columns are {', '.join(columns)}"
        raise UserError(f"{where}: which column holds the images, or the captions? {listing}; {fix}{more}")
    if found["positive"] is None and given.get("score") is None:
        found["score"] = None  # Without positives, the score has another meaning.
    return Columns(**found, targets=(), more_captions=further[1:])


def find_targets(columns: Sequence[str], given: Sequence[str], where: str) -> tuple[str, ...]:
    """Checks the names of the columns with answers to yes/no questions.

    Raises:
        UserError: a column does not exist, or is given twice.
    """
    for number, name in enumerate(given):
        find_column(columns, name, (), argument="target_columns", where=where)
        if name in given[:number]:
            raise UserError(f"{where}: target_columns has {name!r} twice; name each column once")
    return tuple(given)


def _numbered_captions(columns: Sequence[str], caption: str | None, *, has_images: bool) -> tuple[str, ...]:
    """Returns the numbered caption columns (caption_0, caption_1, ...): those that include `caption`, or the first such set.

    Without images, sentence1 and sentence2 are a pair rather than two captions.
    """
    families: dict[str, list[tuple[int, str]]] = {}
    for column in columns:
        match = _NUMBERED.fullmatch(column.lower())
        if match:
            families.setdefault(match[1], []).append((int(match[2] or -1), column))
    for family in families.values():
        names = tuple(column for _, column in sorted(family))
        if len(names) > 1 and (caption is None or (has_images and caption in names)):
            return names
    return ()


def is_missing(cell: Any) -> bool:
    """True if a cell is empty: null, NaN, or a blank text."""
    return cell is None or (isinstance(cell, float) and math.isnan(cell)) or (isinstance(cell, str) and not cell.strip())


def captions_of(cell: Any) -> tuple[str, ...]:
    """Parses a caption cell; skips missing captions, converts numbers to texts, and decodes bytes as UTF-8.

    Args:
        cell: a text, an object that contains one ({"raw": ...}), or a list of these.

    Returns:
        The captions, with a `NotText` for what is invalid, such as a nested list; `checked_caption` refuses it by name.
    """
    cell = _caption_in(cell)
    cells = cell if isinstance(cell, list | tuple | np.ndarray) else [cell]
    texts = (_text_of(_caption_in(text)) for text in cells)
    return tuple(text_or_not(text) for text in texts if not is_missing(text))  # type: ignore[misc]


def _caption_in(cell: Any) -> Any:
    if isinstance(cell, str) and _LIST.match(cell):
        return _list_in(cell)
    if not isinstance(cell, dict):
        return cell
    return next((cell[key] for key in TEXT_KEYS if key in cell), cell)


def _list_in(text: str) -> Any:
    """Parses a list of texts as written by pandas to a csv file; returns other texts unchanged."""
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            cells = parse(text)
            if isinstance(cells, list) and all(isinstance(cell, str) for cell in cells):
                return cells
    return text


def _text_of(cell: Any) -> Any:
    if isinstance(cell, bytes):
        try:
            return cell.rstrip(b"\0").decode()  # Arrow pads fixed-length bytes.
        except UnicodeDecodeError:
            return cell
    return str(cell) if isinstance(cell, int | float | np.number | Decimal) and not is_missing(cell) else cell


def image_of(cell: Any) -> ImageLike | None:
    """Parses an image cell: a path, encoded bytes, the {"bytes", "path"} of a Hugging Face `Image`, or a list of one of these.

    Raises:
        UserError: the cell is something else; says what.
    """
    if isinstance(cell, dict) and {"bytes", "path"} & cell.keys():
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, list | tuple) and len(cell) < 2:
        return image_of(cell[0]) if cell else None
    if isinstance(cell, bytes):
        return _path_in(cell) or cell or None
    if is_missing(cell):
        return None
    if isinstance(cell, str) and (encoded := _BASE64.fullmatch(cell)):
        return _decoded(encoded[1])
    if isinstance(cell, list | tuple):
        return _pixels_of(cell)
    if not isinstance(cell, str):
        raise UserError(f"its image is of type {type(cell).__name__}; give a path or an encoded file")
    return cell


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except ValueError:
        raise UserError(f"its image is base64 that is cut or damaged: {text:.20}...") from None


def _pixels_of(cell: Sequence[Any]) -> np.ndarray:
    """Converts nested lists of pixel values to uint8 [H, W] or [H, W, C]. Raises UserError for any other list."""
    if not isinstance(cell[0], list | tuple):
        raise UserError(f"its cell of images holds {len(cell)}; write a row for each")
    try:
        pixels = np.array(cell)
    except ValueError:
        pixels = np.empty(0)
    if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "iu" or not pixels.size or pixels.min() < 0 or pixels.max() > 255:
        raise UserError("its image is a list of lists; give whole numbers from 0 to 255, rows of pixels of equal length")
    return pixels.astype(np.uint8)


def _path_in(cell: bytes) -> str | None:
    """Decodes bytes that contain a path; None for an encoded image, which is never a line of printable text."""
    if len(cell) > MAX_PATH_BYTES:
        return None
    try:
        path = cell.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        return None
    return path if path.isprintable() else None


def scores_of(column: pa.ChunkedArray, where: str, broken: Container[int] = ()) -> np.ndarray:
    """Converts a column of numbers, or of texts with numbers, to float64 [N], NaN in broken rows.

    Args:
        column: the cells.
        where: prefix of error messages.
        broken: indices of unusable rows, from 0.

    Raises:
        UserError: a cell in another row is not a number; names the first.
    """
    with suppress(pa.ArrowException):  # The cast does not support JSON, and its error does not name the cell.
        scores: np.ndarray = column.cast(pa.float64()).to_numpy()
        if np.isfinite(scores).all():
            return scores
    return np.array(
        [np.nan if row in broken else _number_of(cell.as_py(), f"{where}, row {row + 1}") for row, cell in enumerate(column)]
    )


def _number_of(cell: Any, where: str) -> float:
    with suppress(TypeError, ValueError):
        if np.isfinite(number := float(cell)):
            return number
    raise UserError(f"{where}: {cell!r} is not a number; every pair needs a score")


def number_labels(values: Iterable[Any], where: str = "label", what: str = "label") -> tuple[list[int | None], list[str]]:
    """Returns the class index of each value, None if missing, and the sorted class names (numbers by value).

    Raises:
        UserError: a label is a list or an object; the message calls it `what`.
    """
    values = [_label_of(value, where, what) for value in values]
    present = {value for value in values if value is not None}
    numeric = all(isinstance(value, int | float) for value in present)
    names = sorted(present) if numeric else sorted(present, key=str)
    number = {name: i for i, name in enumerate(names)}
    return [None if value is None else number[value] for value in values], [str(name) for name in names]


def group_of(cell: Any, where: str) -> int:
    """Hash of the name of a group, from 0 to 2^63 - 1: equal for equal texts, and for a number and its text.

    Raises:
        UserError: the cell is empty, a list or an object.
    """
    name = _label_of(cell, where, "group")
    if name is None:
        raise UserError(f"{where}: no group; fill in the cell, or remove the row")
    return text_hash(str(name))


def _label_of(value: Any, where: str, what: str) -> Any:
    if is_missing(value):
        return None
    if isinstance(value, list | dict | np.ndarray):
        raise UserError(f"{where}: a {what} is one text or number, not {value!r:.60}")
    if isinstance(value, bytes):
        return _text_of(value)
    if isinstance(value, str):
        return value.strip()
    # Many tools convert a column of integers with a missing value to floats.
    return int(value) if isinstance(value, float) and value.is_integer() else value
