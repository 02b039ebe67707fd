"""Weighted sampling of captions, for example human captions more often than generated ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmcl.data.source import DerivedSource, Source
from mmcl.errors import UserError
from mmcl.files.digest import digest
from mmcl.terminal import counted

_INSIDE = 1e-9
"""Keeps a draw away from the boundaries between captions, where rounding could select the neighbor."""


class WeightedCaptions(DerivedSource):
    """A source whose captions are drawn with weights: the first weight for the first caption of every sample, and so on.

    A sample with fewer captions than weights draws among its own; a sample with more, or without any of weight above 0, is a
    bad sample. Other uses of the draw by the source, such as appending keywords, are preserved.

    Args:
        source: a source with captions.
        weights: at least one; none negative, not all 0.
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
        """Returns a draw for which the source shows the caption chosen by the weights, uniform among all such draws."""
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
