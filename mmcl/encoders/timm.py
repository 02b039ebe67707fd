"""Image backbones of timm, without their classifiers. Only this file imports timm."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import timm
from huggingface_hub.errors import EntryNotFoundError
from timm.layers import to_2tuple
from timm.layers.format import Format
from timm.models._hub import download_from_hf, load_model_config_from_hf, load_model_config_from_path
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mmcl.encoders.patches import PatchTokens
from mmcl.encoders.tower import ImageEncoder, PixelNorm, say_preprocess
from mmcl.errors import UserError, unknown_name
from mmcl.files.hub import hub_errors, is_reachable, not_found, offline_if_unreachable
from mmcl.files.untrusted import load_into, read_tensors, reason
from mmcl.logging import get_logger, note
from mmcl.preprocess import Preprocess

logger = get_logger(__name__)

_PLACES = ("local-dir:", "hf-hub:")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SHOWN = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


class TimmEncoder(ImageEncoder):
    """A timm model up to its pooled features: [B, C, H, W] to [B, F].

    Args:
        name: name in timm, e.g. "resnet50" or "vit_base_patch16_224.augreg_in21k"; or "local-dir:FOLDER" or "hf-hub:ID", a
            folder or repository in timm's format.
        pretrained: true downloads the released weights; a path loads a state dict of this `image_size`; false uses random
            weights.
        in_chans: 1 (gray), 3 (RGB), or the number of channels of the input arrays; timm sums or repeats released RGB weights.
        image_size: side in pixels, or height and width; None uses the model's own.
        preprocess: fields of `Preprocess` that override timm's for this model.
        model_args: further arguments of `timm.create_model`, e.g. {"drop_path_rate": 0.1}.
        pretrained_cfg: overrides for timm's description of the weights, such as mean and std.
    """

    test_args: ClassVar[Mapping[str, Any]] = {"name": "test_vit"}

    def __init__(
        self,
        *,
        name: str,
        pretrained: bool | str = False,
        in_chans: int = 3,
        image_size: int | Sequence[int] | None = None,
        model_args: dict[str, Any] | None = None,
        preprocess: dict[str, Any] | None = None,
        pretrained_cfg: dict[str, Any] | None = None,
    ):
        super().__init__()
        place, given = name, pretrained
        if name.startswith(_PLACES):
            name, model_args, pretrained_cfg = _read_place(name, model_args)
            pretrained = _weights_of_place(place) if pretrained is True else pretrained
        image_size = (preprocess or {}).get("size", image_size)
        self.model = _create(
            name,
            pretrained is True,
            {"in_chans": in_chans, **(model_args or {}), "num_classes": 0, "pretrained_cfg_overlay": pretrained_cfg},
        )
        if image_size is not None and hasattr(self.model, "set_input_size"):
            self.model.set_input_size(img_size=to_2tuple(image_size))  # resamples the position embeddings
        if isinstance(pretrained, str):
            _load(self.model, pretrained)
        self.preprocess = _preprocess(self.model, in_chans, image_size).changed(preprocess)
        _check_patches(self.model, self.preprocess, name)
        if isinstance(given, str) and not preprocess:
            say_preprocess(given, self.preprocess)
        self.norm = PixelNorm(self.preprocess)
        self.feature_dim = int(self.model.num_features)
        self.rebuild_args = {
            "name": name,
            "in_chans": in_chans,
            "image_size": image_size,
            "model_args": model_args,
            "preprocess": preprocess,
            "pretrained_cfg": pretrained_cfg,
        }

    def forward(self, image_BCHW: Tensor) -> Tensor:
        with at_size(self.model, (image_BCHW.shape[2], image_BCHW.shape[3])):
            feature_BF: Tensor = self.model(self.norm(image_BCHW))
        return feature_BF

    def patch_tokens(self) -> PatchTokens | None:
        return patch_tokens(self.model)


class _AllPatches(nn.Module):
    """Takes the place of timm's patch dropout, and drops none."""

    def forward(self, token_BLF: Tensor) -> tuple[Tensor, None]:
        return token_BLF, None


@contextmanager
def at_size(model: Any, size: tuple[int, int]) -> Iterator[None]:
    """Context in which a vision transformer of timm takes images of a height and width, as if it was built for any size
    (`dynamic_img_size`): its positions are resampled, and its parameters stay those of its own size."""
    is_transformer = isinstance(model, VisionTransformer | Eva) and not model.dynamic_img_size
    if not is_transformer or model.patch_embed.img_size in (None, size):
        yield
        return
    embed, rope = model.patch_embed, getattr(model, "rope", None)
    changes: list[tuple[Any, dict[str, Any]]] = [
        (model, {"dynamic_img_size": True}),
        (embed, {"strict_img_size": False, "flatten": False, "output_fmt": Format.NHWC}),
    ]
    if rope is not None and not any(True for _ in rope.parameters()):  # it may have kept those of one size
        rope = copy.deepcopy(rope)
        rope.update_feat_shape([size[0] // embed.patch_size[0], size[1] // embed.patch_size[1]])
        changes.append((model, {"rope": rope}))
    before = [(part, {name: getattr(part, name) for name in values}) for part, values in changes]
    try:
        _set(changes)
        yield
    finally:
        _set(before)


def _set(attributes: Sequence[tuple[Any, Mapping[str, Any]]]) -> None:
    for part, values in attributes:
        for name, value in values.items():
            setattr(part, name, value)


def patch_tokens(model: Any) -> PatchTokens | None:
    """Return where a timm model has the tokens of patches, see `ImageEncoder.patch_tokens`.

    Raises:
        UserError: it has a patch dropout of its own.
    """
    if not isinstance(model, VisionTransformer | Eva) or getattr(model.patch_embed, "dynamic_img_pad", False):
        return None
    if isinstance(model, Eva) and model.patch_drop is None:
        model.patch_drop = _AllPatches()  # Eva's rotary positions need the numbers of the patches that are there
    if not isinstance(model.patch_drop, nn.Identity | _AllPatches):
        raise UserError("it has a patch dropout of its own, patch_drop_rate: remove that")
    height, width = to_2tuple(model.patch_embed.feat_ratio(as_scalar=False))
    return PatchTokens(model.patch_drop, model.num_prefix_tokens, (height, width))


def _read_place(place: str, model_args: dict[str, Any] | None) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the architecture, its arguments and its input settings from the config.json of a folder or repository."""
    scheme, _, name = place.partition(":")
    with hub_errors(name):
        read = load_model_config_from_path if scheme == "local-dir" else load_model_config_from_hf
        cfg, architecture, args = read(name)
    return architecture, {**args, **(model_args or {})}, {key: cfg[key] for key in _SHOWN if cfg.get(key) is not None}


def _weights_of_place(place: str) -> str:
    scheme, _, name = place.partition(":")
    if scheme == "local-dir":
        found = [str(file) for file in (Path(name, weights) for weights in _WEIGHTS) if file.is_file()]
        if not found:
            raise UserError(f"{name}: has no weights ({' or '.join(_WEIGHTS)}); copy them in")
        return found[0]
    with hub_errors(name):
        with suppress(EntryNotFoundError):
            safetensors: str = download_from_hf(name, _WEIGHTS[0])
            return safetensors
        pickled: str = download_from_hf(name, _WEIGHTS[1])
        return pickled


def _create(name: str, pretrained: bool, args: dict[str, Any]) -> Any:
    if not timm.is_model(name):
        raise unknown_name("timm model", name, timm.list_models())
    try:
        if not pretrained:
            return timm.create_model(name, **args)
        with offline_if_unreachable():
            return timm.create_model(name, pretrained=True, **args)
    except Exception as error:  # from the hub client, the network, or any model's constructor
        if not pretrained:
            raise UserError(f"timm {name} cannot be built: {reason(error)}; see in_chans and model_args") from None
        if isinstance(error, OSError) and not is_reachable():
            raise not_found(f"timm:{name}") from None
        fix = "check the network, or give the path of a state dict as pretrained"
        raise UserError(f"timm {name} cannot be loaded: {reason(error)}; {fix}") from None


def _load(model: Any, path: str) -> None:
    """Load a state dict saved with or without the classifier."""
    classifier = model.pretrained_cfg.get("classifier", ())
    prefixes = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    own = model.state_dict()
    found = read_tensors(path, names=own)
    tensors = {name: t for name, t in found.items() if name in own or not name.startswith(prefixes)}
    resample_positions(model, tensors)
    load_into(model, tensors, where=path)
    for name, tensor in tensors.items():
        if tensor.shape != found[name].shape:
            note(logger, f"{path}: {name} is resampled from {list(found[name].shape)} to {list(tensor.shape)}")


def resample_positions(model: Any, tensors: dict[str, Tensor], prefix: str = "") -> None:
    """Resample a vision transformer's position embeddings to the model's number of patches, in place."""
    name, own = f"{prefix}pos_embed", getattr(model, "pos_embed", None)
    if own is None or name not in tensors or tensors[name].ndim != 3 or tensors[name].shape == own.shape:
        return
    extra = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
    with suppress(RuntimeError):  # the patches are not a square: kept, and refused with their shape
        tensors[name] = timm.layers.resample_abs_pos_embed(
            tensors[name], new_size=model.patch_embed.grid_size, num_prefix_tokens=extra
        )


def _check_patches(model: Any, preprocess: Preprocess, name: str) -> None:
    """Raise UserError for an image size that the model cannot process."""
    embed = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if getattr(embed, "strict_img_size", True) or getattr(embed, "dynamic_img_pad", False) or not isinstance(patch, tuple):
        return
    if preprocess.height % patch[0] or preprocess.width % patch[1]:
        size, patches = f"{preprocess.height} x {preprocess.width}", " x ".join(map(str, patch))
        raise UserError(f"timm {name}: image size {size} must be a multiple of its patches of {patches}")


def _preprocess(model: Any, channels: int, image_size: int | Sequence[int] | None) -> Preprocess:
    """Return the preprocessing that `timm.data.create_transform` applies in evaluation with the model's settings."""
    data = timm.data.resolve_model_data_config(model)
    height, width = data["input_size"][-2:]
    size = (height, width) if image_size is None else to_2tuple(image_size)
    mean, std = data["mean"], data["std"]
    if len(mean) != channels:
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    mode = data["crop_mode"]
    return Preprocess(
        size=size,
        channels=channels,
        mean=tuple(mean),
        std=tuple(std),
        interpolation=data["interpolation"],
        resize="squash" if mode == "squash" else "pad" if mode == "border" else "shortest",
        resize_size=tuple(math.floor(side / data["crop_pct"]) for side in size),
        fill=tuple(round(255 * value) for value in mean) if mode == "border" else 0,
    )
