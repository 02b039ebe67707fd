"""Channels-last memory changes where numbers lie, and nothing else but rounding."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmcl.encoders import IMAGE_ENCODERS
from mmcl.encoders.tower import Tower
from mmcl.engine.channels_last import ChannelsLast, check_channels_last, has_convolutions
from mmcl.engine.log import read_log
from mmcl.errors import UserError
from mmcl.runs.run import train
from mmcl.testing.toys import toy_method
from tests.encoders.cases import IMAGES, build_case, pixels_of
from tests.engine.tiny import tiny_config

CONVOLUTIONAL = {"resnet", "test_resnet", "test_convnext", "squeezenet1_1", "shufflenet_v2_x0_5"}
SETTING = ("--train.channels_last", "true", "--train.save_every", "4", "--train.keep_checkpoints", "9")


def is_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def test_a_run_is_resumed_to_the_bit_and_differs_by_rounding(folder: Path, tmp_path: Path) -> None:
    train(tiny_config(folder, tmp_path / "plain"))
    train(tiny_config(folder, tmp_path / "run", *SETTING))
    losses = [[row["loss"] for row in read_log(tmp_path / name / "metrics.jsonl")] for name in ("run", "plain")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    last = tmp_path / "run/checkpoints/step-0000008"
    whole = [load_file(last / f"{name}.safetensors") for name in ("model", "optimizer")]
    shutil.rmtree(last)
    shutil.rmtree(tmp_path / "run/model")
    train(tiny_config(folder, tmp_path / "run", *SETTING, "--resume"))
    for name, expected in zip(("model", "optimizer"), whole, strict=True):
        again = load_file(last / f"{name}.safetensors")
        assert all(torch.equal(again[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize(("library", "kind"), [case for case in IMAGES if case[1] in CONVOLUTIONAL])
def test_encoders_of_every_library(library: str, kind: str, tmp_path: Path) -> None:
    """Features and gradients are the same, names and parameters too, and what the library's layers get is channels-last."""
    encoder = build_case(library, kind, "image", tmp_path).encoder.eval().double()
    tower = Tower(encoder, nn.Identity())
    assert has_convolutions(tower)
    pixels = pixels_of(encoder).double()  # type: ignore[arg-type]

    def features_and_gradients() -> list[Tensor]:
        encoder.zero_grad()
        features = encoder(pixels)
        features.square().sum().backward()
        return [features.detach(), *(p.grad.clone() for p in encoder.parameters() if p.grad is not None)]

    expected, before = features_and_gradients(), list(encoder.parameters())
    layouts: list[bool] = []
    with ChannelsLast(tower):
        for module in encoder.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(lambda module, inputs: layouts.append(is_last(inputs[0])))
        assert any(is_last(parameter) for parameter in encoder.parameters())
        found = features_and_gradients()
    assert sum(layouts) > len(layouts) / 2  # not of one channel, or of one pixel, for which both layouts are the same
    assert all(mine is theirs for mine, theirs in zip(encoder.parameters(), before, strict=True))
    assert all(parameter.is_contiguous() for parameter in encoder.parameters())
    # Some are zero but for rounding, which is on the scale of the others.
    rounding = 16 * torch.finfo(torch.float64).eps * max(float(theirs.abs().max()) for theirs in expected)
    for mine, theirs in zip(found, expected, strict=True):
        own = 1e-9 * float(theirs.abs().max().clamp(min=1))
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=max(own, rounding))


def test_where_it_has_no_effect_it_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no effect, because no encoder has convolutions .* \(ToyEncoder"):
        check_channels_last(toy_method("clip"), fsdp=False)
    transformer = IMAGE_ENCODERS.build("timm", {"name": "test_vit"})
    assert not has_convolutions(Tower(transformer, nn.Identity()))
    with pytest.raises(UserError, match=r"does not work with train\.fsdp"):
        train(tiny_config(folder, tmp_path / "run", *SETTING, "--train.fsdp", "true"))
    assert not (tmp_path / "run").exists()
