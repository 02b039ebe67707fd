"""Fewer tokens (`train.fewer_tokens`): which patches of an image the encoder of a run sees, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmcl.config import Config, FewerTokensConfig
from mmcl.data.batches.patches import PatchCount, PatchDropout
from mmcl.data.batches.views import ImageView
from mmcl.data.source import Source
from mmcl.encoders.patches import PatchTokens
from mmcl.encoders.tower import Tower
from mmcl.errors import UserError, first_line
from mmcl.methods.method import Method
from mmcl.runs.checks import two_images
from mmcl.runs.frozen_features import has_fixed_inputs
from mmcl.runs.stored_inputs import stored_inputs
from mmcl.types import ImagePatches

_WHERE = "train.fewer_tokens."


def drop_patches(
    config: Config, method: Method, source: Source, views: Mapping[str, ImageView], steps: int
) -> PatchDropout | None:
    """Return which patches the image encoder sees in a run, after a trial; None if it sees all in every step.

    Args:
        config: configuration of the run.
        method: built from it, on the CPU; left unchanged.
        source: the training data.
        views: settings of each image view of the method.
        steps: length of the run.

    Raises:
        UserError: the encoder cannot leave out patches, or a setting has no effect; the message names both and the fix.
    """
    fewer = config.train.fewer_tokens
    if fewer.patches == 1:
        if fewer.finish != FewerTokensConfig().finish:
            raise UserError(
                f"{_WHERE}finish has no effect without {_WHERE}patches: set that to a share below 1, or leave this out"
            )
        return None
    if not views:
        raise UserError(f"{_WHERE}patches is {fewer.patches:g}, and {config.method.name} has no images: leave it out")
    tower: Tower = method.towers["image"]  # type: ignore[assignment]
    if tower.frozen and (has_fixed_inputs("image", config, source) or "image" in stored_inputs(source)):
        raise UserError(
            f"{_WHERE}patches is {fewer.patches:g}, and the features of the frozen image encoder {_named(tower)} are computed "
            "once, from whole images: leave it out, or set image.freeze to false"
        )
    tokens = _patch_tokens(tower, fewer.patches)
    counts = {}
    for name, view in views.items():
        image_BCHW = two_images(view, config.train.seed)
        counts[name] = _count(name, tokens.count(image_BCHW.shape[2:]), fewer.patches)
        _try_view(name, tower, image_BCHW, counts[name])
    finish = max(1, round(fewer.finish * steps)) if fewer.finish else 0
    return PatchDropout(counts, steps - finish) if finish < steps else None


def first_patches(image_BCHW: Tensor, count: PatchCount) -> ImagePatches:
    """Return images of which an encoder sees the first patches, as many as in training."""
    kept_BK = torch.arange(count.kept, device=image_BCHW.device).repeat(len(image_BCHW), 1)
    return ImagePatches(image_BCHW, kept_BK, count.all)


def _patch_tokens(tower: Tower, share: float) -> PatchTokens:
    encoder: Any = tower.encoder
    try:
        found: PatchTokens | None = encoder.patch_tokens()
    except UserError as error:
        raise UserError(f"{_WHERE}patches does not go with the image encoder {_named(tower)}: {error}") from None
    if found is None:
        raise UserError(
            f"{_WHERE}patches is {share:g}, and the image encoder {_named(tower)} has no patches that it could do without: set "
            "it to 1, or take a vision transformer of open_clip, timm, torchvision or transformers"
        )
    return found


def _count(view: str, patches: int, share: float) -> PatchCount:
    kept = max(1, round(share * patches))
    if kept >= patches:
        raise UserError(
            f"{_WHERE}patches is {share:g}, which of the {patches} patches of the view {view!r} are all: set a smaller share"
        )
    return PatchCount(kept, patches)


@torch.random.fork_rng(devices=[])
@torch.no_grad()
def _try_view(name: str, tower: Tower, image_BCHW: Tensor, count: PatchCount) -> None:
    modes = {module: module.training for module in tower.modules()}
    tower.eval()
    try:
        tower(first_patches(image_BCHW, count), unit=False)
    except Exception as error:  # other libraries raise various errors
        raise UserError(
            f"view {name!r}: the image encoder {_named(tower)} cannot take {count.kept} of {count.all} patches "
            f"({' '.join(first_line(error).split())}): set {_WHERE}patches to 1"
        ) from error
    for module, mode in modes.items():
        module.training = mode


def _named(tower: Tower) -> str:
    """Name an encoder, and the model of its library."""
    args: Mapping[str, Any] = {} if tower.spec is None else tower.spec.encoder_args
    model = args.get("name") or args.get("arch") or (args.get("config") or {}).get("model_type")
    return f"{tower.encoder_name} ({model})" if model else tower.encoder_name
