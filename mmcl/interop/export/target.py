"""Interface of export targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmcl.encoders.tower import GIVEN
from mmcl.interop.graph_folder import Precision
from mmcl.interop.model import Model, embed
from mmcl.types import Tokens

BOUNDS: Mapping[Precision, float] = {"fp32": 1e-4, "fp16": 5e-3, "int8": 5e-2}
"""Largest absolute difference allowed in any number of a unit embedding: rounding is far below it (about 1e-6 in float32, 5e-4
in float16, 1e-2 in 8 bits), and a wrong activation, pooling or normalization far above."""

REPOSITORY = "USER/NAME"
"""Stands for a repository of the hub in the lines that use it."""


def instead(model: Model) -> str:
    """Returns the name of a target that takes a model which another one refuses."""
    rebuilt = all(tower.spec is not None and tower.spec.encoder != GIVEN for tower in model.towers.values())  # type: ignore[union-attr]
    return "sentence_transformers" if rebuilt and model.class_names is None else "onnx"


class LoadedExport(Protocol):
    """An export as its own library loads it. All rows are of unit length, float32 [N, D]."""

    def embed_pixels(self, pixels_BCHW: Tensor) -> np.ndarray:
        """Embeds pixels of the model's size, float32 in [0, 1], before normalization."""
        ...

    def embed_tokens(self, tokens: Tokens) -> np.ndarray:
        """Embeds token ids."""
        ...

    def encode_image(self, images: Sequence[Image.Image | np.ndarray]) -> np.ndarray:
        """Embeds images of any size, with the library's preprocessing."""
        ...

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts, with the library's tokenizer."""
        ...


@runtime_checkable
class LoadedClassifier(LoadedExport, Protocol):
    """An export that keeps the logits of a classifier."""

    def pixel_logits(self, pixels_BCHW: Tensor) -> np.ndarray:
        """Outputs of the image head for such pixels as `embed_pixels` takes, without normalization: float32 [N, C]."""
        ...


class LoadedModel:
    """A model of mmcl as a `LoadedExport`, on the CPU."""

    def __init__(self, model: Model):
        self.model = model

    @torch.inference_mode()
    def _rows(self, tower: str, batch: Tensor | Tokens) -> np.ndarray:
        return embed(self.model.towers[tower], batch, self.model.embedding).numpy()  # type: ignore[arg-type]

    def embed_pixels(self, pixels_BCHW: Tensor) -> np.ndarray:
        """See `LoadedExport`."""
        return self._rows("image", pixels_BCHW)

    @torch.inference_mode()
    def pixel_logits(self, pixels_BCHW: Tensor) -> np.ndarray:
        """See `LoadedClassifier`."""
        logits: np.ndarray = self.model.towers["image"](pixels_BCHW, unit=False).float().numpy()
        return logits

    def embed_tokens(self, tokens: Tokens) -> np.ndarray:
        """See `LoadedExport`."""
        return self._rows("text", tokens)

    def encode_image(self, images: Sequence[Image.Image | np.ndarray]) -> np.ndarray:
        """See `LoadedExport`."""
        return self.model.encode_image(images)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """See `LoadedExport`."""
        return self.model.encode_text(texts)


class ExportTarget(ABC):
    """A model in the format of one library.

    Args:
        model: the model, on the CPU.
        precision: type of the weights.

    Attributes:
        needs: modules that must be installed.
        extra: extra of mmcl that installs them.
        precisions: those that the format has.
        loads_from_hub: whether the library loads a repository of the hub by its name; others load a copy of it.
        own_preprocessing: whether mmcl's own preprocessing runs there, so that images of every shape must agree.

    Raises:
        UserError: the model does not fit the format; names what does not, and a target that fits.
    """

    needs: ClassVar[Sequence[str]] = ()
    extra: ClassVar[str] = ""
    precisions: ClassVar[Sequence[Precision]] = ("fp32",)
    loads_from_hub: ClassVar[bool] = False
    own_preprocessing: bool = False

    def __init__(self, model: Model, *, precision: Precision = "fp32"):
        self.model = model
        self.precision: Precision = precision

    @abstractmethod
    def write(self, folder: Path) -> Sequence[str]:
        """Writes the files into an empty folder. Returns what the format cannot express, one line each."""

    @abstractmethod
    def load(self, folder: Path) -> LoadedExport:
        """Loads what `write` wrote, as a user of the library does."""

    @abstractmethod
    def usage(self, place: str, *, on_hub: bool = False) -> str:
        """Returns the lines of Python that load the export and embed an image and a text.

        Args:
            place: the folder, or the name of a repository of the hub.
            on_hub: whether it is a repository, see `loads_from_hub`.
        """
