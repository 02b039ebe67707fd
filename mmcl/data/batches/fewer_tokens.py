"""Fewer tokens: an encoder sees smaller images, some of the patches of every image, or both in most steps, and whole images of
full size in the last ones (Li et al., "Scaling Language-Image Pre-training via Masking", 2023, FLIP; Li et al., "An Inverse
Scaling Law for CLIP Training", 2023, CLIPA)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mmcl.data.batches.views import ImageView
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


@dataclass(frozen=True, kw_only=True, slots=True)
class FewerTokens:
    """What an encoder sees of each image until a step. Patches are drawn anew in every epoch and for every view.

    Attributes:
        until: first step in which whole images of full size are seen.
        steps: length of the run.
        views: the image views until then, by name; empty if they are those of the other steps.
        counts: patches of every image view, which has the size that it has until then; empty if all are seen.
    """

    until: int
    steps: int
    views: Mapping[str, ImageView] = field(default_factory=dict)
    counts: Mapping[str, PatchCount] = field(default_factory=dict)

    def is_on(self, step: int) -> bool:
        """True if only this is seen in a step, counted from 0."""
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

    def describe(self) -> str:
        """Says in words what is seen until when."""
        counts = dict.fromkeys(f"{count.kept:,} of {count.all:,}" for count in self.counts.values())
        sizes = dict.fromkeys(f"{one.preprocess.height} x {one.preprocess.width}" for one in self.views.values())
        images = f"images of {listed(list(sizes))} pixels" if sizes else "an image"
        seen = f"{listed(list(counts))} patches of {images}" if counts else images
        finish = self.steps - self.until
        whole = "of full size" if not counts else "whole ones of full size" if sizes else "all of them"
        rest = f", {whole} in the last {'step' if finish == 1 else f'{finish:,} steps'}" if finish else ""
        return f"{seen} until step {self.until:,}{rest}"
