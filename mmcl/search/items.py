"""Rows of an index: one image with its captions and what is known of its file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from mmcl.data.sample import ImageLike
from mmcl.errors import UserError

Kind = Literal["text", "texts", "whole", "number", "truth", "date"]
"""Type of a column: a string, a list of strings, int64, float64, bool, or a time without a zone."""

KINDS: Mapping[str, Kind] = {
    "id": "text",
    "path": "text",
    "folder": "text",
    "captions": "texts",
    "label": "text",
    "size": "whole",
    "width": "whole",
    "height": "whole",
    "taken": "date",
}
"""Columns that every index has. `folder` is that of the path, "" at the top; `size` in bytes; `width`, `height` of the upright
image in pixels; `taken` is EXIF's DateTimeOriginal."""

_COLUMN = re.compile("[a-z_][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Item:
    """One image of an index.

    Attributes:
        id: 16 hexadecimal digits, of the path or the key; the same in every index of the collection.
        path: relative to the collection's folder, with "/"; the key, in a collection that is not of files.
        name: the image's path as it can be opened, or its key.
        captions: all captions.
        label: name of its class, or None.
        size: bytes of its file.
        width, height: of the upright image, in pixels.
        taken: date of the photograph (EXIF DateTimeOriginal), without a zone.
        meta: columns of the user's own.
        image: the image, not yet decoded, a file as a `Path`; None if it is not there any more.
    """

    id: str
    path: str
    name: str
    captions: tuple[str, ...] = ()
    label: str | None = None
    size: int | None = None
    width: int | None = None
    height: int | None = None
    taken: datetime | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    image: ImageLike | None = field(default=None, repr=False, compare=False)


def id_of(path: str) -> str:
    """Returns the id of a path or key.

    Example:
        >>> id_of("holiday/cat.png")
        'efb501f9614ff032'
    """
    return hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def folder_of(path: str) -> str:
    """Returns the folder of a path, "" at the top."""
    return path.rpartition("/")[0]


def unknown_id(id: str) -> UserError:
    """Builds the error for an id that an index does not have."""
    return UserError(f"no image {id!r} in the index; ids are those of its hits, 16 hexadecimal digits")


def check_columns(names: Iterable[str], where: str) -> None:
    """Raises UserError for a name that a column of the user's own cannot have."""
    for name in names:
        if not _COLUMN.fullmatch(name):
            raise UserError(
                f"{where}: a column cannot be called {name!r}; use small letters, digits and _, such as camera_model"
            )
        if name in KINDS or name in ("key", "vector", "status", "reason", "thumb", "sha"):
            raise UserError(f"{where}: the index has a column {name!r} of its own; call yours otherwise")
