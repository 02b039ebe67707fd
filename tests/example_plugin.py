"""An example of a plug-in: a package with its own method, encoder, source, augmentation and evaluator."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmcl.core.info_nce import info_nce
from mmcl.data import SOURCES
from mmcl.data.augment import AUGMENTATIONS
from mmcl.data.augment.pipeline import Augmentation
from mmcl.data.sample import Sample
from mmcl.data.source import SampleList
from mmcl.encoders import IMAGE_ENCODERS
from mmcl.encoders.tower import ImageEncoder
from mmcl.evaluate import EVALUATORS, CachedModel, Metric, Report, Task
from mmcl.files.digest import digest
from mmcl.losses import LOSSES, LossEntry
from mmcl.methods import METHODS
from mmcl.methods.method import Method
from mmcl.preprocess import Preprocess
from mmcl.types import Batch, Embeddings, LossOutput


class ImageToText(Method):
    """InfoNCE from images to texts alone."""

    views: Mapping[str, Literal["image", "text"]] = {"image": "image", "text": "text"}
    embedding: ClassVar[Literal["projection", "features"]] = "projection"

    def __init__(self, towers: nn.ModuleDict, *, temperature: float = 0.1):
        super().__init__(towers)
        self.temperature = temperature

    @property
    def logit_scale(self) -> Tensor:
        return torch.tensor(1 / self.temperature)

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        total = info_nce(
            embeddings.local["image"],
            embeddings.all["text"],
            query_id_N=embeddings.ids,
            key_id_M=embeddings.all_ids,
            scale=1 / self.temperature,
            reduction="sum",
        )
        return LossOutput(total / len(embeddings.all_ids))


class Blocks(ImageEncoder):
    """The mean colors of blocks of pixels, and a linear layer."""

    def __init__(self, *, image_size: int = 16, feature_dim: int = 8):
        super().__init__()
        self.preprocess = Preprocess(size=image_size)
        self.feature_dim = feature_dim
        self.rebuild_args = {"image_size": image_size, "feature_dim": feature_dim}
        self.linear = nn.Linear(3 * 16, feature_dim)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        features: Tensor = self.linear(nn.functional.adaptive_avg_pool2d(image_BCHW, 4).flatten(1))
        return features


class Colors(SampleList):
    """Images of one color, with its name."""

    class_names = ("red", "green", "blue")

    def __init__(self, path: str | None, root: str | None, *, count: int = 24):
        self._samples = [self._sample(number) for number in range(count)]

    def _sample(self, number: int) -> Sample:
        image = np.zeros((16, 16, 3), np.uint8)
        image[..., number % 3] = 255 - 5 * number
        return Sample(f"color {number}", image, (f"{self.class_names[number % 3]} {number}",), number % 3)

    @property
    def fingerprint(self) -> str:
        return digest("colors", len(self))


@dataclass(frozen=True, kw_only=True)
class Darken(Augmentation):
    """Darkens every image a little; kills the process at the call that a test asks for."""

    by: float = 0.1
    calls: ClassVar[list[int]] = []

    @property
    def draws(self) -> int:
        return 1

    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        self.calls.append(1)
        if os.environ.get("TOY_KILL_AT") == str(len(self.calls)):
            os.kill(os.getpid(), signal.SIGKILL)
        return image_BCHW * (1 - self.by * draw_BK[:, :1, None, None]).float()


def cosine_gap(image: Tensor, text: Tensor) -> Tensor:
    """One minus the mean cosine of the pairs."""
    return 1 - nn.functional.cosine_similarity(image, text).mean()


def spread(model: CachedModel, task: Task, *, scale: float = 1.0) -> Report:
    """The mean standard deviation of the embeddings."""
    value = float(model.images(task.source).std(0).mean()) * scale
    return Report(metrics=(Metric("spread", task.name, "spread", model.name, value, None, None, len(task.source)),))


LOSSES.add("cosine_gap", LossEntry(function=cosine_gap, needs="pairs of images and texts", rows=("image", "text")))
METHODS.register("image_to_text", ImageToText)
IMAGE_ENCODERS.register("blocks", Blocks)
SOURCES.register("colors", Colors)
AUGMENTATIONS.register("darken", Darken)
EVALUATORS.register("spread", spread)
