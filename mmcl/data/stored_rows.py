"""Rows that were stored for the samples of a source, or stand for them, such as the embeddings of another model.

They are in files that are mapped into memory, so that all processes share what the operating system caches of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmcl.errors import UserError


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row of numbers in place of an image or a text, such as its embedding by another model.

    Attributes:
        file: rows, .npy of float32 or float16 [R, F], in a folder whose name is a digest of its content.
        number: the row.
        model: fingerprint of the model that wrote it; "" if unknown.
    """

    file: Path
    number: int
    model: str = ""

    @property
    def identity(self) -> tuple[str, str, int]:
        """Identifies the numbers without reading them, wherever the folder is."""
        return self.file.parent.name, self.file.name, self.number


class StoredText(str):
    """A text with the row that stands for it.

    Example:
        >>> text = StoredText("a cat", StoredRow(Path("0123/text.npy"), 7))
        >>> text, text.row.number
        ('a cat', 7)
    """

    row: StoredRow

    def __new__(cls, text: str, row: StoredRow) -> StoredText:
        made = super().__new__(cls, text)
        made.row = row
        return made

    def __reduce__(self) -> tuple[type[StoredText], tuple[str, StoredRow]]:
        return StoredText, (str(self), self.row)


def rows_of_texts(texts: Sequence[str]) -> list[StoredRow]:
    """Returns the rows of those texts that have one."""
    return [text.row for text in texts if isinstance(text, StoredText)]


def text_identity(text: str) -> object:
    """Returns what the embedding of a text depends on besides the model: the text, or the row that stands for it."""
    return text.row.identity if isinstance(text, StoredText) else text


def read_rows(rows: Sequence[StoredRow]) -> np.ndarray:
    """Reads rows, in one pass over each file: float32 [N, F].

    Raises:
        UserError: they are of several widths.

    Example:
        >>> np.save("a.npy", np.arange(6.0, dtype=np.float16).reshape(3, 2))
        >>> read_rows([StoredRow(Path("a.npy"), 2), StoredRow(Path("a.npy"), 0)]).tolist()
        [[4.0, 5.0], [0.0, 1.0]]
    """
    by_file: dict[Path, list[int]] = {}
    for place, row in enumerate(rows):
        by_file.setdefault(row.file, []).append(place)
    tables = {file: _mapped(file) for file in by_file}
    widths = sorted({table.shape[1] for table in tables.values()})
    if len(widths) != 1:
        raise UserError(f"stored rows of {widths[0]} and of {widths[-1]} numbers are in one batch; give tables of one model")
    found = np.empty((len(rows), widths[0]), np.float32)
    for file, places in by_file.items():
        found[places] = tables[file][[rows[place].number for place in places]]
    return found


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows of the images, or of the captions, of all samples.

    Attributes:
        file: rows, .npy of float32 or float16 [R, E], or of one number each [R].
        starts: of captions, the first row of each sample, .npy of int64 [N], followed by those of its other captions; None for
            images, of which sample i has row i.

    Example:
        >>> np.save("rows.npy", np.arange(6.0, dtype=np.float32).reshape(3, 2))
        >>> StoredRows(Path("rows.npy")).read(np.array([2, 0]), None).tolist()
        [[4.0, 5.0], [0.0, 1.0]]
        >>> np.save("starts.npy", np.array([0, 1]))  # the second sample has two captions
        >>> StoredRows(Path("rows.npy"), Path("starts.npy")).read(np.array([1, 0]), np.array([1, 0])).tolist()
        [[4.0, 5.0], [0.0, 1.0]]
    """

    file: Path
    starts: Path | None = None

    def read(self, index_b: np.ndarray, place_b: np.ndarray | None) -> np.ndarray:
        """Reads the rows of some samples: [b, E] or [b].

        Args:
            index_b: the samples.
            place_b: the place of each one's caption among its distinct captions; not used for images.
        """
        # The files are mapped for each piece, so that their contents are not sent to loader processes.
        if self.starts is not None:
            assert place_b is not None, "captions are stored for methods that read texts"
            index_b = _mapped(self.starts)[index_b] + place_b
        rows: np.ndarray = _mapped(self.file)[index_b]
        return rows


def caption_place(caption: str, distinct: Sequence[str], *, as_listed: bool = True) -> int:
    """Returns the place of a drawn caption among the distinct captions of its sample.

    Args:
        caption: the text that was drawn.
        distinct: the captions that are listed.
        as_listed: `Source.draws_as_listed`. If not, any text counts as its sample's caption where that has just one.

    Raises:
        UserError: the caption is not listed, although the source says that it draws as it lists, or the sample has several.

    Example:
        >>> caption_place("a kitten", ("a cat", "a kitten"))
        1
        >>> caption_place("a drawing of a kitten", ("a kitten",), as_listed=False)
        0
    """
    if not as_listed and len(distinct) == 1:
        return 0
    if caption not in distinct:
        raise UserError(f"no row is stored for the caption {caption!r}: the data list others for this sample")
    return distinct.index(caption)


def _mapped(file: Path) -> np.ndarray:
    mapped: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    return mapped
