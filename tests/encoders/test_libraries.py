"""Every third-party tower against the library's own output, from files in the library's own format.

One suite over all kinds: equal outputs, rebuilt offline from `rebuild_args`, indifferent to the padding of the batch.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmcl.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.encoders.heads import NoHead
from mmcl.encoders.tower import Encoder, ImageEncoder, TextEncoder, Tower
from mmcl.engine.precision import attention_precision
from mmcl.engine.weight_layout import shard
from mmcl.errors import UserError
from tests.attention import recorded_attention
from tests.distributed.harness import run_processes
from tests.encoders import tiny
from tests.encoders.cases import TEXTS, Case, pixels_of


def _assert_close(ours: Tensor, theirs: Tensor) -> None:
    scale = float(theirs.abs().max())
    assert ours.shape == theirs.shape
    assert scale > 0
    assert float((theirs[0] - theirs[1]).abs().max()) > 1e-3 * scale, "the reference does not tell its inputs apart"
    assert float((ours - theirs).abs().max()) <= 1e-5 * max(scale, 1.0)


@torch.no_grad()
def test_image_features_equal_the_librarys(image_case: Case) -> None:
    encoder = image_case.encoder
    assert isinstance(encoder, ImageEncoder)
    pixels, preprocess = pixels_of(encoder), encoder.preprocess
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    ours = encoder(pixels)
    assert ours.shape == (2, encoder.feature_dim)
    _assert_close(ours, image_case.reference((pixels - mean) / std))


@torch.no_grad()
def test_text_features_equal_the_librarys(text_case: Case) -> None:
    encoder = text_case.encoder
    assert isinstance(encoder, TextEncoder)
    ours = encoder(encoder.tokenizer(TEXTS))
    assert ours.shape == (len(TEXTS), encoder.feature_dim)
    _assert_close(ours, text_case.reference(TEXTS))


@torch.no_grad()
def test_padding_does_not_change_text_features(text_case: Case) -> None:
    encoder = text_case.encoder
    assert isinstance(encoder, TextEncoder)
    together = encoder(encoder.tokenizer(TEXTS))
    alone = torch.cat([encoder(encoder.tokenizer(text)) for text in TEXTS])
    _assert_close(alone, together)


@torch.no_grad()
def test_an_image_encoder_is_rebuilt_offline(image_case: Case) -> None:
    encoder = image_case.encoder
    assert isinstance(encoder, ImageEncoder)
    again = IMAGE_ENCODERS.build(image_case.name, json.loads(json.dumps(encoder.rebuild_args)))
    again.load_state_dict(encoder.state_dict())
    assert again.preprocess == encoder.preprocess
    pixels = pixels_of(encoder)
    torch.testing.assert_close(again.eval()(pixels), encoder(pixels))


@torch.no_grad()
def test_a_text_encoder_is_rebuilt_offline(text_case: Case) -> None:
    encoder = text_case.encoder
    assert isinstance(encoder, TextEncoder)
    again = TEXT_ENCODERS.build(text_case.name, json.loads(json.dumps(encoder.rebuild_args)), encoder.tokenizer)
    again.load_state_dict(encoder.state_dict())
    tokens = encoder.tokenizer(TEXTS)
    torch.testing.assert_close(again.eval()(tokens), encoder(tokens))


def test_every_parameter_gets_a_gradient(text_case: Case) -> None:
    """Parameters that no loss reaches stop distributed training."""
    encoder = text_case.encoder
    assert isinstance(encoder, TextEncoder)
    encoder.zero_grad()
    encoder(encoder.tokenizer(TEXTS)).pow(2).sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


def _types_of_attention(encoder: Encoder, inputs: Any, precision: str) -> set[torch.dtype]:
    exchanged = attention_precision(precision, torch.device("cpu"))
    with recorded_attention() as types, exchanged, torch.autocast("cpu", torch.bfloat16):
        assert encoder(inputs).isfinite().all()
    return types


def _assert_attention_in_float32(encoder: Encoder, inputs: Any) -> None:
    """Under autocast it is in bfloat16 otherwise; networks of convolutions have none."""
    usual = _types_of_attention(encoder, inputs, "fp32")
    assert usual in ({torch.bfloat16}, set())
    assert _types_of_attention(encoder, inputs, "bf16") == ({torch.float32} if usual else set())


def test_an_image_encoder_may_attend_in_float32(image_case: Case) -> None:
    encoder = image_case.encoder
    assert isinstance(encoder, ImageEncoder)
    _assert_attention_in_float32(encoder, pixels_of(encoder))


def test_a_text_encoder_may_attend_in_float32(text_case: Case) -> None:
    encoder = text_case.encoder
    assert isinstance(encoder, TextEncoder)
    _assert_attention_in_float32(encoder, encoder.tokenizer(TEXTS))


def _gradients_when_sharded(rank: int, world: int, encoder: Encoder, inputs: Any) -> dict[str, Tensor]:
    shard(Tower(encoder, NoHead(encoder.feature_dim)), torch.device("cpu"))
    assert any(isinstance(parameter, DTensor) for parameter in encoder.parameters())
    return _gradients(encoder, inputs)


def _gradients(encoder: Encoder, inputs: Any) -> dict[str, Tensor]:
    encoder.zero_grad()
    features = encoder(inputs)
    features.square().mean().backward()
    grads = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    return {
        "features": features.detach(),
        **{name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in grads.items()},
    }


def _assert_same_when_sharded(encoder: Encoder, inputs: Any) -> None:
    """Libraries reach for weights in ways of their own: they must find them although they come and go block by block.

    In float64, against the largest gradient of all: some gradients are rounding alone, as those of the biases of keys, to
    which softmax is invariant.
    """
    expected = _gradients(encoder, inputs)
    tolerance = 1e-9 * max(float(value.abs().max()) for value in expected.values())
    for ours in run_processes(2, _gradients_when_sharded, encoder, inputs):
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            assert value.dtype == torch.float64
            torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=tolerance, msg=name)


@pytest.mark.slow
def test_an_image_encoder_may_be_sharded(image_case: Case) -> None:
    assert isinstance(image_case.encoder, ImageEncoder)
    encoder = copy.deepcopy(image_case.encoder).double()
    _assert_same_when_sharded(encoder, pixels_of(encoder).double())


@pytest.mark.slow
def test_a_text_encoder_may_be_sharded(text_case: Case) -> None:
    assert isinstance(text_case.encoder, TextEncoder)
    encoder = copy.deepcopy(text_case.encoder).double()
    _assert_same_when_sharded(encoder, encoder.tokenizer(TEXTS))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("cls", lambda hidden, mask, ids: hidden[0]),
        ("mean", lambda hidden, mask, ids: hidden[: int(mask.sum())].mean(0)),
        ("last", lambda hidden, mask, ids: hidden[int(mask.sum()) - 1]),
        ("eot", lambda hidden, mask, ids: hidden[ids.tolist().index(3)]),
    ],
)
@torch.no_grad()
def test_pooling_picks_the_right_rows(pooling: str, expected: Callable[..., Tensor], tmp_path: Path) -> None:
    theirs = tiny.transformers_model("bert", tmp_path)
    encoder = TEXT_ENCODERS.build("transformers", {"name": str(tmp_path), "pooling": pooling}).eval()
    tokens = encoder.tokenizer(TEXTS)
    hidden = theirs(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
    rows = [expected(h, m, i) for h, m, i in zip(hidden, tokens.mask, tokens.ids, strict=True)]
    torch.testing.assert_close(encoder(tokens), torch.stack(rows), atol=1e-5, rtol=1e-5)


def test_a_pooler_that_the_checkpoint_lacks_is_not_used(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny.transformers_model("bert", tmp_path)
    weights = tmp_path / "model.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if "pooler" not in k}, weights, metadata={"format": "pt"})
    encoder = TEXT_ENCODERS.build("transformers", {"name": str(tmp_path)})
    assert encoder.pooling == "mean"
    assert not any("pooler" in name for name, _ in encoder.named_parameters())


def test_missing_weights_are_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny.transformers_model("bert", tmp_path)
    weights = tmp_path / "model.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if "layer.1" not in k}, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="weights are missing"):
        TEXT_ENCODERS.build("transformers", {"name": str(tmp_path)})


@pytest.mark.parametrize(
    ("registry", "name", "args", "message"),
    [
        (IMAGE_ENCODERS, "timm", {"name": "resnet5"}, "did you mean"),
        (IMAGE_ENCODERS, "torchvision", {"name": "resnet19"}, "did you mean"),
        (IMAGE_ENCODERS, "open_clip", {"arch": "ViT-B-33"}, "did you mean"),
        (IMAGE_ENCODERS, "open_clip", {}, "either arch"),
        (IMAGE_ENCODERS, "open_clip", {"arch": "ViT-B-32", "pretrained": "nowhere.pt"}, "laion2b_s34b_b79k"),
        (
            IMAGE_ENCODERS,
            "open_clip",
            {"config": {"embed_dim": 8, "vision_cfg": {"depth": 3}}},
            "vision_cfg does not describe a tower",
        ),
        (IMAGE_ENCODERS, "timm", {"name": "test_vit", "pretrained": "nowhere.pt"}, "nowhere.pt: no such file"),
        (IMAGE_ENCODERS, "transformers", {}, "either name"),
        (IMAGE_ENCODERS, "transformers", {"config": {"model_type": "vitt"}, "preprocess": {"size": 8}}, "did you mean"),
        (TEXT_ENCODERS, "transformers", {"config": {"model_type": "bert"}}, "needs a tokenizer"),
    ],
)
def test_bad_arguments_are_one_clear_line(registry: Any, name: str, args: dict[str, Any], message: str) -> None:
    given = (None,) if registry is TEXT_ENCODERS else ()
    with pytest.raises(UserError, match=message) as caught:
        registry.build(name, args, *given)
    assert "\n" not in str(caught.value)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="not of this architecture"):
        IMAGE_ENCODERS.build("timm", {"name": "test_vit", "pretrained": str(tmp_path / "weights.pth")})


def test_a_size_that_patches_do_not_fill_is_one_clear_line(tmp_path: Path) -> None:
    tiny.transformers_model("siglip2", tmp_path)
    given = {"name": str(tmp_path), "preprocess": {"size": [32, 36], "resize": "squash"}}
    with pytest.raises(UserError, match=r"size 32 x 36 .* multiple of its patches of 8"):
        IMAGE_ENCODERS.build("transformers", given)


def test_timm_preprocessing_is_the_models_own() -> None:
    encoder = IMAGE_ENCODERS.build("timm", {"name": "test_vit"})
    data = timm.data.resolve_model_data_config(encoder.model)
    assert encoder.preprocess.mean == data["mean"]
    assert encoder.preprocess.size == data["input_size"][-1]
    assert encoder.preprocess.resize_size == int(data["input_size"][-1] / data["crop_pct"])
    assert encoder.preprocess.interpolation == data["interpolation"]
    gray = IMAGE_ENCODERS.build("timm", {"name": "test_vit", "in_chans": 1}).preprocess
    assert gray.channels == 1
    assert gray.mean == pytest.approx((sum(data["mean"]) / 3,))
