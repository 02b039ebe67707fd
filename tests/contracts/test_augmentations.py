"""The contract suite passes for every registered augmentation, and each check detects a violation."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mmcl.data.augment import AUGMENTATIONS
from mmcl.data.augment.pipeline import Augmentation
from mmcl.testing import check_augmentation


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_contract(name: str) -> None:
    check_augmentation(name)


@dataclass(frozen=True, kw_only=True)
class Shift(Augmentation):
    """Adds a draw to every pixel, and keeps all rules."""

    @property
    def draws(self) -> int:
        return 1

    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        return (image_BCHW + draw_BK[:, :1, None, None].float()).clamp(0, 1)


class TooBright(Shift):
    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        return image_BCHW + draw_BK[:, :1, None, None].float()


class Double(Shift):
    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        return super().__call__(image_BCHW, draw_BK).double()


class OfTheBatch(Shift):
    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        return (image_BCHW * image_BCHW.mean() + draw_BK[:, :1, None, None].float()).clamp(0, 1)


class Unseeded(Shift):
    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        return image_BCHW * torch.rand(len(image_BCHW), 1, 1, 1)


class Constant(Shift):
    def __call__(self, image_BCHW: Tensor, draw_BK: Tensor) -> Tensor:
        return 1 - image_BCHW


def test_one_that_keeps_all_rules_passes() -> None:
    check_augmentation(Shift)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (TooBright, "are not within 0 and 1"),
        (Double, "float64"),
        (OfTheBatch, "differ by the batch"),
        (Unseeded, "differ"),
        (Constant, "all samples are changed alike"),
    ],
)
def test_one_that_breaks_a_rule_is_found(broken: type[Augmentation], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_augmentation(broken)
