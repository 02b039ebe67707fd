"""The embeddings of a complete folder of shards, in place of the model that made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmcl.data.derived.subset import Subset
from mmcl.data.names import relative
from mmcl.data.source import Source
from mmcl.errors import UserError
from mmcl.search.collection import Given, open_collection
from mmcl.search.shards.files import open_shards, read_shard
from mmcl.search.shards.plan import read_plan


def shard_vectors(folder: Path, collection: Given) -> tuple[Source, ShardVectors]:
    """Returns the samples of a collection that have an embedding in its shards, and a model that looks these up.

    Args:
        folder: complete shards of `mmcl embed`, which are read into memory. Images that could not be read then are left out.
        collection: the data that were embedded; their images must not have changed since.

    Raises:
        UserError: shards are missing or damaged, hold features, or were made from other data.
    """
    source = collection if isinstance(collection, Source) else open_collection(collection).source
    if source is None:
        raise UserError(f"{collection} is empty; give the data that were embedded")
    vectors = ShardVectors(folder, source)
    return Subset(source, vectors.readable), vectors


class ShardVectors:
    """An `EmbeddingModel` that looks up embeddings of images and captions, so that nothing is encoded again.

    Args:
        folder: the shards; their embeddings are read into memory.
        source: the data that they were made from.

    Attributes:
        readable: int64, rows of the samples that have an embedding.

    Raises:
        UserError: shards are missing or damaged, hold features, or were made from other data.
    """

    logit_scale = logit_bias = None

    def __init__(self, folder: Path, source: Source):
        plan = read_plan(folder)
        if plan.features:
            raise UserError(f"{folder}: holds features, which texts cannot be compared with; embed without --features")
        if plan.data != source.fingerprint:
            raise UserError(f"{folder}: was made from another list of samples; give the data that were embedded")
        if missing := open_shards(folder, plan):
            raise UserError(f"{folder}: {len(missing)} of {plan.count} files are missing; run the same `mmcl embed` again")
        self._places = source.places
        self._images: dict[str, np.ndarray] = {}
        self._texts: dict[str, np.ndarray] = {}
        rows: list[int] = []
        for number in range(plan.shards):
            table = read_shard(folder, plan, number)
            for row, kind, name, vector in zip(*(table[one] for one in ("row", "kind", "name", "embedding")), strict=True):
                if vector.is_valid:
                    values = _unit(vector.values.to_numpy())
                    (self._images if kind.as_py() == "image" else self._texts).setdefault(name.as_py(), values)
                    rows += [row.as_py()] if kind.as_py() == "image" else []
        if not rows:
            raise UserError(f"{folder}: none of {plan.rows:,} images could be read")
        self.readable = np.array(rows, np.int64)
        self.fingerprint, self.has_text = plan.model, bool(self._texts)
        self.embed_dim = len(next(iter(self._images.values())))

    def encode_image(self, images: Any, *, batch_size: int | None = None, progress: bool = False) -> np.ndarray:
        """Looks up the images of a source by their names. Raises UserError for one that has no embedding."""
        names = [relative(images[number].name, self._places) for number in range(len(images))]
        missing = next((name for name in names if name not in self._images), None)
        if missing is not None:
            raise UserError(f"{missing}: has no embedding in the shards; give the data that were embedded")
        return np.stack([self._images[name] for name in names])

    def encode_text(self, texts: Any, *, batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Looks up captions. Raises UserError for one that has no embedding."""
        missing = next((text for text in texts if text not in self._texts), None)
        if missing is not None:
            raise UserError(f"the caption {missing!r} has no embedding in the shards; embed the data again into a new folder")
        return np.stack([self._texts[text] for text in texts])


def _unit(values: np.ndarray) -> np.ndarray:
    """Values as float32, at unit length again if they were rounded to float16."""
    wide = values.astype(np.float32)
    return wide if values.dtype == np.float32 else wide / np.float32(np.linalg.norm(wide))
