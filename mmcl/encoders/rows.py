"""Stored rows of numbers in place of an encoder's features, for models whose heads alone are there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from mmcl.encoders.tokenizers import Tokenizer, clip_bpe
from mmcl.encoders.tower import Encoder, ImageEncoder, TextEncoder
from mmcl.errors import UserError
from mmcl.preprocess import Preprocess
from mmcl.types import Tokens

ROWS = "rows"
"""Name of these encoders."""


def _described(encoder: Encoder, modality: str, width: int | None, written_by: str) -> None:
    if width is None or width < 1:
        raise UserError(f"the {modality} encoder '{ROWS}' needs the width of its rows: set {modality}.encoder.args.width")
    encoder.feature_dim, encoder.rows_of = width, written_by
    encoder.rebuild_args = {"width": width, "written_by": written_by}


def _refused(modality: str, width: int) -> UserError:
    return UserError(
        f"this model takes stored rows of {width} numbers in place of {modality}s, as the source `embeddings` has them; for a "
        f"model that encodes {modality}s, train with {modality}.encoder embeddings_of and the model that wrote the rows"
    )


class RowsOfImages(ImageEncoder):
    """Stored rows of another model in place of images; such a model encodes no images.

    Args:
        width: numbers of a row; in a training run, by default those of its data.
        written_by: fingerprint of the model that wrote the rows, which others are compared with; "" for any. A training run
            takes it from its data.

    Raises:
        UserError: the width is not given.
    """

    encodes = False
    test_args: ClassVar[Mapping[str, Any]] = {"width": 4}

    def __init__(self, *, width: int | None = None, written_by: str = ""):
        super().__init__()
        self.preprocess = Preprocess(size=1)
        _described(self, "image", width, written_by)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        raise _refused("image", self.feature_dim)


class RowsOfTexts(TextEncoder):
    """Stored rows of another model in place of texts; such a model encodes no texts.

    Args:
        tokenizer: not used.
        width, written_by: as for images.

    Raises:
        UserError: the width is not given.
    """

    encodes = False
    test_args: ClassVar[Mapping[str, Any]] = {"width": 4}

    def __init__(self, tokenizer: Tokenizer | None = None, *, width: int | None = None, written_by: str = ""):
        super().__init__()
        self.tokenizer = tokenizer or clip_bpe(context_length=77)
        _described(self, "text", width, written_by)

    def forward(self, tokens: Tokens) -> Tensor:
        raise _refused("text", self.feature_dim)
