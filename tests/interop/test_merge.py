"""Means of weights, against arithmetic in numpy and batch norm's own statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmcl.data.sample import Sample
from mmcl.data.source import SampleList
from mmcl.encoders.tokenizers import Tokenizer
from mmcl.encoders.tower import TowerSpec, build_tower
from mmcl.errors import UserError
from mmcl.interop.merge import merge
from mmcl.interop.model import Model
from tests.interop.test_model import make_towers

TEXTS = ["a cat", "the red dog on a hill", ""]


class Pairs(SampleList):
    fingerprint = "pairs"

    def __init__(self, count: int):
        generator = np.random.default_rng(5)
        self._samples = [
            Sample(str(i), Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)), captions=(f"number {i}",))
            for i in range(count)
        ]


def _towers(*, head: str = "linear", wide: bool = False) -> nn.ModuleDict:
    """With batch norm in the image tower."""
    head_args = {} if head == "none" else {"embed_dim": 8}
    args = {"image_size": 32, "widths": [4, 8 if wide else 6], "blocks": [0, 0], "feature_dim": 16}
    image = TowerSpec(modality="image", encoder="strided_cnn", encoder_args=args, head=head, head_args=head_args)
    return nn.ModuleDict({"image": build_tower(image), "text": make_towers(head=head)["text"]})


def _trained(seed: int, *, scale: float | None = 10.0, bias: float | None = None, statistics: bool = False) -> Model:
    """A model that differs from the others in every weight, and in the statistics of batch norm only on request."""
    towers = _towers()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in towers.state_dict().items():
        if tensor.is_floating_point() and (statistics or "running" not in name):
            tensor.add_(torch.rand(tensor.shape, generator=generator))
    return Model(towers, logit_scale=scale, logit_bias=bias, device="cpu")


@pytest.mark.parametrize("weights", [(0.25, 0.75), (0.5, 0.3, 0.2), (1.5, -0.5)])
def test_every_tensor_is_the_weighted_mean(weights: Sequence[float]) -> None:
    models = [_trained(seed) for seed in range(len(weights))]
    merged = merge(models, weights).towers.state_dict()
    for name, tensor in merged.items():
        wide = [model.towers.state_dict()[name].numpy().astype(np.float64) for model in models]
        mean = sum(w * one for w, one in zip(weights, wide, strict=True))
        np.testing.assert_allclose(tensor.numpy(), mean, rtol=2e-7, atol=1e-12, err_msg=name)


def test_equal_weights_are_the_default() -> None:
    models = [_trained(seed) for seed in range(3)]
    assert merge(models).fingerprint == merge(models, [1 / 3] * 3).fingerprint


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_at_an_end_it_is_the_model_itself(share: float) -> None:
    models = [_trained(0, scale=3.7, bias=-1.3, statistics=True), _trained(1, scale=21.9, bias=-7.1, statistics=True)]
    own, merged = models[int(share)], merge(models, [1 - share, share])
    assert (merged.fingerprint, merged.logit_scale, merged.logit_bias) == (own.fingerprint, own.logit_scale, own.logit_bias)


def test_equal_models_stay_what_they_are() -> None:
    model = _trained(0, scale=3.7)
    merged = merge([model] * 3, [0.3, 0.3, 0.4])
    assert (merged.fingerprint, merged.logit_scale) == (model.fingerprint, model.logit_scale)


def test_the_models_are_left_alone() -> None:
    models = [_trained(0), _trained(1)]
    before = [copy.deepcopy(model.towers.state_dict()) for model in models]
    merge(models)
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.towers.state_dict().items())


def test_the_temperature_is_averaged_in_the_log_domain() -> None:
    merged = merge([_trained(0, scale=4.0, bias=-2.0), _trained(1, scale=16.0, bias=-10.0)])
    assert merged.logit_scale == pytest.approx(8.0, rel=1e-12)
    assert merged.logit_bias == pytest.approx(-6.0, rel=1e-12)


def _with_preprocessing(model: Model) -> Model:
    model.towers["image"].encoder.preprocess = replace(model.preprocess, mean=(0.1, 0.2, 0.3))  # type: ignore[union-attr]
    return model


def _with_tokenizer(model: Model) -> Model:
    encoder: Any = model.towers["text"].encoder
    encoder.tokenizer = Tokenizer.from_json({**encoder.tokenizer.to_json(), "context_length": 5})
    return model


OTHERS: dict[str, Callable[[], Model]] = {
    "head of the image tower": lambda: Model(_towers(head="none"), logit_scale=10.0, device="cpu"),
    "towers: image, text and image": lambda: Model(
        nn.ModuleDict({"image": _towers()["image"]}), logit_scale=10.0, device="cpu"
    ),
    r"temperature \(one has none\)": lambda: _trained(1, scale=None),
    r"bias of the logits \(one has none\)": lambda: _trained(1, bias=-10.0),
    "output: projection and features": lambda: Model(_towers(), logit_scale=10.0, embedding="features", device="cpu"),
    "preprocessing of the images": lambda: _with_preprocessing(_trained(1)),
    "tokenizer": lambda: _with_tokenizer(_trained(1)),
    "encoder of the image tower: strided_cnn and small_cnn": lambda: Model(make_towers(), logit_scale=10.0, device="cpu"),
    "weights of the image tower": lambda: Model(_towers(wide=True), logit_scale=10.0, device="cpu"),
    "classes": lambda: Model(_towers(), logit_scale=10.0, class_names=["a"] * 8, device="cpu"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_models_that_differ_in_more_than_weights_are_refused(what: str) -> None:
    with pytest.raises(UserError, match=f"models 1 and 3 differ in their {what}"):
        merge([_trained(0), _trained(1), OTHERS[what]()])


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ((0.5, 0.6), "the weights 0.5, 0.6 do not sum to 1"),
        ((float("nan"), 1.0), "the weights nan, 1 do not sum to 1"),
        ((float("inf"), -float("inf")), "do not sum to 1"),
        ((1.0,), "there are 1 weights for 2 models"),
    ],
)
def test_wrong_weights(weights: Sequence[float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        merge([_trained(0), _trained(1)], weights)


def test_one_model_is_not_merged() -> None:
    with pytest.raises(UserError, match="two or more models, not 1"):
        merge([_trained(0)])


def test_statistics_that_differ_are_averaged_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    merge([_trained(0), _trained(1)])
    assert not caplog.records
    merge([_trained(0, statistics=True), _trained(1, statistics=True)])
    assert "statistics of batch norm were averaged" in caplog.text


@pytest.mark.parametrize("count", [2, 70, 257])
def test_statistics_are_those_of_the_merged_weights(count: int) -> None:
    """One or two batches, of equal size but for one row, against one pass over all images."""
    source = Pairs(count)
    models = [_trained(0, statistics=True), _trained(1, statistics=True)]
    merged = merge(models, statistics=source)
    whole = copy.deepcopy(merged.towers["image"]).train()
    layers = [one for one in whole.modules() if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert layers
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
    size = -(-count // -(-count // 256))
    pixels = torch.from_numpy(np.stack([np.asarray(sample.image) for sample in source._samples])).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        for batch in pixels.split(size):
            whole(batch)
    for name, tensor in merged.towers["image"].state_dict().items():
        torch.testing.assert_close(tensor, whole.state_dict()[name], rtol=1e-5, atol=1e-6)
    assert not any(module.training for module in merged.towers.modules())


def test_statistics_need_two_rows() -> None:
    with pytest.raises(UserError, match="two or more images and captions, but there are 1"):
        merge([_trained(0, statistics=True), _trained(1, statistics=True)], statistics=Pairs(1))
