"""Folders of sentence-transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmcl.interop.export.target import ExportTarget, LoadedExport
from mmcl.interop.graph_folder import Precision
from mmcl.interop.model import Model
from mmcl.types import Tokens


class SentenceTransformersExport(ExportTarget):
    """A folder of sentence-transformers: any model. CLIP-like ones, and towers of timm and transformers, load without mmcl."""

    needs = ("sentence_transformers",)
    extra = "sentence-transformers"
    loads_from_hub = True

    def __init__(self, model: Model, *, precision: Precision = "fp32"):
        super().__init__(model, precision=precision)
        from mmcl.interop.export.sentence_modules import OwnModule, form_of

        self._form = form_of(model)
        self.own_preprocessing = isinstance(self._form, OwnModule)

    def write(self, folder: Path) -> Sequence[str]:
        """Writes the modules as the library saves them."""
        from sentence_transformers import SentenceTransformer

        with tempfile.TemporaryDirectory() as scratch:
            modules, lost = self._form.modules(Path(scratch))
            built = SentenceTransformer(modules=modules, similarity_fn_name="cosine", device="cpu")
            built.save(str(folder), create_model_card=False)
        return lost

    def load(self, folder: Path) -> LoadedExport:
        """Loads the folder by `SentenceTransformer`."""
        from sentence_transformers import SentenceTransformer

        trust = self.own_preprocessing
        loaded = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=trust)
        return _Loaded(loaded, self._form.features)

    def usage(self, place: str, *, on_hub: bool = False) -> str:
        """See `ExportTarget`."""
        trust = ", trust_remote_code=True" if self.own_preprocessing else ""
        return (
            "from sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("{place}"{trust})\n'
            'model.encode([image]), model.encode(["a cat"])'
        )


class _Loaded:
    """A folder of sentence-transformers as the library loads it.

    Args:
        model: the loaded model.
        features: from pixels or tokens to the input of its modules.
    """

    def __init__(self, model: Any, features: Any):
        self._model = model
        self._features = features

    @torch.inference_mode()
    def embed_pixels(self, pixels_BCHW: Tensor) -> np.ndarray:
        rows: np.ndarray = self._model(self._features(pixels_BCHW))["sentence_embedding"].numpy()
        return rows

    @torch.inference_mode()
    def embed_tokens(self, tokens: Tokens) -> np.ndarray:
        rows: np.ndarray = self._model(self._features(tokens))["sentence_embedding"].numpy()
        return rows

    def encode_image(self, images: Sequence[Image.Image | np.ndarray]) -> np.ndarray:
        return np.asarray(self._model.encode(list(images), show_progress_bar=False))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray(self._model.encode(list(texts), show_progress_bar=False))
