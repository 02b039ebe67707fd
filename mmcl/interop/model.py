"""The model interface for users: encodes images and texts as unit-length vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmcl.data.images.tensors import check_resize, read_pixels
from mmcl.data.sample import ImageLike
from mmcl.data.source import Source, has_rows, required_rows
from mmcl.data.stored_rows import rows_of_texts
from mmcl.encoders.adapters import merged_state_dict
from mmcl.encoders.tokenizers import Tokenizer
from mmcl.encoders.tower import ImageEncoder, TextEncoder, Tower
from mmcl.errors import UserError
from mmcl.interop.device import beside_reading, find_device
from mmcl.interop.encoding import Embedding, Images, PairScores, as_many, check_dim, collected, read_in_batches, unit_prefixes
from mmcl.interop.save import save_model
from mmcl.interop.stored_inputs import feature_batches
from mmcl.methods.method import Method
from mmcl.preprocess import Preprocess
from mmcl.types import Features, Tokens


class Model(PairScores):
    """A model ready for inference; an `EmbeddingModel` (see types.py).

    Attributes:
        towers: "image" and "text", or one of them; set to evaluation mode.
        logit_scale: inverse temperature that turns cosines into logits; None if the model was trained without one.
        logit_bias: added to the logits; None for softmax models, a number for sigmoid models (SigLIP).
        embedding: which output is returned, see `Embedding`.
        class_names: for a classifier trained with labels, the name of each logit of its image tower; None for other models.
        matryoshka_dims: widths below the full one whose prefixes were trained as embeddings (`train.matryoshka`); () if none.
        provenance: origin of the model, as JSON values.

    Raises:
        UserError: the installed libraries do not support the resizing of the images.

    Example:
        >>> from mmcl import load_model
        >>> model = load_model("runs/clip_emoji")
        >>> model.encode_image(np.zeros((32, 32, 3), np.uint8)).shape, model.has_text
        ((1, 256), True)
    """

    def __init__(
        self,
        towers: nn.ModuleDict,
        *,
        logit_scale: float | None = None,
        logit_bias: float | None = None,
        embedding: Embedding = "projection",
        class_names: Sequence[str] | None = None,
        matryoshka_dims: Sequence[int] = (),
        provenance: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
    ):
        self.device = find_device(device)
        self.towers = towers.to(self.device).eval()
        if self.has_image:
            check_resize(self.preprocess)
        self.logit_scale = logit_scale
        self.logit_bias = logit_bias
        self.embedding: Embedding = embedding
        self.class_names: Sequence[str] | None = None if class_names is None else list(class_names)
        self.matryoshka_dims = tuple(matryoshka_dims)
        self.provenance = dict(provenance or {})

    def __repr__(self) -> str:
        towers = ", ".join(f"{name}={_tower_in_words(tower)}" for name, tower in self.towers.items())  # type: ignore[arg-type]
        facts = [towers, f"embed_dim={self.embed_dim}", f"embedding={self.embedding!r}"]
        if self.logit_scale is not None:
            facts.append(f"logit_scale={self.logit_scale:.4g}")
        if self.matryoshka_dims:
            facts.append(f"matryoshka_dims={list(self.matryoshka_dims)}")
        if self.class_names is not None:
            facts.append(f"classes={len(self.class_names)}")
        return f"Model({', '.join(facts)}, device={str(self.device)!r})"

    @property
    def has_image(self) -> bool:
        """True if the model has an image tower."""
        return "image" in self.towers

    @property
    def has_text(self) -> bool:
        """True if the model has a text tower."""
        return "text" in self.towers

    @property
    def preprocess(self) -> Preprocess:
        """Image preprocessing. Raises UserError if there is no image tower."""
        encoder: ImageEncoder = self._tower("image", "preprocess").encoder  # type: ignore[assignment]
        return encoder.preprocess

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer. Raises UserError if there is no text tower."""
        encoder: TextEncoder = self._tower("text", "tokenizer").encoder  # type: ignore[assignment]
        return encoder.tokenizer

    @property
    def embed_dim(self) -> int:
        """Width D of the embeddings; that of the images if the features of images and texts differ in width."""
        return self._width(next(iter(self.towers.values())))  # type: ignore[arg-type]

    def encode_image(
        self, images: ImageLike | Images, *, batch_size: int | None = None, progress: bool = False, dim: int | None = None
    ) -> np.ndarray:
        """Embeds images.

        Args:
            images: a path (any `str` is a path), a PIL image, a uint8 array [H, W] or [H, W, C], or an encoded file; a sequence
                of these; or a data source, also of stored rows for a model that was trained on them.
            batch_size: images per forward pass; by default 64, or more if the images are small.
            progress: whether to show a progress bar.
            dim: width of the result: the first columns, scaled to unit length; None for all. Any width works, and is as good as
                training has made it, see `matryoshka_dims`.

        Returns:
            float32 [N, D], unit length, in the order given; N is 1 for a single image.

        Raises:
            UserError: the model has no image tower, an image is missing or cannot be read (the message names the file), or
                `dim` is not from 1 to D.
        """
        tower = self._tower("image", "encode_image")
        many = as_many(images)
        with beside_reading(self.device, _most_multiplications(tower)):
            return self._encode(tower, self._image_inputs(tower, many, batch_size), len(many), progress, dim)

    def image_logits(self, images: ImageLike | Images, *, batch_size: int | None = None) -> np.ndarray:
        """Outputs of the image head without normalization, such as the logits of a classifier: float32 [N, C].

        Args, Raises: as for `encode_image`.
        """
        tower = self._tower("image", "image_logits")
        with beside_reading(self.device, _most_multiplications(tower)), torch.inference_mode():
            batches = self._image_inputs(tower, as_many(images), batch_size)
            return np.concatenate([tower(batch, unit=False).float().cpu().numpy() for batch in batches])

    def image_features(self, images: ImageLike | Images, *, batch_size: int | None = None) -> np.ndarray:
        """Outputs of the image encoder, before the head and without normalization: float32 [N, F].

        Args, Raises: as for `encode_image`.
        """
        tower = self._tower("image", "image_features")
        with beside_reading(self.device, _most_multiplications(tower)), torch.inference_mode():
            batches = self._image_inputs(tower, as_many(images), batch_size)
            return np.concatenate([tower.features(batch).rows.float().cpu().numpy() for batch in batches])

    def encode_text(
        self, texts: str | Sequence[str], *, batch_size: int = 256, progress: bool = False, dim: int | None = None
    ) -> np.ndarray:
        """Embeds a string or a list of strings. A string is always a text, never a path; `dim` as for `encode_image`.

        The captions of a source of stored rows are read for a model that was trained on such rows.

        Returns:
            float32 [N, D], unit length, in the order given; N is 1 for a single string.

        Raises:
            UserError: the model has no text tower, an element is not a string, or `dim` is not from 1 to D.
        """
        tower = self._tower("text", "encode_text")
        encoder: TextEncoder = tower.encoder  # type: ignore[assignment]
        rows = [texts] if isinstance(texts, str) else list(texts)
        stored = rows_of_texts(rows) if encoder.rows_of is not None else []
        if rows and len(stored) == len(rows):
            inputs: Iterator[Tokens | Features] = feature_batches(tower, "text", stored)
        else:
            starts = range(0, len(rows), batch_size)
            inputs = (encoder.tokenizer(rows[start : start + batch_size]) for start in starts)
        return self._encode(tower, (batch.to(self.device) for batch in inputs), len(rows), progress, dim)

    def save(self, path: str | Path, *, provenance: Mapping[str, Any] | None = None) -> None:
        """Writes a folder that `mmcl.load_model` reads, atomically; adapters are merged in it.

        Args:
            path: the folder; an existing model folder is replaced, a folder with other content is refused.
            provenance: origin to write in place of the model's own.

        Raises:
            UserError: a tower was made by hand, so that it cannot be rebuilt, or the folder cannot be written.

        Example:
            >>> from mmcl import load_model
            >>> load_model("runs/clip_emoji").save("copy")
            >>> load_model("copy").has_text
            True
        """
        save_model(
            path,
            self.towers,
            logit_scale=self.logit_scale,
            logit_bias=self.logit_bias,
            embedding=self.embedding,
            class_names=self.class_names,
            matryoshka_dims=self.matryoshka_dims,
            provenance=self.provenance if provenance is None else provenance,
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of architecture, weights, preprocessing and tokenizer, in hexadecimal; computed once."""
        digest = hashlib.sha256(json.dumps([self.embedding, *map(_description, self.towers.items())]).encode())
        for name, tensor in sorted(merged_state_dict(self.towers).items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _width(self, tower: Tower) -> int:
        return tower.embed_dim if self.embedding == "projection" else tower.encoder.feature_dim

    def _tower(self, name: str, method: str) -> Tower:
        if name not in self.towers:
            raise UserError(f"this model has no {name} tower, so {method} does not work; load a model that has one")
        return self.towers[name]  # type: ignore[return-value]

    def _image_inputs(self, tower: Tower, images: Images, batch_size: int | None) -> Iterator[Tensor | Features]:
        """Preprocessed images for the tower, or the stored rows that stand for them, in batches."""
        if isinstance(images, Source) and has_rows(images):
            return (rows.to(self.device) for rows in feature_batches(tower, "image", required_rows(images)))
        encoder: ImageEncoder = tower.encoder  # type: ignore[assignment]
        preprocess = encoder.preprocess
        batches = read_in_batches(images, preprocess, batch_size, lambda image, name: read_pixels(image, preprocess, name=name))
        return (torch.stack(batch).to(self.device).float() / 255 for batch in batches)

    def _encode(
        self, tower: Tower, batches: Iterator[Tensor | Tokens | Features], total: int, progress: bool, dim: int | None
    ) -> np.ndarray:
        width = self._width(tower)
        check_dim(width if dim is None else dim, width)  # before anything is encoded
        with torch.inference_mode():
            rows = (embed(tower, batch, self.embedding).cpu().numpy() for batch in batches)
            return unit_prefixes(collected(rows, total, width, progress=progress), dim)


def embed(tower: Tower, batch: Tensor | Tokens | Features, embedding: Embedding) -> Tensor:
    """Embeds a prepared batch, pixels float32 [B, C, H, W] in [0, 1], tokens or features: float32 [B, D], unit length."""
    if embedding == "projection":
        projected: Tensor = tower(batch).float()
        return projected
    return nn.functional.normalize(tower.features(batch).rows.float(), dim=-1)


def _most_multiplications(tower: Tower) -> int:
    """Bound on the multiplications of an image tower for one image: no weight is used more often than once per pixel."""
    encoder: ImageEncoder = tower.encoder  # type: ignore[assignment]
    preprocess = encoder.preprocess
    return sum(parameter.numel() for parameter in tower.parameters()) * preprocess.height * preprocess.width


def _description(item: tuple[str, nn.Module]) -> list[Any]:
    """Everything but the weights that determines a tower's output, as JSON values."""
    name, tower = item
    spec, encoder = tower.spec, tower.encoder
    architecture = repr(tower) if spec is None else asdict(spec)  # type: ignore[call-overload]
    inputs = asdict(encoder.preprocess) if isinstance(encoder, ImageEncoder) else encoder.tokenizer.to_json()  # type: ignore[union-attr,operator]
    return [name, architecture, inputs]


def _tower_in_words(tower: Tower) -> str:
    """Name of the encoder and number of parameters: "vit_base_patch16 (86.6 M)"."""
    encoder = type(tower.encoder).__name__ if tower.spec is None else tower.spec.encoder
    return f"{encoder} ({sum(p.numel() for p in tower.parameters()) / 1e6:.3g} M)"


def build_model(method: Method) -> Model:
    """Builds the model that a method exports: its towers in evaluation mode, and the parameters of its logits."""
    scale, bias = method.logit_scale, method.logit_bias
    return Model(
        method.towers,
        logit_scale=None if scale is None else float(scale.detach()),
        logit_bias=None if bias is None else float(bias.detach()),
        embedding=method.embedding,
        device=next(method.parameters()).device,
    )
