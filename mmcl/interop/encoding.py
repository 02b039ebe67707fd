"""Parts of models of every runtime: reading images in batches, collecting rows, scores of pairs. It does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from mmcl.data.sample import ImageLike
from mmcl.data.source import Source
from mmcl.data.threads import in_batches
from mmcl.errors import UserError
from mmcl.files.byte_range import FilePart
from mmcl.preprocess import Preprocess
from mmcl.progress import progress_bar
from mmcl.terminal import counted

T = TypeVar("T")

Embedding = Literal["projection", "features"]
"""Output of a model: that of the projection head, or the features before it."""

Images = Sequence[ImageLike] | Source

_BATCH_PIXELS = 2**17
"""Pixels in one forward pass, where 64 images have fewer: small batches of small images are slow, and so are batches that no
longer fit into the cache of a processor."""


def as_many(images: ImageLike | Images) -> Images:
    """Returns a list for a single image; sequences and sources are unchanged."""
    if isinstance(images, Source):
        return images
    if isinstance(images, str | Path | bytes | FilePart | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
        return [images]
    return list(images)


def read_in_batches(
    images: Images, preprocess: Preprocess, batch_size: int | None, read: Callable[[ImageLike, str | None], T]
) -> Iterator[list[T]]:
    """Yields the images as `read(image, name)` gives them, in order; by default in batches that suit their size."""

    def read_one(number: int) -> T:
        if isinstance(images, Source):
            sample = images[number]
            return read(sample.required_image(), sample.name)
        image = images[number]
        return read(image, None if isinstance(image, str | Path) else f"image {number}")

    size = batch_size or max(64, _BATCH_PIXELS // (preprocess.height * preprocess.width))
    return in_batches(read_one, len(images), size)


def collected(batches: Iterator[np.ndarray], total: int, width: int, *, progress: bool) -> np.ndarray:
    """Returns the rows of all batches, float32 [total, width]. Raises UserError for a row that is not finite."""
    rows = np.empty((total, width), np.float32)
    done = 0
    with progress_bar(total=total, shown=progress, unit="row") as bar:
        for batch in batches:
            rows[done : done + len(batch)] = batch
            done += len(batch)
            bar.update(len(batch))
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(bad):
        raise UserError(
            f"{len(bad)} of {counted(total, 'embedding')} not finite, the first in row {bad[0]}; the model's weights are "
            "damaged, or its training diverged"
        )
    return rows


def check_dim(dim: int, width: int | None) -> None:
    """Raises UserError unless embeddings of `width` columns, None if unknown, have a prefix of `dim` columns."""
    if isinstance(dim, bool) or not isinstance(dim, Integral) or not 1 <= dim <= (dim if width is None else width):
        most = "" if width is None else f" to {width}, the width of the embeddings"
        raise UserError(f"dim is {dim!r}: give a whole number from 1{most}")


def unit_prefixes(rows: np.ndarray, dim: int | None) -> np.ndarray:
    """Returns the first `dim` columns of rows, scaled to unit length: float32 [N, dim]; the rows themselves for None.

    Raises:
        UserError: the rows have no such prefix.
    """
    if dim is None:
        return rows
    check_dim(dim, rows.shape[1])
    if dim == rows.shape[1]:
        return rows
    prefix = rows[:, :dim]
    length = np.linalg.norm(prefix, axis=1, keepdims=True)
    shortest = np.float32(1e-12)  # rows of zeros stay zeros
    scaled: np.ndarray = (prefix / np.maximum(length, shortest)).astype(np.float32)
    return scaled


class PairScores:
    """Scores of pairs of embeddings.

    Attributes:
        logit_scale: inverse temperature that turns cosines into logits; None if the model was trained without one.
        logit_bias: added to the logits; None for softmax models, a number for sigmoid models (SigLIP).
    """

    logit_scale: float | None
    logit_bias: float | None

    def similarity(self, image_emb: np.ndarray, text_emb: np.ndarray) -> np.ndarray:
        """Cosines of unit-length rows: [N, D] and [M, D] to float32 [N, M]."""
        return np.asarray(image_emb, np.float32) @ np.asarray(text_emb, np.float32).T

    def probs(self, image_emb: np.ndarray, text_emb: np.ndarray) -> np.ndarray:
        """Probabilities that each text matches each image, float32 [N, M].

        A softmax model (CLIP) compares the texts: softmax(logit_scale * cosine), rows sum to 1. A sigmoid model (SigLIP) scores
        each pair independently: sigmoid(logit_scale * cosine + logit_bias).

        Raises:
            UserError: the model has no temperature.
        """
        if self.logit_scale is None:
            raise UserError("this model was trained without a temperature and gives no probabilities; use similarity")
        logits = self.similarity(image_emb, text_emb) * np.float32(self.logit_scale)
        if self.logit_bias is None:
            odds: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
            odds /= odds.sum(axis=1, keepdims=True)
            return odds
        logits += np.float32(self.logit_bias)
        smaller: np.ndarray = np.exp(-np.abs(logits))  # never overflows
        return np.asarray(np.where(logits >= 0, 1, smaller) / (1 + smaller))
