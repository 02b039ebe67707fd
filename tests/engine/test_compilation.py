"""`train.compile`: the same run but for rounding, resumed to the bit, with as few shapes as there are lengths of texts."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import mmcl
from mmcl.config import Config, load_config
from mmcl.encoders.blocks import blocks
from mmcl.encoders.small_text import SmallText
from mmcl.encoders.tower import TextEncoder, Tower
from mmcl.engine.compilation import MULTIPLE, CompiledEncoders, check_compiler, lengthened
from mmcl.engine.log import read_log
from mmcl.errors import UserError
from mmcl.runs.doctor import diagnose
from mmcl.runs.run import train
from mmcl.testing.toys import embed, toy_batch, toy_method
from mmcl.types import Tokens
from tests.encoders.cases import IMAGES, TEXT_MODELS, build_case, inputs_of
from tests.engine.tiny import make_folder
from tests.narrow import of_type

YAML = """
method: {name: momentum_clip, args: {queue: 20}}
image:
  encoder: {name: small_cnn, args: {image_size: 16, channels: 3, feature_dim: 16}}
  head: {name: linear, args: {embed_dim: 16}}
text:
  encoder: {name: small_text, args: {width: 16, layers: 2, heads: 2, dropout: 0.1}}
  head: {name: linear, args: {embed_dim: 16}}
train: {batch_size: 12, steps: 4, log_every: 1, save_every: 2, keep_checkpoints: 9, threads: 1, compile: true}
"""
# The compiler's own, which it hides, unless warnings are errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
CASES = [*(("image", *case) for case in IMAGES), *(("text", *case) for case in TEXT_MODELS)]
STEADY = ("--text.encoder.args.dropout", "0", "--train.steps", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos")


def configured(folder: Path, run_dir: Path, *flags: str) -> Config:
    path = folder.parent / "compiled.yaml"
    path.write_text(YAML)
    return load_config(path, ["--data.train.path", str(folder), "--run_dir", str(run_dir), *flags])


def run(folder: Path, run_dir: Path, *flags: str, backend: object = "aot_eager") -> list[float]:
    """Trains. Returns the losses."""
    torch._dynamo.reset()
    with (
        mock.patch("mmcl.engine.trainer.CompiledEncoders", partial(CompiledEncoders, backend=backend)),
        mock.patch("mmcl.runs.checks.check_compiler"),
    ):
        train(configured(folder, run_dir, *flags))
    return [row["loss"] for row in read_log(run_dir / "metrics.jsonl") if "loss" in row]


def uncompiled(folder: Path, run_dir: Path, *flags: str) -> list[float]:
    """Trains on texts of the same lengths, so that dropout draws the same masks. Returns the losses."""
    with mock.patch.object(TextEncoder, "length_multiple", MULTIPLE):
        return run(folder, run_dir, *flags, "--train.compile", "false")


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run_dir / f"checkpoints/step-{step:07d}/model.safetensors")


def test_a_compiled_run_is_resumed_to_the_bit(folder: Path, tmp_path: Path) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    found = run(folder, tmp_path / "run", backend=counter)
    assert counter.frame_count > 0
    whole = weights(tmp_path / "run", 4)
    shutil.rmtree(tmp_path / "run/checkpoints/step-0000004")
    shutil.rmtree(tmp_path / "run/model")
    assert run(folder, tmp_path / "run", "--resume") == found
    again = weights(tmp_path / "run", 4)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    with pytest.raises(UserError, match=r"train\.compile: True -> False"):
        run(folder, tmp_path / "run", "--resume", "--train.compile", "false")


def test_a_compiled_run_is_the_run_in_pieces_and_with_checkpointed_activations(folder: Path, tmp_path: Path) -> None:
    """With dropout, whose masks are the same for texts of the same lengths."""
    flags = ("--method", "{name: simcse}", "--image", "null", "--train.steps", "2", "--train.micro_batch", "5")
    plain = uncompiled(folder, tmp_path / "plain", *flags)
    found = run(folder, tmp_path / "run", *flags, "--train.checkpoint_activations", "true")
    assert found == pytest.approx(plain, rel=1e-5)
    assert weights(tmp_path / "run", 2).keys() == weights(tmp_path / "plain", 2).keys()
    model = mmcl.load_model(tmp_path / "run")
    assert model.encode_text(["a red square"]).shape == (1, 16)


@pytest.mark.long
@pytest.mark.parametrize("dropout", ["0", "0.2"])
def test_the_default_compiler_takes_the_blocks(folder: Path, tmp_path: Path, dropout: str) -> None:
    """Dropout draws the same masks, in both passes."""
    flags = (*STEADY, "--text.encoder.args.dropout", dropout)
    plain = uncompiled(folder, tmp_path / "plain", *flags)
    assert run(folder, tmp_path / "run", *flags, backend="inductor") == pytest.approx(plain, rel=1e-4)
    pieces = uncompiled(folder, tmp_path / "pieces", *flags, "--train.micro_batch", "5")
    compiled = run(folder, tmp_path / "compiled", *flags, "--train.micro_batch", "5", backend="inductor")
    assert compiled == pytest.approx(pieces, rel=1e-4)


def test_blocks_are_compiled_in_place_for_as_long_as_it_trains() -> None:
    """In the tower and in its teacher; an encoder without blocks as a whole."""
    method = toy_method("byol")
    batch = toy_batch(method, 6)
    names = [name for name, _ in method.named_parameters()]
    towers = [part for part in method.modules() if isinstance(part, Tower)]
    parts = [part for tower in towers for part in blocks(tower.encoder) or [tower.encoder]]
    assert len(towers) == 2
    counter = CompileCounterWithBackend("eager")
    with CompiledEncoders(method, backend=counter) as compiled:
        assert [name for name, _ in method.named_parameters()] == names
        with compiled.paused():
            embed(method, batch)
            assert counter.frame_count == 0
        with pytest.raises(UserError, match="takes the layers out of its blocks"):
            compiled.check()
        embed(method, batch)
        assert counter.frame_count > 0
        compiled.check()
    assert not any("forward" in part.__dict__ for part in parts)


def test_a_function_of_a_block_returns_afterwards() -> None:
    method = toy_method("clip")
    encoder = of_type(Tower, method.towers["image"]).encoder

    def own(vector_BW: torch.Tensor) -> torch.Tensor:
        return of_type(torch.Tensor, type(encoder).forward(encoder, vector_BW)) + 1

    encoder.forward = own
    with CompiledEncoders(method, backend="eager") as compiled:
        assert encoder.forward is not own
        with compiled.paused():
            assert encoder.forward is own
        assert encoder.forward is not own
    assert encoder.forward is own


@pytest.mark.parametrize(("length", "rounded"), [(1, 8), (8, 8), (9, 16), (16, 16), (17, 20), (20, 20)])
def test_lengths_are_rounded_up_to_the_context(length: int, rounded: int) -> None:
    tower = mock.Mock()
    tower.encoder.tokenizer.context_length, tower.encoder.length_multiple = 20, 8
    tokens = Tokens(torch.ones(3, length, dtype=torch.int64), torch.ones(3, length, dtype=torch.bool), 2, 7)
    image = torch.zeros(3, 1)
    views = lengthened({"text": tokens, "image": image}, mock.Mock(tower=lambda view: tower))
    text = of_type(Tokens, views["text"])
    assert text.ids.shape == text.mask.shape == (3, rounded)
    assert text.mask.sum() == 3 * length
    assert (text.ids[:, length:] == 7).all()
    assert views["image"] is image


def test_parts_of_a_batch_are_cut_to_few_lengths() -> None:
    """A small text encoder computes parts of a batch by their lengths; padding does not change the features."""
    encoder = SmallText(width=16, heads=2).eval()
    tokens = encoder.tokenizer(["a " * count for count in range(1, 25)])
    expected, lengths = encoder(tokens), set[int]()
    encoder.blocks[0].register_forward_pre_hook(lambda block, inputs: lengths.add(inputs[0].shape[1]))
    encoder.length_multiple = 8
    torch.testing.assert_close(encoder(tokens.lengthened(32)), expected, rtol=1e-5, atol=1e-6)
    assert lengths == {8, 16, 24, 32}


def test_machines_without_a_compiler_are_told_before_anything_is_made(folder: Path, tmp_path: Path) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("No working C++ compiler found in cxx\nand more lines")

    with mock.patch("torch.compile", fail), pytest.raises(UserError) as caught:
        train(configured(folder, tmp_path / "run"))
    assert str(caught.value) == (
        "train.compile needs a C++ compiler, such as g++ (No working C++ compiler found in cxx): install it, or set "
        "train.compile to false"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize(("modality", "library", "kind"), CASES)
def test_encoders_of_every_library(modality: str, library: str, kind: str, tmp_path: Path) -> None:
    """Features and gradients, with `aot_eager`: whether their blocks are called and can be compiled."""
    torch._dynamo.reset()
    encoder = build_case(library, kind, modality, tmp_path).encoder.eval()
    method = nn.ModuleDict({modality: Tower(encoder, nn.Identity())})
    inputs = inputs_of(encoder)

    def features_and_gradients() -> list[torch.Tensor | None]:
        encoder.zero_grad()
        features = encoder(inputs)
        features.square().sum().backward()
        return [features.detach(), *(parameter.grad for parameter in encoder.parameters())]

    expected = features_and_gradients()
    with CompiledEncoders(method, backend="aot_eager") as compiled:
        found = features_and_gradients()
        compiled.check()
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(expected[0].norm()))  # type: ignore[union-attr]


@pytest.mark.long
def test_this_machine_has_a_compiler() -> None:
    check_compiler("cpu")


def test_what_cannot_be_compiled_is_named() -> None:
    class Refused(nn.Module):
        def forward(self, vector_BW: torch.Tensor) -> torch.Tensor:
            return vector_BW

    def backend(graph: Any, inputs: Any) -> Any:
        raise NotImplementedError("no such operation")

    method = toy_method("clip")
    with (
        CompiledEncoders(method, backend=backend),
        pytest.raises(UserError, match=r"ToyEncoder \(image\) cannot be"),
    ):
        embed(method, toy_batch(method, 6))


def test_the_doctor_says_what_is_compiled(folder: Path, tmp_path: Path) -> None:
    with mock.patch("mmcl.runs.checks.check_compiler"):
        said = " ".join(diagnose(configured(folder, tmp_path / "run")).to_text().split())
    assert "compiled image as a whole, 2 blocks of text; texts are padded to multiples of 8 tokens" in said
