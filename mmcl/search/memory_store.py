"""An index in memory: what `Index.build` makes without `out`, and what index.json of earlier versions holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mmcl.data.names import relative, unique
from mmcl.data.sample import Sample
from mmcl.data.threads import in_threads
from mmcl.errors import UserError, how_to_install
from mmcl.files.byte_range import FilePart
from mmcl.preprocess import Preprocess
from mmcl.search.arrow import array_of
from mmcl.search.collection import sha_of
from mmcl.search.image_facts import ImageFacts, read_facts
from mmcl.search.items import KINDS, Item, Kind, folder_of, id_of, unknown_id
from mmcl.search.narrow import RESCORE
from mmcl.search.ranking import ranked
from mmcl.search.store import TextRows
from mmcl.types import BadSample

_OF_FILES = ("width", "height", "taken")


class MemoryStore:
    """Rows in memory, in the order of the collection; a `Store`.

    Args:
        samples: the N images, with T captions in all.
        image_emb: float32 [N, D], unit length.
        text_emb: float32 [T, D], unit length, in the order of the samples; T = 0 if the model has no text tower.
        bad: unreadable images, which are not among the samples, and unusable captions.
        model: fingerprint of the model.
        model_name: what loads it; "" if not known.
        preprocess: preprocessing of the model, if known.
        places: prefixes of the names that are the place of the collection.
        class_names: names of the labels, if there are labels.
    """

    exact = True
    narrow = None
    version = 0
    kinds: Mapping[str, Kind] = KINDS

    def __init__(
        self,
        samples: Sequence[Sample],
        image_emb: np.ndarray,
        text_emb: np.ndarray,
        *,
        bad: Sequence[BadSample] = (),
        model: str = "",
        model_name: str = "",
        preprocess: Preprocess | None = None,
        places: Sequence[str] = (),
        class_names: Sequence[str] | None = None,
    ):
        self.samples = list(samples)
        self.image_emb, self.text_emb = image_emb, text_emb
        self.model, self.model_name = model, model_name
        self.places = tuple(places)
        self.dim = image_emb.shape[1]
        self.calibration: Mapping[str, float] | None = None
        self._bad = list(bad)
        self._preprocess, self._class_names = preprocess, class_names
        self._columns: dict[str, pa.Array] = {}

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def images(self) -> Tensor:
        """Vectors of the images."""
        return torch.from_numpy(self.image_emb)

    def vectors(self, positions: Sequence[int]) -> Tensor:
        """Vectors at some positions."""
        return self.images[list(positions)]

    def nearby(self, query_D: np.ndarray, count: int, *, among_N: Tensor | None = None, rescore: int = RESCORE) -> list[int]:
        """Returns the positions nearest to a query; exactly, in memory."""
        return [row.position for row in ranked(query_D[None], self.images, count, among_N)]

    @cached_property
    def texts(self) -> TextRows:
        """Captions and their vectors."""
        counts = torch.tensor(
            [len(sample.captions) for sample in self.samples] if len(self.text_emb) else [], dtype=torch.int64
        )
        item = torch.repeat_interleave(counts)
        first = counts.cumsum(0) - counts
        return TextRows(torch.from_numpy(self.text_emb), item, torch.arange(len(item)) - first[item])

    @cached_property
    def paths(self) -> list[str]:
        """Path or key of every row, without the place of the collection."""
        return list(unique(relative(sample.name, self.places) for sample in self.samples))

    def items(self, positions: Sequence[int]) -> list[Item]:
        """Returns the rows at positions; sizes and dates only if they have been read already."""
        return [self._item(position) for position in positions]

    def position(self, id: str) -> int:
        """Returns the position of an image. Raises UserError for an id that there is not."""
        if id not in self._positions:
            raise unknown_id(id)
        return self._positions[id]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {id_of(path): position for position, path in enumerate(self.paths)}

    def column(self, name: str) -> pa.Array:
        """Returns a column; those of the files' headers are read for all images on first use."""
        if name not in self._columns:
            made = self._of_headers() if name in _OF_FILES else {name: _VALUES[name](self)}
            self._columns |= {each: array_of(values, self.kinds[each]) for each, values in made.items()}
        return self._columns[name]

    def thumb(self, position: int) -> bytes | None:
        """Returns a small image; None if the image is not there any more."""
        sample = self.samples[position]
        if sample.image is None:
            return None
        return read_facts(sample.image, sample.name, self._preprocess, thumb=True).thumb

    def bad(self) -> list[BadSample]:
        """Returns the images and captions that could not be used."""
        return self._bad

    def full_text(self, text: str) -> list[tuple[int, float]]:
        """Raises UserError: there is no full-text index in memory."""
        raise UserError(
            "hybrid search needs a full-text index, which an index in memory does not have; build one on disk by "
            f"`mmcl index build` ({how_to_install('index')})"
        )

    def hashes(self) -> list[bytes | None]:
        """Returns the SHA-256 of each image's file."""
        return list(in_threads(lambda position: sha_of(self.samples[position].image), range(len(self))))

    def set_calibration(self, calibration: Mapping[str, float] | None) -> None:
        """Keeps the fit of `match`."""
        self.calibration = calibration

    def label(self, position: int) -> str | None:
        """Name of a row's class."""
        label = self.samples[position].label
        return None if label is None or self._class_names is None else str(self._class_names[label])

    def _item(self, position: int) -> Item:
        sample, path = self.samples[position], self.paths[position]
        # Among what is not wanted, a string is a text.
        image = Path(sample.image) if isinstance(sample.image, str) else sample.image
        known = {name: self._columns[name][position].as_py() for name in (*_OF_FILES, "size") if name in self._columns}
        return Item(id_of(path), path, sample.name, sample.captions, self.label(position), image=image, **known)

    def _of_headers(self) -> dict[str, list[Any]]:
        facts = list(in_threads(self._facts, range(len(self))))
        return {name: [None if one is None else getattr(one, name) for one in facts] for name in _OF_FILES}

    def _facts(self, position: int) -> ImageFacts | None:
        sample = self.samples[position]
        if sample.image is None:
            return None
        with suppress(UserError):
            return read_facts(sample.image, sample.name, self._preprocess, thumb=False)
        return None


def _size(sample: Sample) -> int | None:
    if isinstance(sample.image, FilePart):
        return sample.image.size
    if isinstance(sample.image, bytes):
        return len(sample.image)
    with suppress(OSError):
        return os.stat(sample.image).st_size if isinstance(sample.image, str | Path) else None
    return None


_VALUES: Mapping[str, Callable[[MemoryStore], list[Any]]] = {
    "id": lambda store: [id_of(path) for path in store.paths],
    "path": lambda store: store.paths,
    "folder": lambda store: [folder_of(path) for path in store.paths],
    "captions": lambda store: [list(sample.captions) for sample in store.samples],
    "label": lambda store: [store.label(position) for position in range(len(store))],
    "size": lambda store: [_size(sample) for sample in store.samples],
}
