"""A part of a source, and the split of a source into a part to train on and a part to test on."""

from __future__ import annotations

import hashlib

import numpy as np

from mmcl.data.source import Sample, Source, digest
from mmcl.data.streams import Stream
from mmcl.errors import UserError
from mmcl.rng import uniform


class Subset(Source):
    """Some rows of another source.

    Args:
        source: the whole.
        indices: int64, the rows' numbers in it.
    """

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices = source, indices
        self.class_names, self.templates = source.class_names, source.templates
        self.ids = None if source.ids is None else source.ids[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[int(self.indices[index])]

    @property
    def fingerprint(self) -> str:
        return digest(self.source.fingerprint, self.indices.tobytes())

    def caption(self, index: int, draw: float) -> str:
        return self.source.caption(int(self.indices[index]), draw)


def split_source(source: Source, share: float, seed: int) -> tuple[Subset, Subset]:
    """Splits a source at random into (rest, held out).

    What belongs together stays together: rows with equal ids, or, without ids, with the same first caption. A group's side
    depends on the seed and the group alone, so adding data moves nothing across.

    Args:
        share: of the groups that are held out, above 0 and below 1.

    Raises:
        UserError: one of the parts would be empty.
    """
    groups = np.array([_group(source, index) for index in range(len(source))], np.int64)
    held = uniform(seed, Stream.HOLDOUT, groups) < share
    if held.all() or not held.any():
        raise UserError(
            f"data.holdout {share} of {len(np.unique(groups))} different captions leaves an empty part; "
            "give more data, another share, or test data of its own"
        )
    return Subset(source, np.flatnonzero(~held)), Subset(source, np.flatnonzero(held))


def _group(source: Source, index: int) -> int:
    if source.ids is not None:
        return int(source.ids[index])
    sample = source[index]
    key = sample.captions[0] if sample.captions else sample.name
    return int.from_bytes(hashlib.blake2b(key.encode(errors="replace"), digest_size=8).digest(), "little") >> 1
