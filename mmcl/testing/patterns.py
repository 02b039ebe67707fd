"""A source of synthetic patterns and a model that recognizes them, for testing evaluators against known results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmcl.data.images.image_cache import decoded_batches
from mmcl.data.sample import Sample
from mmcl.data.source import Source
from mmcl.encoders.heads import NoHead
from mmcl.encoders.tower import ImageEncoder, Tower
from mmcl.preprocess import Preprocess

SIZE = 8
CLASSES = 6
NAMES = [f"pattern {number}" for number in range(CLASSES)]


def pattern(number: int) -> np.ndarray:
    """uint8 [8, 8, 3], another one for each number."""
    return np.random.default_rng(number).integers(256, size=(SIZE, SIZE, 3)).astype(np.uint8)


class PatternSource(Source):
    """Noisy images of the patterns 0, 1, ..., 0, 1, ..., with their names as captions and the patterns as classes."""

    def __init__(self, rows: int, seed: int, *, labels: bool = True, captions: bool = True, scores: bool = True):
        noise = np.random.default_rng((seed, 99)).integers(-40, 41, size=(rows, SIZE, SIZE, 3))
        drawn = [np.clip(pattern(row % CLASSES) + noise[row], 0, 255).astype(np.uint8) for row in range(rows)]
        self.class_names = NAMES if labels else None
        self._samples = [
            Sample(
                f"row {row}",
                image,
                (NAMES[row % CLASSES],) if captions else (),
                row % CLASSES if labels else None,
                # In every second round, another pattern.
                positives=(NAMES[(row + row // CLASSES % 2) % CLASSES],),
                negatives=(NAMES[(row + 1) % CLASSES],),
            )
            for row, image in enumerate(drawn)
        ]
        self.scores = 1.0 - np.arange(rows) // CLASSES % 2 if scores else None
        self._seed = seed

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    @property
    def fingerprint(self) -> str:
        return f"patterns {self._seed} {len(self)}"


class PatternEncoder(ImageEncoder):
    """Pixels as features, with a deviation of about 1."""

    feature_dim = 3 * SIZE**2
    preprocess = Preprocess(size=SIZE)

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((self.feature_dim,), -0.5))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return 3 * (image_BCHW.flatten(1) + self.shift)


class PatternModel:
    """Embeds an image as its pixels, centered, and a name as the pattern it names. Counts its calls."""

    fingerprint = "patterns"
    logit_scale = 20.0

    def __init__(self, *, has_text: bool = True, logit_bias: float | None = None):
        self.has_text = has_text
        self.logit_bias = logit_bias
        self.towers = {"image": Tower(PatternEncoder(), NoHead(3 * SIZE**2))}
        self.image_calls: list[int] = []
        self.text_calls: list[int] = []

    def encode_image(self, images: Any, *, batch_size: int | None = None, progress: bool = False) -> np.ndarray:
        """The pixels of images at unit length: float32 [N, D]."""
        preprocess = Preprocess(size=SIZE)
        if not isinstance(images, Source):
            images = _AsSource(images)
        self.image_calls.append(len(images))
        pixels = torch.cat(list(decoded_batches(images, preprocess, batch_size or 64)))
        return _unit(pixels.flatten(1).numpy())

    def image_logits(self, images: Source) -> np.ndarray:
        """Cosines with the patterns; a classifier's pass of its own, which `image_calls` does not count."""
        knows = PatternModel()
        cosine: np.ndarray = knows.encode_image(images) @ knows.encode_text(NAMES).T
        return cosine

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """The pixels of the pattern whose number a text names: float32 [M, D], unit length."""
        self.text_calls.append(len(texts))
        numbers = [int("".join(c for c in text if c.isdigit()) or 77) for text in texts]
        return _unit(np.stack([pattern(number).transpose(2, 0, 1).ravel() for number in numbers]))


class _AsSource(Source):
    def __init__(self, images: Sequence[Any]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return Sample(str(self.images[index])[-80:], self.images[index])

    @property
    def fingerprint(self) -> str:
        raise NotImplementedError


def _unit(rows: np.ndarray) -> np.ndarray:
    centered = rows.astype(np.float32) - 127.5
    unit: np.ndarray = centered / np.linalg.norm(centered, axis=1, keepdims=True)
    return unit
