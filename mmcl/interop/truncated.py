"""A model at a smaller width: the first columns of its embeddings, which Matryoshka training has made embeddings, too."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmcl.files.digest import digest
from mmcl.interop.encoding import check_dim, unit_prefixes
from mmcl.types import EmbeddingModel


def at_dim(model: EmbeddingModel, dim: int | None) -> EmbeddingModel:
    """Returns a model at a width: itself for None and for its own width, else a `TruncatedModel`, with its errors."""
    return model if dim is None or dim == getattr(model, "embed_dim", None) else TruncatedModel(model, dim)


class TruncatedModel:
    """The first columns of a model's embeddings, scaled to unit length; an `EmbeddingModel` (see types.py).

    Give it wherever a model is taken, such as `mmcl.Index.build` and `mmcl.evaluate.CachedModel`. Any width works, and is as
    good as training has made it: see `matryoshka_dims` of the model.

    Args:
        model: the model.
        dim: width of the embeddings, from 1 to that of the model.

    Raises:
        UserError: the width is none of these; raised at once if the model tells its width, `embed_dim`, else when it encodes.

    Example:
        >>> from mmcl import TruncatedModel, load_model
        >>> small = TruncatedModel(load_model("runs/clip_emoji"), 64)
        >>> small.encode_text(["a cat", "a dog"]).shape
        (2, 64)
    """

    def __init__(self, model: EmbeddingModel, dim: int):
        check_dim(dim, getattr(model, "embed_dim", None))
        self.model, self.embed_dim = model, dim

    @property
    def fingerprint(self) -> str:
        """Depends on that of the model and on the width."""
        return digest(self.model.fingerprint, self.embed_dim)

    @property
    def logit_scale(self) -> float | None:
        """That of the model, with which its prefixes were trained, too."""
        return self.model.logit_scale

    @property
    def logit_bias(self) -> float | None:
        """That of the model."""
        return self.model.logit_bias

    @property
    def has_text(self) -> bool:
        """Whether the model embeds texts."""
        return self.model.has_text

    @property
    def provenance(self) -> Any:
        """That of the model; empty if it has none to tell."""
        return getattr(self.model, "provenance", {})

    @property
    def preprocess(self) -> Any:
        """That of the model; None if it has none to tell."""
        return getattr(self.model, "preprocess", None)

    def encode_image(self, images: Any, *, batch_size: int | None = None, progress: bool = False) -> np.ndarray:
        """Embeds images as the model does: float32 [N, dim], unit length."""
        return unit_prefixes(self.model.encode_image(images, batch_size=batch_size, progress=progress), self.embed_dim)

    def encode_text(self, texts: Any, *, batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Embeds texts as the model does: float32 [N, dim], unit length."""
        return unit_prefixes(self.model.encode_text(texts, batch_size=batch_size, progress=progress), self.embed_dim)
