"""Results of a search."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from mmcl.data.images.image_cache import decode_sample
from mmcl.data.source import ImageLike, Sample
from mmcl.errors import UserError
from mmcl.files.atomic import check_file
from mmcl.files.figure import FIGURE_SUFFIXES, write_figure
from mmcl.preprocess import Preprocess

CELL, GAP = 160, 8


@dataclass(frozen=True, slots=True)
class Hit:
    """One row of an index.

    Attributes:
        name: the image's path, or its key within a dataset.
        score: cosine with the query, -1 to 1.
        caption: the matching text, or the image's first caption; "" if it has none.
        image: the image, not yet decoded.
    """

    name: str
    score: float
    caption: str = ""
    image: ImageLike | None = field(default=None, repr=False, compare=False)

    @property
    def path(self) -> Path:
        """Path of the image, in a collection of files."""
        return Path(self.image if isinstance(self.image, str | Path) else self.name)

    def to_dict(self) -> dict[str, Any]:
        """Name, score and caption, as JSON values."""
        return {"name": self.name, "score": self.score, "caption": self.caption}


class Hits(list[Hit]):
    """A sequence of hits, best first.

    Args:
        hits: the hits.
        preprocess: preprocessing of the model, which decides the intensity range and channels shown; None if unknown.
    """

    def __init__(self, hits: Iterable[Hit] = (), *, preprocess: Preprocess | None = None):
        super().__init__(hits)
        self.preprocess = preprocess

    def save(self, path: str | Path, *, columns: int = 5) -> None:
        """Writes the images as one figure: best first, row by row.

        Raises:
            UserError: there are no hits, an image is missing or cannot be read, or the file cannot be written.
        """
        check_file(Path(path), flag="path", suffixes=FIGURE_SUFFIXES)
        if not self:
            raise UserError(f"{path}: no hits, so no figure is written")
        rows = -(-len(self) // columns)
        width, height = (min(columns, len(self)) * (CELL + GAP) + GAP, rows * (CELL + GAP) + GAP)
        sheet = Image.new("RGB", (width, height), "white")
        for number, hit in enumerate(self):
            if hit.image is None:
                raise UserError(f"{hit.name}: the index has no image of it; build it again from the data")
            thumbnail = ImageOps.contain(decode_sample(Sample(hit.name, hit.image), self.preprocess), (CELL, CELL))
            row, column = divmod(number, columns)
            left, top = (
                GAP + cell * (CELL + GAP) + (CELL - side) // 2 for cell, side in zip((column, row), thumbnail.size, strict=True)
            )
            sheet.paste(thumbnail, (left, top))
        write_figure(Path(path), sheet)
