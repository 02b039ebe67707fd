"""The built-in towers: shapes, independence of padding and of neighbors, and a rebuild from their own arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmcl.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.encoders.small_text import SmallText
from mmcl.encoders.tower import Encoder, ImageEncoder
from mmcl.errors import UserError
from mmcl.types import Tokens

IMAGE_ARGS: dict[str, list[dict[str, Any]]] = {
    "small_cnn": [{}, {"image_size": 20, "channels": 3, "feature_dim": 7}],
    "strided_cnn": [{}, {"image_size": 19, "channels": 1, "widths": [4, 8], "blocks": [0, 2], "kernel": 3, "feature_dim": 9}],
}


@pytest.mark.parametrize(("name", "args"), [(name, args) for name, several in IMAGE_ARGS.items() for args in several])
def test_image_tower_shapes_and_rebuild(name: str, args: dict[str, Any]) -> None:
    encoder: ImageEncoder = IMAGE_ENCODERS.build(name, args)
    picture = encoder.preprocess
    images = torch.rand(5, picture.channels, picture.height, picture.width)
    encoder.eval()
    features = encoder(images)
    assert features.shape == (5, encoder.feature_dim)
    # In evaluation mode no image depends on its neighbors.
    torch.testing.assert_close(encoder(images[2:3]), features[2:3], rtol=1e-4, atol=1e-5)
    assert rebuilt(IMAGE_ENCODERS.build(name, encoder.rebuild_args), encoder)(images).equal(features)


def rebuilt(copy: Encoder, encoder: Encoder) -> Encoder:
    copy.load_state_dict(encoder.state_dict())
    return copy.eval()


def test_stages_and_blocks_must_match() -> None:
    with pytest.raises(UserError, match="one entry for each stage"):
        IMAGE_ENCODERS.build("strided_cnn", {"widths": [8, 8], "blocks": [0]})


@pytest.mark.parametrize("layers", [1, 3])
def test_padding_never_changes_a_text(layers: int) -> None:
    encoder = SmallText(width=32, layers=layers).eval()
    texts = ["cat", "a see-no-evil monkey on a red car"]
    together = encoder(encoder.tokenizer(texts))
    alone = torch.cat([encoder(encoder.tokenizer(text)) for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    tokens = encoder.tokenizer(texts)
    extra = 77 - tokens.ids.shape[1]
    padded = Tokens(torch.nn.functional.pad(tokens.ids, (0, extra)), torch.nn.functional.pad(tokens.mask, (0, extra)))
    torch.testing.assert_close(encoder(padded), together, rtol=1e-5, atol=1e-5)


def test_word_order_matters() -> None:
    encoder = SmallText(width=32).eval()
    first, second = encoder(encoder.tokenizer(["dog bites man", "man bites dog"]))
    assert not torch.allclose(first, second, atol=1e-3)


def test_text_tower_rebuild() -> None:
    encoder = SmallText(width=16, heads=2, context_length=20, dropout=0.3).eval()
    copy = rebuilt(TEXT_ENCODERS.build("small_text", encoder.rebuild_args, encoder.tokenizer), encoder)
    tokens = encoder.tokenizer(["a cat", "two dogs"])
    assert copy(tokens).equal(encoder(tokens))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match="multiple of 4"):
        SmallText(width=30)
