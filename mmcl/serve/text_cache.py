"""A model that keeps the vectors of the texts that it was asked for last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmcl.types import EmbeddingModel

_KEPT = 4096


class TextCache:
    """An `EmbeddingModel` that encodes a text once, of the last 4096 texts. Not for several threads at once.

    Args:
        model: the model.
        kept: how many vectors are kept.
    """

    def __init__(self, model: EmbeddingModel, kept: int = _KEPT):
        self._model, self._kept = model, kept
        self._vectors: OrderedDict[str, np.ndarray] = OrderedDict()

    @property
    def fingerprint(self) -> str:
        """That of the model."""
        return self._model.fingerprint

    @property
    def logit_scale(self) -> float | None:
        """That of the model."""
        return self._model.logit_scale

    @property
    def logit_bias(self) -> float | None:
        """That of the model."""
        return self._model.logit_bias

    @property
    def has_text(self) -> bool:
        """Whether the model embeds texts."""
        return self._model.has_text

    def encode_image(self, images: Any, *, batch_size: int | None = None, progress: bool = False) -> np.ndarray:
        """Embeds images, as the model does."""
        return self._model.encode_image(images, batch_size=batch_size, progress=progress)

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Embeds texts: float32 [N, D]. One text at a time, so that its vector does not depend on its company."""
        rows = []
        for text in texts:
            if text not in self._vectors:
                self._vectors[text] = self._model.encode_text([text])[0]
            self._vectors.move_to_end(text)
            rows.append(self._vectors[text])
            while len(self._vectors) > self._kept:
                self._vectors.popitem(last=False)
        return np.stack(rows)
