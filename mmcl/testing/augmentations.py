"""Contract suite for augmentations: the properties of every entry of `AUGMENTATIONS`, and of your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl.data.augment import AUGMENTATIONS
from mmcl.data.augment.pipeline import Augmentation, AugmentationPipeline
from mmcl.testing.require import require, small_args


def check_augmentation(augmentation: str | type[Augmentation], args: Mapping[str, Any] | None = None) -> None:
    """Runs every check on an augmentation.

    Args:
        augmentation: a name in `AUGMENTATIONS`, or the class.
        args: its arguments, which must change images visibly; by default its `test_args`.

    Raises:
        AssertionError: a check failed; the message says what is broken.
        UserError: the augmentation is unknown, or does not accept the arguments.

    Example:
        >>> check_augmentation("hflip")
    """
    factory: Any = AUGMENTATIONS[augmentation] if isinstance(augmentation, str) else augmentation
    operation = factory(**small_args(factory, args))
    require(isinstance(operation, Augmentation), f"{factory.__name__} is not a subclass of Augmentation")
    for check in AUGMENTATION_CHECKS.values():
        check(operation)


def check_range(operation: Augmentation) -> None:
    """Checks that pixels stay float32 in [0, 1] and the input is not modified."""
    images = _images(64)
    before = images.clone()
    after = _run(operation, images, range(64))
    require(torch.equal(images, before), "the images that it was given have changed")
    require(after.dtype == torch.float32, f"it gives {after.dtype}, not float32")
    require(after.shape[:2] == images.shape[:2], f"{list(images.shape)} became {list(after.shape)}")
    low, high = after.min().item(), after.max().item()
    require(low >= 0 and high <= 1, f"pixels from {low} to {high} are not within 0 and 1")


def check_independence(operation: Augmentation) -> None:
    """Checks that the result of an image does not depend on its batch, bit for bit."""
    images = _images(37)
    whole = _run(operation, images, range(37))
    for rows in ([5], [36, 5], list(range(36, -1, -1))):
        require(torch.equal(_run(operation, images, rows), whole[rows]), f"images {rows} differ by the batch that they are in")


def check_draws(operation: Augmentation) -> None:
    """Checks that the result is a pure function of seed, epoch, sample and view, and differs between them."""
    same, rows = _images(1).expand(64, -1, -1, -1), range(64)
    first = _run(operation, same, rows)
    require(len(torch.unique(first, dim=0)) > 1, "all samples are changed alike")
    require(torch.equal(_run(operation, same, rows), first), "the same draws give another result")
    for change in ({"seed": 1}, {"epoch": 1}, {"view": 1}):
        require(not torch.equal(_run(operation, same, rows, **change), first), f"another {next(iter(change))} changes nothing")


AUGMENTATION_CHECKS: dict[str, Callable[[Augmentation], None]] = {
    "range": check_range,
    "independence": check_independence,
    "draws": check_draws,
}
"""The checks of `check_augmentation`, by name."""


def _images(batch: int) -> Tensor:
    return torch.rand(batch, 3, 13, 11, generator=torch.Generator().manual_seed(0))


def _run(
    operation: Augmentation, images: Tensor, rows: Sequence[int], *, seed: int = 0, epoch: int = 0, view: int = 0
) -> Tensor:
    index = np.array(rows)
    epochs = np.full(len(index), epoch)
    return AugmentationPipeline((operation,))(images[list(rows)], seed=seed, epoch=epochs, index=index, view=view)
