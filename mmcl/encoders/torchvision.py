"""Image classifiers of torchvision, without their last layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torchvision
from torch import Tensor, nn

from mmcl.encoders.patches import PatchTokens
from mmcl.encoders.positions import call_at_size
from mmcl.encoders.tower import ImageEncoder, PixelNorm, say_preprocess
from mmcl.errors import UserError, unknown_name
from mmcl.files.untrusted import load_into, read_tensors
from mmcl.preprocess import Preprocess, as_size

_WITH_EXTRA_CLASSIFIERS = ("googlenet", "inception_v3")


class TorchvisionEncoder(ImageEncoder):
    """A torchvision classifier up to the input of its last layer: [B, 3, H, W] to [B, F].

    Args:
        name: name in torchvision, e.g. "resnet18".
        pretrained: true downloads the released weights; a path loads a torchvision state dict; false uses random weights.
        image_size: side in pixels, or height and width; None uses the size of the released weights. Vision transformers (vit_*)
            have positions for this size, which are resampled for every batch of another one.
        small_stem: for ResNets on images of about 32 pixels (CIFAR): replaces the strided 7x7 convolution by a 3x3 one and
            removes the pooling after it (Chen et al., "SimCLR", 2020, appendix B.9).
        preprocess: fields of `Preprocess` that override torchvision's for its released weights.

    Raises:
        UserError: the model does not exist, or does not support `small_stem`.
    """

    test_args: ClassVar[Mapping[str, Any]] = {"name": "mobilenet_v3_small", "image_size": 64}

    def __init__(
        self,
        *,
        name: str,
        pretrained: bool | str = False,
        image_size: int | Sequence[int] | None = None,
        small_stem: bool = False,
        preprocess: dict[str, Any] | None = None,
    ):
        super().__init__()
        names = torchvision.models.list_models(module=torchvision.models, exclude=_WITH_EXTRA_CLASSIFIERS)
        if name not in names:
            raise unknown_name("torchvision model", name, names)
        self.preprocess = _preprocess(name, image_size).changed(preprocess)
        self.norm = PixelNorm(self.preprocess)
        self.model = torchvision.models.get_model(name, weights=None)
        classifier, self.feature_dim = _remove_last_layer(self.model)
        if small_stem:
            _make_stem_small(self.model, name, pretrained=bool(pretrained))
        if pretrained:
            tensors = _released(name) if pretrained is True else read_tensors(pretrained, names=self.model.state_dict())
            kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{classifier}.")}
            load_into(self.model, kept, where=name if pretrained is True else pretrained)
            if isinstance(pretrained, str) and not preprocess:
                say_preprocess(pretrained, self.preprocess)
        self.rebuild_args = {"name": name, "image_size": image_size, "small_stem": small_stem, "preprocess": preprocess}

    def forward(self, image_BCHW: Tensor) -> Tensor:
        pixels_BCHW, own = self.norm(image_BCHW), getattr(self.model, "image_size", None)
        feature_BF: Tensor
        if not isinstance(self.model, torchvision.models.VisionTransformer) or pixels_BCHW.shape[2] == own:
            feature_BF = self.model(pixels_BCHW)
            return feature_BF
        patch, side = self.model.patch_size, own // self.model.patch_size
        self.model.image_size = pixels_BCHW.shape[2]  # which the library compares with the images
        try:
            feature_BF = call_at_size(self.model, "encoder.pos_embedding", (side, side), (patch, patch), pixels_BCHW)
        finally:
            self.model.image_size = own
        return feature_BF

    def patch_tokens(self) -> PatchTokens | None:
        if not isinstance(self.model, torchvision.models.VisionTransformer):
            return None
        return PatchTokens(self.model.encoder.dropout, 1, (self.model.patch_size, self.model.patch_size))


def _remove_last_layer(model: nn.Module) -> tuple[str, int]:
    """Replace the layer that outputs class scores by an identity. Returns its name and the width of its input."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    name, last = layers[-1]
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Identity())
    return name, last.in_features if isinstance(last, nn.Linear) else last.in_channels


def _make_stem_small(model: nn.Module, name: str, *, pretrained: bool) -> None:
    if not isinstance(model, torchvision.models.ResNet):
        raise UserError(f"torchvision {name} is not a ResNet: remove small_stem")
    if pretrained:
        raise UserError(f"torchvision {name}: pretrained weights are those of the large stem; remove small_stem or pretrained")
    model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()


def _released(name: str) -> dict[str, Tensor]:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except OSError as error:
        raise UserError(
            f"torchvision {name}: its weights cannot be downloaded ({error}); check the network, or give the path of a state "
            "dict as pretrained"
        ) from None


def _preprocess(name: str, image_size: int | Sequence[int] | None) -> Preprocess:
    """Return the transform of the released weights, scaled to `image_size` so that it shows the same part of every image."""
    transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    released = Preprocess(
        size=transform.crop_size[0],
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
        resize_size=transform.resize_size[0],
        fill=0,
    )
    return released.at(as_size(image_size)) if image_size else released
