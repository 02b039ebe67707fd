"""Base class of augmentations, and their application to a whole batch with separate draws per image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mmcl.config import ComponentConfig
from mmcl.data.augment import AUGMENTATIONS
from mmcl.data.random_streams import Stream
from mmcl.errors import UserError
from mmcl.rng import uniform

_CHUNK = 2**18
"""Values augmented at a time; a chunk stays in the CPU cache between operations."""


@dataclass(frozen=True, kw_only=True)
class Augmentation(ABC):
    """One operation on a batch of images. The result for an image does not depend on the others, bit for bit.

    For this, parameters are float64: vectorized and scalar functions of a library may differ in the last bit, and the rounding
    to float32 removes the difference. Pixels are only added, multiplied, compared and gathered.

    Args:
        p: probability that an image is changed.

    Attributes:
        test_args: arguments for `mmcl.testing.check_augmentation` that change images visibly, if the defaults do not.
    """

    p: float = 1.0

    test_args: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        self.require(0 <= self.p <= 1, "p", "a probability from 0 to 1")

    def require(self, holds: bool, argument: str, what: str) -> None:
        """Raises UserError that names the operation unless the condition on an argument holds."""
        if not holds:
            raise UserError(f"augmentation {type(self).__name__}: {argument} is {getattr(self, argument)}; give {what}")

    @property
    @abstractmethod
    def draws(self) -> int:
        """Number of uniform random numbers per image."""

    @abstractmethod
    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        """Changes every image.

        Args:
            image_BCHW: float32 in [0, 1]; not modified.
            draw_BK: float64, uniform in [0, 1), K = `draws`.

        Returns:
            float32 [B, C, H, W] in [0, 1], without overlapping memory.
        """


@dataclass(frozen=True)
class AugmentationPipeline:
    """A sequence of augmentations.

    Attributes:
        operations: the augmentations, in the order of application.
    """

    operations: tuple[Augmentation, ...]

    @classmethod
    def build(cls, components: Sequence[ComponentConfig]) -> AugmentationPipeline:
        """Builds the operations by name. Raises UserError for an unknown name or argument."""
        return cls(tuple(AUGMENTATIONS.build(component.name, component.args) for component in components))

    def __call__(self, image_BCHW: Tensor, *, seed: int, epoch: np.ndarray, index: np.ndarray, view: int = 0) -> Tensor:
        """Augments a batch.

        Args:
            image_BCHW: float32 in [0, 1].
            seed: seed of the run.
            epoch, index: int64 [B]; with `seed` and `view` they determine the draws of each image.
            view: index of the view, so that two views of an image differ.

        Returns:
            float32 [B, C, H, W] in [0, 1].
        """
        size = max(1, _CHUNK // image_BCHW[0].numel()) if image_BCHW.device.type == "cpu" else len(image_BCHW)
        chunks = [slice(at, at + size) for at in range(0, len(image_BCHW), size)]
        return torch.cat([self._augment(image_BCHW[rows].clone(), seed, epoch[rows], index[rows], view) for rows in chunks])

    def _augment(self, image_BCHW: Tensor, seed: int, epoch: np.ndarray, index: np.ndarray, view: int) -> Tensor:
        """Augments the images in place."""
        for number, operation in enumerate(self.operations):
            keys = np.arange(1 + operation.draws)
            draw_BK = uniform(seed, Stream.AUGMENT, epoch[:, None], index[:, None], view, number, keys)
            draw = torch.from_numpy(draw_BK).to(image_BCHW.device)
            chosen = draw[:, 0] < operation.p
            if chosen.all():
                image_BCHW = operation(image_BCHW, draw[:, 1:])
            elif chosen.any():
                rows = chosen.nonzero()[:, 0]
                image_BCHW.index_copy_(0, rows, operation(image_BCHW.index_select(0, rows), draw[rows, 1:]))
        return image_BCHW


def between(draw: Tensor, low: float, high: float) -> Tensor:
    """Maps draws from [0, 1) to [low, high)."""
    return low + draw * (high - low)


def per_image(parameter_B: Tensor) -> Tensor:
    """Reshapes a parameter per image from [B] to float32 [B, 1, 1, 1]."""
    return parameter_B.float()[:, None, None, None]


def is_range(value: Sequence[float], low: float = -float("inf"), high: float = float("inf")) -> bool:
    """True if `value` is a pair (from, to) within bounds."""
    return len(value) == 2 and low <= value[0] <= value[1] <= high
