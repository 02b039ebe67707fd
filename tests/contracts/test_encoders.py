"""The contract suite passes for every registered encoder, and each check detects a violation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from mmcl.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.encoders.given import given_encoders
from mmcl.encoders.patches import PatchTokens
from mmcl.encoders.small_cnn import SmallCNN
from mmcl.encoders.small_text import SmallText
from mmcl.encoders.tower import ImageEncoder
from mmcl.preprocess import Preprocess
from mmcl.testing import check_encoder
from mmcl.types import Tokens
from tests.encoders import tiny
from tests.narrow import of_type

NAMES = [("image", name) for name in IMAGE_ENCODERS] + [("text", name) for name in TEXT_ENCODERS]


def args_of(name: str, folder: Path) -> dict[str, Any] | None:
    """Arguments of the libraries' encoders, which read a folder."""
    if name == "open_clip":
        return {"config": tiny.open_clip_config("clip", folder)}
    if name == "transformers":
        tiny.transformers_model("clip", folder)
        return {"name": str(folder)}
    return {"image_size": 8, "channels": 3} if name == "custom" else None


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(49408, 8)

    def forward(self, tokens: Tokens) -> Tensor:
        mask, rows = tokens.mask[..., None], of_type(Tensor, self.table(tokens.ids))
        return (rows * mask).sum(1) / mask.sum(1)


@pytest.mark.parametrize(("modality", "name"), NAMES)
def test_contract(modality: Literal["image", "text"], name: str, tmp_path: Path) -> None:
    modules = {"image": nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)), "text": Table()}
    args = args_of(name, tmp_path)
    if name == "custom" and modality == "text":
        args = {}
    with given_encoders(modules):
        check_encoder(name, args, modality=modality)


class Mine(ImageEncoder):
    """Keeps all rules."""

    def __init__(self, *, feature_dim: int = 4):
        super().__init__()
        self.preprocess, self.feature_dim = Preprocess(size=8, channels=1), feature_dim
        self.rebuild_args = {"feature_dim": feature_dim}
        self.linear = nn.Linear(64, feature_dim)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return of_type(Tensor, self.linear(image_BCHW.flatten(1)))


class OtherWidth(Mine):
    def forward(self, image_BCHW: Tensor) -> Tensor:
        return super().forward(image_BCHW)[:, :2]


class OfTheBatch(Mine):
    def forward(self, image_BCHW: Tensor) -> Tensor:
        return super().forward(image_BCHW - image_BCHW.mean())


class Detached(Mine):
    def forward(self, image_BCHW: Tensor) -> Tensor:
        return super().forward(image_BCHW).detach() + image_BCHW.mean().requires_grad_()


class Padded(SmallText):
    def forward(self, tokens: Tokens) -> Tensor:
        return super().forward(tokens) * tokens.ids.shape[1]


def test_one_that_keeps_all_rules_passes() -> None:
    check_encoder(Mine)
    check_encoder(SmallCNN, {"image_size": 8})


class Patches(Mine):
    """Features of the brightest pixel of each of four patches; their order counts if `weights` differ."""

    def __init__(self, *, feature_dim: int = 4, weights: tuple[float, ...] = (1, 1, 1, 1)):
        super().__init__(feature_dim=feature_dim)
        self.linear, self.tokens, self.weights = nn.Linear(1, feature_dim), nn.Identity(), weights
        self.rebuild_args = {"feature_dim": feature_dim, "weights": list(weights)}

    def forward(self, image_BCHW: Tensor) -> Tensor:
        brightest = nn.functional.max_pool2d(image_BCHW, 4).flatten(1)[..., None]
        token_BLF = of_type(Tensor, self.tokens(self.linear(brightest)))
        return (token_BLF * torch.tensor(self.weights)[: token_BLF.shape[1], None]).mean(1)

    def patch_tokens(self) -> PatchTokens:
        return PatchTokens(self.tokens, 0, (4, 4))


def test_one_whose_patches_have_an_order_is_found() -> None:
    check_encoder(Patches)
    with pytest.raises(AssertionError, match="features differ by the order of the patches"):
        check_encoder(Patches, {"weights": (1, 2, 3, 4)})


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (OtherWidth, r"became \[1, 2\], not \[1, 4\]"),
        (OfTheBatch, "differs by its batch"),
        (Detached, "no parameter gets a gradient"),
        (nn.Identity, "is not a mmcl.encoders.tower.ImageEncoder"),
    ],
)
def test_one_that_breaks_a_rule_is_found(broken: Any, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_encoder(broken)


def test_a_text_encoder_that_sees_padding_is_found() -> None:
    with pytest.raises(AssertionError, match="differs by its batch"):
        check_encoder(Padded, modality="text")


def test_one_that_is_not_built_again_from_its_arguments_is_found() -> None:
    class Halved(Mine):
        def __init__(self, *, feature_dim: int = 4, factor: float = 1.0):
            super().__init__(feature_dim=feature_dim)
            self.factor = factor

        def forward(self, image_BCHW: Tensor) -> Tensor:
            return super().forward(image_BCHW) * self.factor

    with pytest.raises(AssertionError, match="rebuild_args gives other features"):
        check_encoder(Halved, {"factor": 0.5})
