"""Contract suite for encoders: the properties of every entry of the registries in `mmcl.encoders`, and of your own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmcl.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.encoders.patches import encode_patches
from mmcl.encoders.tokenizers import Tokenizer
from mmcl.encoders.tower import Encoder, ImageEncoder, TextEncoder
from mmcl.testing.require import require, small_args
from mmcl.types import ImagePatches, Tokens

TEXTS = ["a red square", "a", "a long text about a small blue circle on a green ground"]


def check_encoder(
    encoder: str | Callable[..., Encoder],
    args: Mapping[str, Any] | None = None,
    *,
    modality: Literal["image", "text"] = "image",
) -> None:
    """Runs every check on an encoder.

    Args:
        encoder: a name in `IMAGE_ENCODERS` or `TEXT_ENCODERS`, or the factory.
        args: its arguments, for a small encoder; by default its `test_args`.
        modality: "image" or "text".

    Raises:
        AssertionError: a check failed; the message says what is broken.
        UserError: the encoder is unknown, or does not accept the arguments.

    Example:
        >>> check_encoder("small_cnn")
    """
    registry = IMAGE_ENCODERS if modality == "image" else TEXT_ENCODERS
    factory = registry[encoder] if isinstance(encoder, str) else encoder

    def build(settings: Mapping[str, Any], tokenizer: Tokenizer | None = None) -> Encoder:
        torch.manual_seed(0)
        return factory(**settings) if modality == "image" else factory(tokenizer, **settings)

    built = build(small_args(factory, args))
    kind = ImageEncoder if modality == "image" else TextEncoder
    require(isinstance(built, kind), f"{type(built).__name__} is not a mmcl.encoders.tower.{kind.__name__}")
    if not built.encodes:  # stored rows stand for its features
        require(built.rows_of is not None, "it neither encodes inputs nor takes stored rows (rows_of)")
        return
    for check in ENCODER_CHECKS.values():
        check(built.eval(), build)


Build = Callable[..., Encoder]
"""Builds an encoder from its arguments, and the tokenizer of texts."""


def check_features(encoder: Encoder, build: Build) -> None:
    """Checks that a batch of B inputs gives finite features [B, feature_dim] with a gradient."""
    for rows in (1, 3):
        features = encoder(_inputs(encoder, rows))
        expected = [rows, encoder.feature_dim]
        require(list(features.shape) == expected, f"a batch of {rows} became {list(features.shape)}, not {expected}")
        require(bool(features.isfinite().all()), "features are not finite")
    features.square().sum().backward()
    require(any(p.grad is not None and bool(p.grad.any()) for p in encoder.parameters()), "no parameter gets a gradient")


def check_independence(encoder: Encoder, build: Build) -> None:
    """Checks that in evaluation mode a row does not depend on its batch, nor a text on its padding, up to rounding."""
    with torch.no_grad():
        whole = encoder(_inputs(encoder, 3))
        for row in range(3):
            alone = encoder(_inputs(encoder, 3, only=row))[0]
            size = float(whole[row].norm())
            error = float((alone - whole[row]).norm()) / max(size, 1e-6)
            require(error < 1e-4, f"row {row} differs by its batch: relative error {error:.1e}")


def check_rebuilding(encoder: Encoder, build: Build) -> None:
    """`rebuild_args` are JSON values from which the same architecture is built, and its weights give the same features."""
    settings = json.loads(json.dumps(dict(encoder.rebuild_args)))
    again = build(settings, getattr(encoder, "tokenizer", None)).eval()
    again.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        inputs = _inputs(encoder, 3)
        require(torch.equal(again(inputs), encoder(inputs)), "what is built from rebuild_args gives other features")
    same = json.loads(json.dumps(dict(again.rebuild_args))) == settings
    require(same, f"rebuild_args change when they are built again: {again.rebuild_args} for {settings}")


def check_patches(encoder: Encoder, build: Build) -> None:
    """Checks of an image encoder with `patch_tokens` that the order of the patches does not matter, and that it takes any
    number of them; up to rounding."""
    tokens = encoder.patch_tokens() if isinstance(encoder, ImageEncoder) else None
    if tokens is None:
        return
    assert isinstance(encoder, ImageEncoder)
    image_BCHW: Any = _inputs(encoder, 3)
    count = tokens.count(image_BCHW.shape[2:])
    kept_BK = torch.arange(count).flip(0).repeat(3, 1)
    with torch.no_grad():
        whole, turned = encoder(image_BCHW), encode_patches(encoder, ImagePatches(image_BCHW, kept_BK, count))
        error = float((whole - turned).norm()) / max(float(whole.norm()), 1e-6)
        require(error < 1e-4, f"features differ by the order of the patches: relative error {error:.1e}")
        half = encode_patches(encoder, ImagePatches(image_BCHW, kept_BK[:, : -(-count // 2)], count))
        require(half.shape == whole.shape, f"half of the patches became {list(half.shape)}, not {list(whole.shape)}")


ENCODER_CHECKS: dict[str, Callable[[Encoder, Build], None]] = {
    "features": check_features,
    "independence": check_independence,
    "rebuilding": check_rebuilding,
    "patches": check_patches,
}
"""The checks of `check_encoder`, by name."""


def _inputs(encoder: nn.Module, rows: int, only: int | None = None) -> Tensor | Tokens:
    """Inputs of the encoder; with `only`, a single row."""
    wanted = slice(None) if only is None else slice(only, only + 1)
    if isinstance(encoder, TextEncoder):
        return encoder.tokenizer(TEXTS[:rows][wanted])
    assert isinstance(encoder, ImageEncoder)
    preprocess = encoder.preprocess
    shape = rows, preprocess.channels, preprocess.height, preprocess.width
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))[wanted]
