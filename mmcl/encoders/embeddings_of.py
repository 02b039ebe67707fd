"""The embeddings of a whole tower of another model, head included, as features for a new head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Literal

from torch import Tensor

from mmcl.encoders.patches import PatchTokens
from mmcl.encoders.tokenizers import Tokenizer
from mmcl.encoders.tower import ImageEncoder, TextEncoder, Tower, TowerSpec, build_tower
from mmcl.errors import UserError
from mmcl.types import Tokens

EMBEDDINGS_OF = "embeddings_of"
"""Name of these encoders."""
_KEYS = {"encoder", "encoder_args", "head", "head_args"}


class EmbeddedImages(ImageEncoder):
    """The embeddings of another model's images, head included and of unit length, as features for a new head.

    Args:
        model: the model, as for `mmcl.load_model`: a run, open_clip:ARCH/TAG, hf:ID, timm:NAME.
        tower: the image tower itself, or how it is built, as saved models say in place of `model`.
        written_by: fingerprint of the model, whose stored embeddings may stand for images; None lets none do so.

    Raises:
        UserError: no tower is given, or it cannot be built.
    """

    test_args: ClassVar[Mapping[str, Any]] = {"tower": {"encoder": "small_cnn", "encoder_args": {"image_size": 8}}}

    def __init__(
        self, *, model: str | None = None, tower: Tower | Mapping[str, Any] | None = None, written_by: str | None = None
    ):
        super().__init__()
        self.tower = _built("image", model, tower)
        encoder: Any = self.tower.encoder
        self.preprocess = encoder.preprocess
        self.feature_dim, self.rows_of = self.tower.embed_dim, written_by
        self.rebuild_args = _rebuild_args(self.tower, written_by)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        embedding_BD: Tensor = self.tower(image_BCHW)
        return embedding_BD

    def patch_tokens(self) -> PatchTokens | None:
        encoder: Any = self.tower.encoder
        found: PatchTokens | None = encoder.patch_tokens()
        return found


class EmbeddedTexts(TextEncoder):
    """The embeddings of another model's texts, head included and of unit length, as features for a new head.

    Args:
        tokenizer: that of the tower.
        model, tower, written_by: as for images.

    Raises:
        UserError: no tower is given, or it cannot be built.
    """

    test_args: ClassVar[Mapping[str, Any]] = {"tower": {"encoder": "small_text", "encoder_args": {"width": 16}}}

    def __init__(
        self,
        tokenizer: Tokenizer | None = None,
        *,
        model: str | None = None,
        tower: Tower | Mapping[str, Any] | None = None,
        written_by: str | None = None,
    ):
        super().__init__()
        self.tower = _built("text", model, tower, tokenizer)
        encoder: Any = self.tower.encoder
        self.tokenizer = encoder.tokenizer
        self.feature_dim, self.rows_of = self.tower.embed_dim, written_by
        self.rebuild_args = _rebuild_args(self.tower, written_by)

    def forward(self, tokens: Tokens) -> Tensor:
        embedding_BD: Tensor = self.tower(tokens)
        return embedding_BD


def _built(
    modality: Literal["image", "text"],
    model: str | None,
    tower: Tower | Mapping[str, Any] | None,
    tokenizer: Tokenizer | None = None,
) -> Tower:
    if isinstance(tower, Tower):
        return tower
    if model is not None or tower is None:
        raise UserError(f"the {modality} encoder '{EMBEDDINGS_OF}' needs a model: set {modality}.encoder.args.model of a run")
    if not isinstance(tower, Mapping) or not {"encoder"} <= {*tower} <= _KEYS:
        raise UserError(f"{EMBEDDINGS_OF}: tower is {tower!r:.80}; it has the keys {', '.join(sorted(_KEYS))}")
    args = tower.get("encoder_args", {})
    if not isinstance(args, Mapping) or args.get("pretrained"):
        raise UserError(f"{EMBEDDINGS_OF}: encoder_args are a mapping, without released weights (pretrained)")
    return build_tower(TowerSpec(modality=modality, **tower), tokenizer=tokenizer)


def _rebuild_args(tower: Tower, written_by: str | None) -> dict[str, Any]:
    if tower.spec is None:
        raise UserError(f"{EMBEDDINGS_OF}: the tower was made by hand and cannot be rebuilt; build it with build_tower")
    described = {name: value for name, value in asdict(tower.spec).items() if name in _KEYS}
    return {"tower": described, "written_by": written_by}
