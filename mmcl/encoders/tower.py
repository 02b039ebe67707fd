"""Towers, which combine an encoder and a projection head, and the base classes of encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mmcl.encoders import HEADS, IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.encoders.blocks import blocks, module_depths, parameter_depths
from mmcl.encoders.patches import PatchTokens, encode_patches
from mmcl.errors import UserError
from mmcl.logging import get_logger, note
from mmcl.preprocess import Preprocess
from mmcl.terminal import counted
from mmcl.types import Features, ImagePatches, Input, Tokens

if TYPE_CHECKING:
    from mmcl.encoders.tokenizers import Tokenizer

logger = get_logger(__name__)


GIVEN = "custom"
"""Name of encoders that are passed as modules from Python, see `mmcl.encoders.given`."""


class Encoder(nn.Module):
    """Base of all encoders.

    Attributes:
        feature_dim: width F of the features.
        rebuild_args: arguments with which the registry rebuilds this architecture with random weights and without a download;
            JSON values only.
        test_args: arguments that make the encoder small enough for a test, for `mmcl.testing.check_encoder`.
        rows_of: fingerprint of the model whose stored rows may stand for the features, "" for those of any; None for none.
        encodes: false for an encoder that takes stored rows alone.
    """

    feature_dim: int
    rebuild_args: Mapping[str, Any]
    test_args: ClassVar[Mapping[str, Any]] = {}
    rows_of: str | None = None
    encodes: ClassVar[bool] = True


class ImageEncoder(Encoder):
    """Encoder of pixels, float32 [B, C, H, W] in [0, 1], to features [B, F]; normalizes with `preprocess`'s mean and std."""

    preprocess: Preprocess

    def patch_tokens(self) -> PatchTokens | None:
        """Return where the tokens of patches are, of which `train.fewer_tokens` keeps some; None where none can be left out.

        Raises:
            UserError: a setting of the encoder is in the way.
        """
        return None


class TextEncoder(Encoder):
    """Encoder of `Tokens` to features [B, F]. Padding never changes the features.

    Attributes:
        tokenizer: splits texts into `Tokens`.
        length_multiple: texts are padded to a multiple of this length, so that few lengths occur; set by `train.compile`.
    """

    tokenizer: Tokenizer
    length_multiple: int = 1


@dataclass(frozen=True, slots=True)
class DualEncoder:
    """Both encoders of one CLIP-like model with the parameters of its logits, scale * cosine + bias.

    Attributes:
        logit_scale: None if the checkpoint has none.
        logit_bias: None for softmax models, a number for sigmoid models (SigLIP).
    """

    image: ImageEncoder
    text: TextEncoder
    logit_scale: float | None
    logit_bias: float | None


class PixelNorm(nn.Module):
    """Convert RGB or single-channel images to the encoder's channel order and normalize: (pixels - mean) / std per channel.

    The constants belong to the architecture and are not part of the state dict.
    """

    def __init__(self, preprocess: Preprocess):
        super().__init__()
        self.reverses_channels = preprocess.channel_order == "bgr"
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        image_BCHW = image_BCHW.flip(1) if self.reverses_channels else image_BCHW
        return (image_BCHW - self.mean) / self.std  # type: ignore[operator]


def say_preprocess(path: str | Path, preprocess: Preprocess, rest: str = "") -> None:
    """Log the preprocessing assumed for weights from a file, which does not state how they were trained."""
    numbers = ", ".join(f"{name} {' '.join(f'{value:.4g}' for value in getattr(preprocess, name))}" for name in ("mean", "std"))
    shown = f"{preprocess.height} x {preprocess.width} pixels, {preprocess.interpolation}, resize {preprocess.resize!r}"
    note(logger, f"{path} does not say its preprocessing; taken is {numbers}, {shown}{rest}; give preprocess if it is another")


def check_tokenizer(tokenizer: Tokenizer, limit: int, model: nn.Module, encoder: str) -> None:
    """Raise UserError if the tokenizer's context or ids exceed the encoder's positions or token embeddings."""
    tables = [part.num_embeddings for part in model.modules() if isinstance(part, nn.Embedding)]
    if tables and tokenizer.largest_id() >= max(tables):  # the largest is that of the tokens, not of positions or segments
        raise UserError(
            f"the tokenizer's ids go up to {tokenizer.largest_id()}, and {encoder} embeds {max(tables)} tokens; "
            "give the tokenizer that it was trained with"
        )
    if tokenizer.context_length > limit:
        raise UserError(
            f"the tokenizer's context length {tokenizer.context_length} exceeds the {limit} positions of {encoder}; lower it"
        )


def fixed_length(tokens: Tokens, length: int, tokenizer: Tokenizer) -> Tensor:
    """Return ids padded to `length`, int64 [B, length], for encoders without a mask, where padding is part of the text."""
    ids_BL = tokens.ids.masked_fill(~tokens.mask, tokenizer.pad_id)
    ids_BL = nn.functional.pad(ids_BL, (0, length - ids_BL.shape[1]), value=tokenizer.pad_id)
    if tokenizer.pad_side == "right":
        return ids_BL
    text_B1 = tokens.mask.sum(1, keepdim=True)
    return ids_BL.gather(1, (torch.arange(length, device=ids_BL.device) + text_B1) % length)


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerSpec:
    """The names and arguments from which the registries build a tower; JSON values only.

    Attributes:
        modality: registry that contains `encoder`.
        encoder, encoder_args: the encoder and its arguments.
        head, head_args: the projection head and its arguments.
    """

    modality: Literal["image", "text"]
    encoder: str
    encoder_args: Mapping[str, Any] = field(default_factory=dict)
    head: str = "none"
    head_args: Mapping[str, Any] = field(default_factory=dict)

    def plugins(self) -> set[str]:
        """Return the modules of the plug-ins that registered its encoder and head."""
        encoders = IMAGE_ENCODERS if self.modality == "image" else TEXT_ENCODERS
        return {module for module in (encoders.plugin(self.encoder), HEADS.plugin(self.head)) if module is not None}


class Tower(nn.Module):
    """An encoder and its projection head.

    Attributes:
        spec: specification from which `build_tower` rebuilds the architecture; None for a hand-made tower, which cannot be
            saved.
        frozen: whether the whole encoder is frozen, see `freeze`.
        fixed: names of the parameters that the settings of a run freeze, so that its checkpoints need not hold them.
        in_evaluation_mode: modules that are in evaluation mode even when the tower trains.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, *, spec: TowerSpec | None = None):
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.spec = spec
        self.frozen = False
        self.fixed: set[str] = set()
        self.in_evaluation_mode: list[nn.Module] = []

    @property
    def embed_dim(self) -> int:
        """Width D of the embedding."""
        return int(self.head.embed_dim)  # type: ignore[arg-type]

    @property
    def encoder_name(self) -> str:
        """Name of the encoder in its registry; for a hand-made tower, that of its class."""
        return type(self.encoder).__name__ if self.spec is None else self.spec.encoder

    def freeze(self, lowest: int | None = None) -> None:
        """Freeze the encoder, or its lowest blocks: no gradient and permanent evaluation mode (Zhai et al., "LiT", 2022).

        The head still trains.

        Args:
            lowest: number of blocks (`mmcl.encoders.blocks`) to freeze, with everything below them, such as embeddings, the
                patch convolution and the first norm. If negative, the number of the highest blocks that still train; where
                there are no more, only what is below the blocks is frozen. None freezes the whole encoder.

        Raises:
            UserError: the encoder has fewer blocks, or none.
        """
        found = len(blocks(self.encoder))
        if lowest is not None and (lowest > found or not found):
            raise UserError(f"the encoder {self.encoder_name} has {counted(found, 'block') if found else 'no blocks'}")
        if lowest is not None and lowest < 0:
            lowest = max(0, found + lowest)
        depths = module_depths(self.encoder)
        for name, parameter, depth in parameter_depths(self.encoder):
            if lowest is None or depth <= lowest:
                parameter.requires_grad_(False)
                self.fixed.add(f"encoder.{name}")
        self.frozen = not any(parameter.requires_grad for parameter in self.encoder.parameters())
        self.in_evaluation_mode += [
            module for module in self.encoder.modules() if self.frozen or depths.get(module, found + 1) <= (lowest or 0)
        ]
        self.train(self.training)

    def freeze_statistics(self, part: nn.Module) -> None:
        """Keep the batch norms of the tower, or of its encoder, in evaluation mode; their weights and biases still train."""
        self.in_evaluation_mode += [module for module in part.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self.train(self.training)

    def train(self, mode: bool = True) -> Tower:
        super().train(mode)
        for module in self.in_evaluation_mode:
            module.training = False
        return self

    def features(self, inputs: Input) -> Features:
        """Return the encoder's features of a batch, of texts that are known to be equal computed once; `Features` are returned
        unchanged."""
        if isinstance(inputs, Features):
            return inputs
        if isinstance(inputs, ImagePatches):
            return Features(encode_patches(self.encoder, inputs))  # type: ignore[arg-type]
        if isinstance(inputs, Tokens) and inputs.repeats is not None:
            return Features(self.encoder(inputs.distinct())[inputs.repeats.text])
        return Features(self.encoder(inputs))

    def project(self, inputs: Input) -> Tensor:
        """Return the head's output without normalization: float32 [B, D] (float64 for a float64 tower)."""
        projected: Tensor = self.head(self.features(inputs).rows)
        return projected.to(torch.promote_types(projected.dtype, torch.float32))

    def forward(self, inputs: Input, *, unit: bool = True) -> Tensor:
        """Embed a batch: float32 [B, D] (float64 for a float64 tower), rows of unit length unless `unit` is false."""
        projected = self.project(inputs)
        return nn.functional.normalize(projected, dim=-1) if unit else projected


def build_tower(spec: TowerSpec, *, tokenizer: Tokenizer | None = None) -> Tower:
    """Build a tower from names.

    Args:
        spec: the tower to build; arguments are checked against the factories' signatures.
        tokenizer: tokenizer of a text tower; None uses the encoder's own.

    Raises:
        UserError: a name or an argument does not exist.
    """
    HEADS.check(spec.head, spec.head_args)
    if spec.modality == "image":
        encoder: Encoder = IMAGE_ENCODERS.build(spec.encoder, spec.encoder_args)
    else:
        encoder = TEXT_ENCODERS.build(spec.encoder, spec.encoder_args, tokenizer)
    return wrap_encoder(encoder, spec)


def wrap_encoder(encoder: Encoder, spec: TowerSpec) -> Tower:
    """Add the head of `spec` to an existing encoder; the tower's own spec holds the encoder's `rebuild_args`."""
    head = HEADS.build(spec.head, spec.head_args, encoder.feature_dim)
    return Tower(encoder, head, spec=replace(spec, encoder_args=dict(encoder.rebuild_args)))
