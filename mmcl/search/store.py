"""What holds the rows of an index: memory, or a table on disk. Both answer the same questions equally."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from mmcl.search.items import Item, Kind
from mmcl.search.narrow import RESCORE, Narrow
from mmcl.types import BadSample

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from torch import Tensor

Target = Literal["images", "texts"]


@dataclass(frozen=True)
class TextRows:
    """Captions of an index.

    Attributes:
        vectors: float32 [T, D], unit length.
        item: int64 [T], position of the image of each.
        number: int64 [T], which of the image's captions it is, from 0.
    """

    vectors: Tensor
    item: Tensor
    number: Tensor


class Store(Protocol):
    """Rows of an index, at positions from 0 to N - 1; a position holds until the store is written."""

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        ...

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """Type of each column that can be filtered and sorted by."""
        ...

    @property
    def model(self) -> str:
        """Fingerprint of the model that made the vectors."""
        ...

    @property
    def model_name(self) -> str:
        """What `mmcl.load_model` takes to load it; "" if not known."""
        ...

    @property
    def exact(self) -> bool:
        """False if answers come from narrow rows or an approximate index."""
        ...

    @property
    def version(self) -> int:
        """Grows with every change."""
        ...

    @property
    def calibration(self) -> Mapping[str, float] | None:
        """JSON values of the fit of `match`, or None."""
        ...

    def __len__(self) -> int:
        """Number N of images that can be found."""
        ...

    @property
    def images(self) -> Tensor:
        """Vectors of the images, float32 [N, D], unit length."""
        ...

    def vectors(self, positions: Sequence[int]) -> Tensor:
        """Returns the vectors of some images, float32 [len(positions), D]."""
        ...

    @property
    def narrow(self) -> Narrow | None:
        """Kind of the narrow rows that are compared in place of the vectors; None without them."""
        ...

    def nearby(self, query_D: np.ndarray, count: int, *, among_N: Tensor | None = None, rescore: int = RESCORE) -> list[int]:
        """Returns the positions of at most `count` images nearest to a query.

        Args:
            query_D: the query.
            count: number of images.
            among_N: bool [N], the images that may be found; None for all. An approximate index finds any.
            rescore: times as many images that narrow rows find, and whose vectors are compared.
        """
        ...

    @property
    def texts(self) -> TextRows:
        """Captions and their vectors; T = 0 without captions, or if the model has no text tower."""
        ...

    def items(self, positions: Sequence[int]) -> list[Item]:
        """Returns the rows at positions, in their order."""
        ...

    def position(self, id: str) -> int:
        """Returns the position of an image. Raises UserError for an id that there is not."""
        ...

    def column(self, name: str) -> pa.Array:
        """Returns the values of a column of `kinds` at all positions."""
        ...

    def thumb(self, position: int) -> bytes | None:
        """Returns a small image as JPEG, of at most 256 pixels a side; None if there is none."""
        ...

    def bad(self) -> list[BadSample]:
        """Returns the images that could not be read, with the reasons."""
        ...

    def hashes(self) -> list[bytes | None]:
        """Returns the SHA-256 of each image's file; None for one that cannot be read."""
        ...

    def set_calibration(self, calibration: Mapping[str, float] | None) -> None:
        """Keeps the fit of `match`."""
        ...

    def full_text(self, text: str) -> list[tuple[int, float]]:
        """Returns the positions whose captions have words of a text, with their scores (BM25), best first.

        Raises:
            UserError: the store has no full-text index.
        """
        ...
