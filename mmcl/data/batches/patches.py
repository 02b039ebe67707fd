"""Patch dropout: an encoder sees some of the patches of every image in most steps, and all of them in the last ones
(Li et al., "Scaling Language-Image Pre-training via Masking", 2023, FLIP)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mmcl.data.random_streams import Stream
from mmcl.rng import hash_integers
from mmcl.terminal import listed


@dataclass(frozen=True, slots=True)
class PatchCount:
    """Numbers of patches of an image.

    Attributes:
        kept: how many an encoder sees.
        all: how many there are.
    """

    kept: int
    all: int


@dataclass(frozen=True, slots=True)
class PatchDropout:
    """Draws the patches of each image that an encoder sees, anew in every epoch and for every view.

    Attributes:
        counts: of every image view.
        until: first step in which all patches are seen.
    """

    counts: Mapping[str, PatchCount]
    until: int

    def is_on(self, step: int) -> bool:
        """True if only some of the patches are seen in a step, counted from 0."""
        return step < self.until

    def draw(self, view: str, *, seed: int, number: int, epoch: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Draws patches, each set of the right size with equal probability.

        Args:
            view: name of the view.
            seed, number, epoch, index: seed, number of the view, and int64 [b] of the rows; they determine the draws of each.

        Returns:
            Numbers of the patches, rising, int64 [b, kept].
        """
        count = self.counts[view]
        key = (seed, Stream.PATCHES, epoch[:, None], index[:, None], number)
        # No two hashes of a row are equal, so that the patches with the smallest ones are a set of their own.
        kept = np.argpartition(hash_integers(*key, np.arange(count.all)), count.kept - 1, axis=1)[:, : count.kept]
        return np.sort(kept, axis=1).astype(np.int64)

    def describe(self, steps: int) -> str:
        """Says in words how many patches are seen in a run of a number of steps."""
        numbers = dict.fromkeys(f"{count.kept:,} of {count.all:,}" for count in self.counts.values())
        finish = steps - self.until
        rest = f", all of them in the last {'step' if finish == 1 else f'{finish:,} steps'}" if finish else ""
        return f"{listed(list(numbers))} patches of an image until step {self.until:,}{rest}"
