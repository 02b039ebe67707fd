"""A module of sentence-transformers that runs any model of mmcl, with mmcl's own preprocessing and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modality import InputFormatter
from sentence_transformers.base.modules.input_module import InputModule

from mmcl.data.images.tensors import read_pixels
from mmcl.errors import UserError
from mmcl.interop.load import load_model
from mmcl.interop.model import Model, embed
from mmcl.types import Tokens


class Towers(InputModule):
    """Both towers of a model, as the only module of a `SentenceTransformer`; the embeddings have unit length.

    sentence-transformers imports a module outside of its own package only with `trust_remote_code=True`.

    Args:
        model: as from `mmcl.load_model`.

    Example:
        >>> from mmcl import load_model
        >>> from sentence_transformers import SentenceTransformer
        >>> model = SentenceTransformer(modules=[Towers(load_model("runs/clip_emoji"))], device="cpu")
        >>> model.encode(["a cat", "a dog"]).shape
        (2, 256)
    """

    save_in_root = False

    def __init__(self, model: Model):
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.towers = model.towers  # moved to other devices with this module
        self._formatter = InputFormatter(model_type="mmcl", message_format="structured", supported_modalities=self.modalities)

    @property
    def modalities(self) -> list[Any]:
        """ "image" and "text", or one of them."""
        return list(self.model.towers)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Prepares a batch of images, or of texts. A string is a text unless it is the path of an image.

        Raises:
            UserError: images and texts are mixed, or an image cannot be read.
        """
        modality, values, _ = self._formatter.parse_inputs(list(inputs))
        if modality not in self.modalities:
            raise UserError(f"a batch has {' or '.join(self.modalities)} inputs, not both and no others; encode them apart")
        if modality == "text":
            tokens = self.model.tokenizer([f"{prompt or ''}{text}" for text in values["text"]])
            return {"input_ids": tokens.ids, "attention_mask": tokens.mask.long(), "modality": modality}
        shown = self.model.preprocess
        pixels_BCHW = torch.stack([read_pixels(image, shown) for image in values["image"]]).float() / 255
        return {"pixel_values": pixels_BCHW, "modality": modality}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds the embeddings [B, D] as "sentence_embedding"."""
        if "pixel_values" in features:
            name, batch = "image", features["pixel_values"]
        else:
            name, batch = "text", Tokens(features["input_ids"], features["attention_mask"].bool())
        return {**features, "sentence_embedding": embed(self.towers[name], batch, self.model.embedding)}  # type: ignore[arg-type]

    def get_embedding_dimension(self) -> int:
        """Width D of the embeddings."""
        return self.model.embed_dim

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Writes mmcl's own format (`mmcl.interop.save`)."""
        self.model.save(output_path, provenance={"fingerprint": self.model.fingerprint})

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Towers:  # type: ignore[override]
        """Reads what `save` wrote, from a folder or the hub."""
        place = ("token", "cache_folder", "revision", "local_files_only")
        options = {name: kwargs[name] for name in place if name in kwargs}
        folder = cls.load_dir_path(model_name_or_path, subfolder=subfolder, **options)
        return cls(load_model(Path(str(folder)), device="cpu"))
