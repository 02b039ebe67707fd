"""Rows that were stored for the samples of a source, such as the embeddings of another model, and are read with every batch.

They are in files that are mapped into memory, so that all processes share what the operating system caches of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmcl.errors import UserError


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows of the images, or of the captions, of all samples.

    Attributes:
        file: rows, .npy of float32 or float16 [R, E].
        starts: the first row of each sample, .npy of int64 [N], followed by those of its other captions; None where sample i
            has row i alone.

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
        """Reads the rows of some samples: [b, E].

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


def caption_place(caption: str, listed: Sequence[str]) -> int:
    """Returns the place of a drawn caption among the distinct captions of its sample.

    Raises:
        UserError: the source draws captions that it does not list, although its `draws_as_listed` says that it does not.

    Example:
        >>> caption_place("a kitten", ("a cat", "a cat", "a kitten"))
        1
    """
    distinct = list(dict.fromkeys(listed))
    if caption not in distinct:
        raise UserError(f"no row is stored for the caption {caption!r}: the data list others for this sample")
    return distinct.index(caption)


def _mapped(file: Path) -> np.ndarray:
    mapped: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    return mapped
