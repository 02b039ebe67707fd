"""Some of the patches of an image in place of all: the tokens of the others are left out, with their positions already added
(Li et al., "Scaling Language-Image Pre-training via Masking", 2023, FLIP)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmcl.types import ImagePatches

if TYPE_CHECKING:
    from mmcl.encoders.tower import ImageEncoder


@dataclass(frozen=True, slots=True)
class PatchTokens:
    """Where an encoder has the tokens of images, with their positions. What follows takes any number of them, in any order.

    Attributes:
        module: its output has the tokens, [B, extra + patches, F], alone or as the first of a tuple, whose second is then None,
            or the numbers of the patches that are there, int64 [B, patches].
        extra: number of tokens before those of the patches, such as class and register tokens, which are always kept.
        patch: height and width of a patch in pixels.
    """

    module: nn.Module
    extra: int
    patch: tuple[int, int]

    def count(self, size: Sequence[int]) -> int:
        """Return the number of patches of an image of a height and width."""
        return (size[0] // self.patch[0]) * (size[1] // self.patch[1])


def encode_patches(encoder: ImageEncoder, images: ImagePatches) -> Tensor:
    """Return the features [B, F] of some of the patches of images, of an encoder that has `patch_tokens`."""
    tokens = encoder.patch_tokens()
    assert tokens is not None, "a run refuses other encoders before it starts"
    hook = tokens.module.register_forward_hook(lambda module, inputs, output: _kept(output, tokens, images))
    try:
        feature_BF: Tensor = encoder(images.pixels)
    finally:
        hook.remove()
    return feature_BF


def _kept(output: Any, tokens: PatchTokens, images: ImagePatches) -> Any:
    """Return the output of the module with the tokens that are kept."""
    if isinstance(output, tuple):
        return _kept(output[0], tokens, images), images.kept
    if output.shape[1] != tokens.extra + images.patches:
        raise ValueError(f"it has {output.shape[1]} tokens, not {tokens.extra} and those of {images.patches} patches")
    extra_BE = torch.arange(tokens.extra, device=output.device).expand(len(output), -1)
    row_BK = torch.cat([extra_BE, images.kept + tokens.extra], dim=1)
    return output.gather(1, row_BK[..., None].expand(-1, -1, output.shape[2]))
