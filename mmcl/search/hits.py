"""Results of a search."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet
from PIL import Image

from mmcl.data.images.image_cache import decode_sample
from mmcl.data.sample import ImageLike, Sample
from mmcl.drawing import PALE, contained, new_figure, new_sheet, png_bytes, show_image, write_text
from mmcl.errors import UserError
from mmcl.files.atomic import check_file, check_folder, staged, write_file
from mmcl.files.figure import FIGURE_SUFFIXES, write_figure
from mmcl.preprocess import Preprocess

_SIDE, _GAP, _CELL, _ROW, _HEAD, _NARROWEST = 1.6, 0.25, 1.85, 2.3, 0.7, 4.0
"""Of the figure, in inches: side of an image, margin, width and height of a hit, height of the heading, least width."""
_PIXELS, _THINNEST = 240, 4
"""Longest and shortest side of an image in the figure."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One row of an index.

    Attributes:
        name: the image's path, or its key within a dataset.
        score: cosine with the query, -1 to 1.
        caption: the matching text, or the image's first caption; "" if it has none.
        image: the image, not yet decoded.
        id: the image's id in the index.
        match: how likely the image is what was looked for, 0 to 1; None without a calibration (`Index.calibrate`).
        taken: date of the photograph, without a zone; None if it is not known, or was not read.
        meta: columns of the user's own.
        fused: the sum of 1 / (60 + rank) that a hybrid search sorts by; None in others.
    """

    name: str
    score: float
    caption: str = ""
    image: ImageLike | None = field(default=None, repr=False, compare=False)
    id: str = field(default="", repr=False, compare=False)
    match: float | None = None
    taken: datetime | None = field(default=None, repr=False, compare=False)
    meta: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    fused: float | None = None

    @property
    def path(self) -> Path:
        """Path of the image, in a collection of files."""
        return Path(self.image if isinstance(self.image, str | Path) else self.name)

    def to_dict(self) -> dict[str, Any]:
        """Name, score and caption, and what else is known, as JSON values."""
        more = {"id": self.id, "match": self.match, "fused": self.fused, "taken": self.taken and self.taken.isoformat()}
        meta = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in self.meta.items()}
        known = {name: value for name, value in more.items() if value not in (None, "")} | ({"meta": meta} if meta else {})
        return {"name": self.name, "score": self.score, "caption": self.caption, **known}


class Hits(list[Hit]):
    """A sequence of hits, best first.

    Args:
        hits: the hits.
        preprocess: preprocessing of the model, which decides the intensity range and channels shown; None if unknown.
        text, image: what was searched for.
        exact: False if they come from an approximate index, which may miss some.
    """

    def __init__(
        self,
        hits: Iterable[Hit] = (),
        *,
        preprocess: Preprocess | None = None,
        text: str | None = None,
        image: ImageLike | None = None,
        exact: bool = True,
    ):
        super().__init__(hits)
        self.preprocess = preprocess
        self.text, self.image = text, image
        self.exact = exact

    def save(self, path: str | Path, *, columns: int = 5) -> None:
        """Writes one figure: the query, and the images with rank, score and caption or name, best first, row by row.

        Raises:
            UserError: there are no hits, an image is missing or cannot be read, or the file cannot be written.
        """
        check_file(Path(path), flag="path", suffixes=FIGURE_SUFFIXES)
        if not self:
            raise UserError(f"{path}: no hits, so no figure is written")
        write_figure(Path(path), self._draw(columns))

    def to_json(self, path: str | Path) -> None:
        """Writes a list of `Hit.to_dict`. Raises UserError if the file cannot be written."""
        check_file(Path(path), flag="path")
        write_file(path, json.dumps([hit.to_dict() for hit in self], ensure_ascii=False, indent=1) + "\n")

    def to_csv(self, path: str | Path) -> None:
        """Writes a line for each hit, with a header. Raises UserError if the file cannot be written."""
        check_file(Path(path), flag="path")
        with staged(path) as stage:
            pyarrow.csv.write_csv(self._table(), stage)

    def to_parquet(self, path: str | Path) -> None:
        """Writes a row for each hit. Raises UserError if the file cannot be written."""
        check_file(Path(path), flag="path")
        with staged(path) as stage:
            pyarrow.parquet.write_table(self._table(), stage)

    def copy_to(self, directory: str | Path, *, link: bool = False) -> list[Path]:
        """Copies the images into a folder, with their rank before the name: 001_cat.png.

        Args:
            directory: the folder; it is created.
            link: make symbolic links instead of copies.

        Returns:
            The files, best first.

        Raises:
            UserError: a hit is not a file, or is not there any more; nothing is copied then. Or the folder cannot be written.
        """
        files = [self._file(hit) for hit in self]
        check_folder(Path(directory), flag="copy_to")
        Path(directory).mkdir(parents=True, exist_ok=True)
        places = [Path(directory, f"{rank:03}_{file.name}") for rank, file in enumerate(files, 1)]
        for file, place in zip(files, places, strict=True):
            if link:
                place.unlink(missing_ok=True)
                place.symlink_to(file.absolute())
            else:
                with staged(place) as stage:
                    shutil.copyfile(file, stage)
        return places

    @staticmethod
    def _file(hit: Hit) -> Path:
        if not isinstance(hit.image, str | Path):
            raise UserError(f"{hit.name}: is not a file of its own, so it cannot be copied")
        if not Path(hit.image).is_file():
            raise UserError(f"{hit.name}: is not there any more; run `mmcl index sync`")
        return Path(hit.image)

    def _table(self) -> pyarrow.Table:
        """One row per hit; own columns keep their names and types."""
        fixed = {
            "rank": pyarrow.array(range(1, len(self) + 1), pyarrow.int64()),
            **{
                name: pyarrow.array([getattr(hit, name) for hit in self], pyarrow.string())
                for name in ("id", "name", "caption")
            },
            **{name: pyarrow.array([getattr(hit, name) for hit in self], pyarrow.float64()) for name in ("score", "match")},
            "taken": pyarrow.array([hit.taken for hit in self], pyarrow.timestamp("us")),
        }
        own = list(dict.fromkeys(name for hit in self for name in hit.meta))
        return pyarrow.table(fixed | {name: _flat([hit.meta.get(name) for hit in self]) for name in own})

    def _draw(self, columns: int) -> bytes:
        """The figure as PNG."""
        shown = [self._decoded(hit.name, hit.image) for hit in self]
        head = _HEAD if self.image is None else _HEAD + _SIDE
        across, rows = min(columns, len(self)), -(-len(self) // columns)
        width, height = max(_NARROWEST, across * _CELL + _GAP), head + rows * _ROW
        figure = new_figure(width, height)
        sheet = new_sheet(figure)
        query = f"\u201c{self.text}\u201d" if self.text else "Images that are near this one" if self.image is not None else ""
        write_text(sheet, _GAP, _HEAD / 2, query, width=round(9 * width), lines=2, fontsize=13)
        if self.image is not None:
            show_image(sheet, self._decoded("the query", self.image), PALE, (_GAP, _HEAD, _SIDE, 0.9 * _SIDE))
        for number, (hit, image) in enumerate(zip(self, shown, strict=True)):
            row, column = divmod(number, columns)
            left, top = _GAP + column * _CELL, head + row * _ROW
            show_image(sheet, image, PALE, (left, top, _SIDE, _SIDE), line_width=1)
            below = top + _SIDE
            write_text(sheet, left, below + 0.13, str(number + 1), weight="bold", fontsize=10)
            write_text(sheet, left + _SIDE, below + 0.13, f"{hit.score:.3f}", color=PALE, ha="right", fontsize=10)
            write_text(sheet, left, below + 0.24, hit.caption or Path(hit.name).name, width=23, lines=2, va="top", fontsize=8.5)
        return png_bytes(figure)

    def _decoded(self, name: str, image: ImageLike | None) -> Image.Image:
        """An image as it is shown: small, so that the figure stays light, and not too thin to be seen."""
        if image is None:
            raise UserError(f"{name}: the index has no image of it; build it again from the data")
        small = contained(decode_sample(Sample(name, image), self.preprocess), _PIXELS)
        return small.resize((max(small.width, _THINNEST), max(small.height, _THINNEST)))


def _flat(values: Sequence[Any]) -> pyarrow.Array:
    """Values of an own column; lists are joined, because a table of text has none."""
    return pyarrow.array(["; ".join(value) if isinstance(value, list) else value for value in values])
