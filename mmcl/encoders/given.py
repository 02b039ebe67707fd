"""Encoders passed as modules from Python instead of being built by name: `mmcl.train(config, towers={"image": net})`.

They are registered as "custom". Building one copies the given module, so it can be built again, for example for the untrained
model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from mmcl.encoders.patches import PatchTokens
from mmcl.encoders.tokenizers import Tokenizer, clip_bpe
from mmcl.encoders.tower import GIVEN, ImageEncoder, TextEncoder
from mmcl.errors import UserError
from mmcl.preprocess import Preprocess, as_size
from mmcl.types import Tokens

_MODULES: ContextVar[Mapping[str, nn.Module] | None] = ContextVar("given modules", default=None)


@contextmanager
def given_encoders(towers: Mapping[str, nn.Module] | None) -> Iterator[None]:
    """Context in which the encoder "custom" of a modality is a copy of the given module.

    Raises:
        UserError: a name is neither image nor text, or a value is not a module.
    """
    for name, module in (towers or {}).items():
        if name not in ("image", "text"):
            raise UserError(f"towers: {name!r} is neither 'image' nor 'text'")
        if not isinstance(module, nn.Module):
            raise UserError(f"towers: the {name} encoder is a {type(module).__name__}; give a torch.nn.Module")
    token = _MODULES.set(dict(towers or {}))
    try:
        yield
    finally:
        _MODULES.reset(token)


class GivenImageEncoder(ImageEncoder):
    """A module from pixels, float32 [B, C, H, W] in [0, 1], to features [B, F]; it normalizes the pixels itself.

    Args:
        image_size: side of its input images in pixels, or height and width; not needed for an `ImageEncoder`.
        channels: 1 (gray), 3 (RGB), or the number of channels of the input arrays.

    Raises:
        UserError: no module was given, its image size is unknown, or its output does not have that shape.
    """

    def __init__(self, *, image_size: int | Sequence[int] | None = None, channels: int = 3):
        super().__init__()
        self.module = _copy_of("image")
        if isinstance(self.module, ImageEncoder):
            self.preprocess = self.module.preprocess
        elif image_size is None:
            raise UserError("the image encoder given does not say which images it takes: set image.encoder.args.image_size")
        else:
            self.preprocess = Preprocess(size=as_size(image_size), channels=channels)
        self.rebuild_args = {"image_size": self.preprocess.size, "channels": self.preprocess.channels}
        shape = (2, self.preprocess.channels, self.preprocess.height, self.preprocess.width)
        self.feature_dim = _width("image", self.module, torch.zeros(shape))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        feature_BF: Tensor = self.module(image_BCHW)
        return feature_BF

    def patch_tokens(self) -> PatchTokens | None:
        return self.module.patch_tokens() if isinstance(self.module, ImageEncoder) else None


class GivenTextEncoder(TextEncoder):
    """A module from `Tokens` to features [B, F]. Padding must not change the features.

    Args:
        tokenizer: splits texts into tokens; None uses the module's tokenizer, or else CLIP's vocabulary.
        context_length: longest text in tokens, for CLIP's vocabulary.

    Raises:
        UserError: no module was given, or its output does not have that shape.
    """

    def __init__(self, tokenizer: Tokenizer | None = None, *, context_length: int = 77):
        super().__init__()
        self.module = _copy_of("text")
        own = getattr(self.module, "tokenizer", None)
        self.tokenizer = tokenizer or own or clip_bpe(context_length=context_length)
        self.rebuild_args = {"context_length": self.tokenizer.context_length}
        self.feature_dim = _width("text", self.module, self.tokenizer(["a", "two words"]))

    def forward(self, tokens: Tokens) -> Tensor:
        feature_BF: Tensor = self.module(tokens)
        return feature_BF


def _copy_of(modality: str) -> nn.Module:
    module = (_MODULES.get() or {}).get(modality)
    if module is None:
        raise UserError(
            f"the {modality} encoder '{GIVEN}' is a module from Python: give it to mmcl.train or mmcl.load_model as "
            f"towers={{'{modality}': MODULE}}"
        )
    return copy.deepcopy(module).cpu()


def _width(modality: str, module: nn.Module, inputs: Tensor | Tokens) -> int:
    """Return F, the width of the features [2, F] that a module outputs for two inputs."""
    training = [part for part in module.modules() if part.training]
    with torch.no_grad():
        features = module.eval()(inputs)
    for part in training:
        part.training = True
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2 or not features.is_floating_point():
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"the {modality} encoder given makes {shape} of a batch of 2; it must make features [2, F]")
    return features.shape[1]
