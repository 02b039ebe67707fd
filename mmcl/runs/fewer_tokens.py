"""Fewer tokens (`train.fewer_tokens`): what the image encoder of a run sees of each image, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmcl.config import Config, FewerTokensConfig
from mmcl.data.batches.fewer_tokens import FewerTokens, PatchCount
from mmcl.data.batches.views import ImageView
from mmcl.data.source import Source
from mmcl.encoders.patches import PatchTokens
from mmcl.encoders.tower import Tower
from mmcl.errors import UserError, first_line
from mmcl.methods.method import Method
from mmcl.preprocess import Preprocess
from mmcl.runs.checks import two_images
from mmcl.runs.frozen_features import has_fixed_inputs
from mmcl.runs.stored_inputs import stored_inputs
from mmcl.types import ImagePatches

_WHERE = "train.fewer_tokens."


def plan_fewer_tokens(
    config: Config, method: Method, source: Source, views: Mapping[str, ImageView], steps: int
) -> FewerTokens | None:
    """Return what the image encoder sees of each image in a run, after a trial; None if it sees all in every step.

    Args:
        config: configuration of the run.
        method: built from it, on the CPU; left unchanged.
        source: the training data.
        views: settings of each image view of the method.
        steps: length of the run.

    Raises:
        UserError: the encoder cannot take smaller images or leave out patches, or a setting has no effect; the message names
            both and the fix.
    """
    fewer = config.train.fewer_tokens
    given = _given(fewer)
    if not given:
        if fewer.finish != FewerTokensConfig().finish:
            raise UserError(
                f"{_WHERE}finish has no effect without {_WHERE}patches or {_WHERE}image_size: set one of these, or leave it out"
            )
        return None
    if not views:
        raise UserError(f"{given}, and {config.method.name} has no images: leave it out")
    tower: Tower = method.towers["image"]  # type: ignore[assignment]
    if tower.frozen and (has_fixed_inputs("image", config, source) or "image" in stored_inputs(source)):
        raise UserError(
            f"{given}, and the features of the frozen image encoder {_named(tower)} are computed once, from whole images: "
            "leave it out, or set image.freeze to false"
        )
    smaller = _smaller_views(config, tower, source, views) if fewer.image_size is not None else {}
    counts = _patch_counts(config, tower, smaller or views) if fewer.patches < 1 else {}
    finish = max(1, round(fewer.finish * steps)) if fewer.finish else 0
    return FewerTokens(until=steps - finish, steps=steps, views=smaller, counts=counts) if finish < steps else None


def first_patches(image_BCHW: Tensor, count: PatchCount) -> ImagePatches:
    """Return images of which an encoder sees the first patches, as many as in training."""
    kept_BK = torch.arange(count.kept, device=image_BCHW.device).repeat(len(image_BCHW), 1)
    return ImagePatches(image_BCHW, kept_BK, count.all)


def _given(fewer: FewerTokensConfig) -> str:
    """Name the settings that are set, with their values; "" if none is."""
    patches = [f"{_WHERE}patches is {fewer.patches:g}"] if fewer.patches < 1 else []
    size = [_size_given(fewer)] if fewer.image_size is not None else []
    return " and ".join([*patches, *size])


def _size_given(fewer: FewerTokensConfig) -> str:
    return f"{_WHERE}image_size is {fewer.image_size}"


def _smaller_views(config: Config, tower: Tower, source: Source, views: Mapping[str, ImageView]) -> dict[str, ImageView]:
    """Return the views of smaller images; those with a size of their own as they are."""
    given = _size_given(config.train.fewer_tokens)
    own: Any = tower.encoder.preprocess
    if config.teacher is not None:
        raise UserError(f"{given}, and the teacher {config.teacher} would see the smaller images, too: leave it out")
    if isinstance(source[0].image, Tensor):
        raise UserError(f"{given}, and the images of the data are tensors, which are taken as they are: leave it out")
    smaller, seed = own.at(_smaller_size(config, tower)), config.train.seed
    found = {name: _smaller_view(view, smaller, seed) if view.preprocess == own else view for name, view in views.items()}
    changed = {name: view for name, view in found.items() if view.preprocess == smaller}
    if not changed:
        raise UserError(
            f"{given}, and all views have a size of their own, by data.views or an augmentation with `size`: leave it out"
        )
    if own.resize == "none" and any(view.crop is None for view in changed.values()):
        raise UserError(
            f"{given}, and image.preprocess.resize is 'none', which would cut images instead of shrinking them: set that to "
            "'shortest', or leave this out"
        )
    what = f"images of {_shape((smaller.height, smaller.width))}"
    for name, view in changed.items():
        _try_view(name, tower, two_images(view, seed), what, f"set {_WHERE}image_size to null")
    return found


def _smaller_view(view: ImageView, smaller: Preprocess, seed: int) -> ImageView:
    """Return a view of smaller images, or the view as it is if an augmentation gives it a size of its own."""
    found = replace(view, preprocess=smaller)
    return found if two_images(found, seed).shape[2:] == (smaller.height, smaller.width) else view


def _smaller_size(config: Config, tower: Tower) -> tuple[int, int]:
    """Return the height and width of the smaller images, which have the aspect of the encoder's own."""
    given, size = _size_given(config.train.fewer_tokens), config.train.fewer_tokens.image_size
    own: Any = tower.encoder.preprocess
    assert size is not None
    sides, longest = (own.height, own.width), max(own.height, own.width)
    if size >= longest:
        raise UserError(
            f"{given}, and the image encoder {_named(tower)} sees images of {_shape(sides)}: set it to less than {longest}"
        )
    patch = _patch(tower)

    def fits(size: int) -> bool:
        return not any(size * side % (longest * part) for side, part in zip(sides, patch, strict=True))

    if not fits(size):
        fitting = min(filter(fits, range(1, longest)), key=lambda other: abs(other - size), default=None)
        smaller = " x ".join(f"{size * side / longest:g}" for side in sides)
        unit = "pixels" if patch == (1, 1) else f"patches of {_shape(patch)}"
        raise UserError(
            f"{given}, and {smaller} pixels of the image encoder {_named(tower)} are no whole {unit}: "
            f"{'leave it out' if fitting is None else f'set it to {fitting}'}"
        )
    return size * sides[0] // longest, size * sides[1] // longest


def _patch(tower: Tower) -> tuple[int, int]:
    """Return the height and width of an encoder's patches, 1 x 1 if it has none."""
    encoder: Any = tower.encoder
    with suppress(UserError):  # about patches that cannot be left out
        found: PatchTokens | None = encoder.patch_tokens()
        return (1, 1) if found is None else found.patch
    return (1, 1)


def _patch_counts(config: Config, tower: Tower, views: Mapping[str, ImageView]) -> dict[str, PatchCount]:
    share = config.train.fewer_tokens.patches
    tokens, counts = _patch_tokens(tower, share), {}
    for name, view in views.items():
        image_BCHW = two_images(view, config.train.seed)
        count = counts[name] = _count(name, tokens.count(image_BCHW.shape[2:]), share)
        some = first_patches(image_BCHW, count)
        _try_view(name, tower, some, f"{count.kept} of {count.all} patches", f"set {_WHERE}patches to 1")
    return counts


def _patch_tokens(tower: Tower, share: float) -> PatchTokens:
    encoder: Any = tower.encoder
    try:
        found: PatchTokens | None = encoder.patch_tokens()
    except UserError as error:
        raise UserError(f"{_WHERE}patches does not go with the image encoder {_named(tower)}: {error}") from None
    if found is None:
        raise UserError(
            f"{_WHERE}patches is {share:g}, and the image encoder {_named(tower)} has no patches that it could do without: set "
            f"it to 1, set {_WHERE}image_size instead, or take a vision transformer of open_clip, timm, torchvision or "
            "transformers"
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
def _try_view(name: str, tower: Tower, inputs: Tensor | ImagePatches, what: str, fix: str) -> None:
    modes = {module: module.training for module in tower.modules()}
    tower.eval()
    try:
        tower(inputs, unit=False)
    except Exception as error:  # other libraries raise various errors
        reason = " ".join(first_line(error).split())
        raise UserError(f"view {name!r}: the image encoder {_named(tower)} cannot take {what} ({reason}): {fix}") from error
    for module, mode in modes.items():
        module.training = mode


def _shape(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _named(tower: Tower) -> str:
    """Name an encoder, and the model of its library."""
    args: Mapping[str, Any] = {} if tower.spec is None else tower.spec.encoder_args
    model = args.get("name") or args.get("arch") or (args.get("config") or {}).get("model_type")
    return f"{tower.encoder_name} ({model})" if model else tower.encoder_name
