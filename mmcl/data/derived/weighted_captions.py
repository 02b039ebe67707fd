"""Captions that are shown more often than others, such as those of people more often than those of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmcl.data.source import DerivedSource, Source
from mmcl.errors import UserError
from mmcl.files.digest import digest
from mmcl.terminal import counted

_INSIDE = 1e-9
"""Keeps a draw off the edges between captions, where rounding could choose the neighbour."""


class WeightedCaptions(DerivedSource):
    """A source whose captions are drawn by weights: the first caption of every sample has the first weight, and so on.

    A sample with fewer captions draws among those that it has; one with more, or with none of a weight above 0, is a bad
    sample. What else a source does with a draw, such as going on with keywords, it still does.

    Args:
        source: with captions.
        weights: at least one, none negative, not all 0.
    """

    def __init__(self, source: Source, weights: Sequence[float]):
        super().__init__(source)
        self.weights = tuple(weights)
        self._ends = np.cumsum(self.weights)

    @property
    def fingerprint(self) -> str:
        return digest(self.source.fingerprint, self.weights)

    def caption(self, index: int, draw: float) -> str:
        return self.source.caption(index, self._weighted(index, draw))

    def view_text(self, view: str, index: int, draw: float) -> str:
        return self.source.view_text(view, index, self._weighted(index, draw))

    def _weighted(self, index: int, draw: float) -> float:
        """The draw with which the source shows the caption that the weights choose; uniform among those of one caption."""
        sample = self.source[index]
        count = len(sample.captions)
        if count > len(self.weights):
            raise UserError(f"{sample.name}: has {counted(count, 'caption')}, and data.caption_weights {len(self.weights)}")
        if count == 0:
            return draw
        if self._ends[count - 1] == 0:
            raise UserError(f"{sample.name}: data.caption_weights are 0 for all of its {counted(count, 'caption')}")
        ends = self._ends[:count] / self._ends[count - 1]
        place = int(np.searchsorted(ends, draw, side="right"))
        start = ends[place - 1] if place else 0.0
        within = float((draw - start) / (ends[place] - start))
        return (place + min(max(within, _INSIDE), 1 - _INSIDE)) / count
