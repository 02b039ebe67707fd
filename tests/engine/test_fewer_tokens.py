"""Fewer tokens: what a run sees in each of its two phases, what it says of them, and what is refused. Exactness:
`tests/distributed`, `tests/encoders/test_patches.py` and `test_positions.py`; resumed runs: `tests/faults`."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import mmcl
from mmcl.config import Config
from mmcl.encoders.adapters import adapters
from mmcl.encoders.timm import TimmEncoder
from mmcl.engine.compilation import CompiledEncoders
from mmcl.engine.log import read_log
from mmcl.errors import UserError
from mmcl.runs.doctor import diagnose
from mmcl.runs.footprint import measure
from mmcl.runs.plan import make_plan
from mmcl.runs.run import train
from tests.engine.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("_small_vocabulary")

VIT = "{name: timm, args: {name: test_vit, image_size: 16, model_args: {embed_dim: 16, depth: 2, num_heads: 2, patch_size: 4}}}"
FINISH = ("--train.fewer_tokens.finish", "0.25")
HALF = ("--train.fewer_tokens.patches", "0.5", *FINISH)
SMALL = ("--train.fewer_tokens.image_size", "8", *FINISH)
BOTH = (*HALF, *SMALL)


def configured(folder: Path, run_dir: Path, *flags: str) -> Config:
    """Eight steps, the last two of which see all 16 patches."""
    return tiny_config(folder, run_dir, "--image.encoder", VIT, *flags)


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in read_log(run_dir / "metrics.jsonl") if "loss" in row]


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, bool]]:
    """How often the blocks of a transformer got a number of tokens, with a gradient and without."""
    seen: Counter[tuple[int, bool]] = Counter()
    original = TimmEncoder.forward

    def watched(self: Any, pixels: Tensor) -> Tensor:
        def count(block: Any, inputs: tuple[Tensor, ...]) -> None:
            seen[inputs[0].shape[1], torch.is_grad_enabled()] += 1

        handle = self.model.blocks[0].register_forward_pre_hook(count)
        try:
            return original(self, pixels)
        finally:
            handle.remove()

    monkeypatch.setattr(TimmEncoder, "forward", watched)
    return seen


@pytest.mark.parametrize(
    ("flags", "seen", "said"),
    [
        (HALF, 8, "8 of 16 patches of an image until step 6, all of them in the last 2 steps"),
        (
            (*HALF, *SMALL),
            2,
            "2 of 4 patches of images of 8 x 8 pixels until step 6, whole ones of full size in the last 2 steps",
        ),
    ],
    ids=["half of the patches", "of smaller images"],
)
def test_a_run_sees_half_of_the_patches_and_then_all(
    flags: tuple[str, ...],
    seen: int,
    said: str,
    folder: Path,
    tmp_path: Path,
    tokens: Counter[tuple[int, bool]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And a class token. Evaluations see all in every step."""
    evaluated = ("--data.holdout", "0.3", "--evaluate", "[{name: retrieval, label: held_out, every: 2}]")
    with caplog.at_level("INFO", logger="mmcl"):
        run_dir = train(configured(folder, tmp_path / "run", *flags, *evaluated)).run_dir
    assert f"the image encoder sees {said}" in caplog.messages
    assert (tokens[seen + 1, True], tokens[17, True]) == (6, 2)
    assert tokens[seen + 1, False] == 1, "the trial"
    assert tokens[17, False] >= 5
    diagnosis = diagnose(configured(folder, tmp_path / "run", *flags))
    assert diagnosis.fewer_tokens == said
    assert f"fewer tokens  {said[:30]}" in diagnosis.to_text()
    model, image = mmcl.load_model(run_dir), folder / "red_huge.png"
    tokens.clear()
    model.encode_image(image)
    assert set(tokens) == {(17, False)}


def test_all_patches_are_the_run_without(folder: Path, tmp_path: Path) -> None:
    for name, flags in {"off": (), "all": ("--train.fewer_tokens.patches", "1.0"), "half": HALF}.items():
        train(configured(folder, tmp_path / name, *flags))
    weights = {name: load_file(tmp_path / name / "model/model.safetensors") for name in ("off", "all")}
    assert losses(tmp_path / "off") == losses(tmp_path / "all") != losses(tmp_path / "half")
    assert all(torch.equal(weights["all"][key], value) for key, value in weights["off"].items())


FEW = ("--train.steps", "2", *BOTH, "--train.fewer_tokens.finish", "0.5")
"""A step of each kind."""
SAME = {
    "micro-batches": ("--train.micro_batch", "5"),
    "checkpointed activations": ("--train.checkpoint_activations", "true"),
    "augmented on the device": ("--data.augment_on", "device"),
}


def test_nothing_else_changes_what_is_learned(folder: Path, tmp_path: Path) -> None:
    plain, low = ("--train.precision", "fp32"), ("--train.precision", "bf16")
    for name, flags in {"plain": plain, **SAME, "bf16": low}.items():
        train(configured(folder, tmp_path / name, *FEW, *flags))
        expected = pytest.approx(losses(tmp_path / "plain"), rel=0.05 if name == "bf16" else 1e-5)
        assert losses(tmp_path / name) == expected, name


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_run_has_a_shape_for_each_kind_of_steps(folder: Path, tmp_path: Path) -> None:
    train(configured(folder, tmp_path / "plain", *FEW))
    torch._dynamo.reset()
    compiler = mock.patch("mmcl.engine.trainer.CompiledEncoders", partial(CompiledEncoders, backend="aot_eager"))
    with compiler, mock.patch("mmcl.runs.checks.check_compiler"):
        train(configured(folder, tmp_path / "compiled", *FEW, "--train.compile", "true"))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


def test_adapters_learn_from_fewer_tokens(folder: Path, tmp_path: Path, tokens: Counter[tuple[int, bool]]) -> None:
    """And those of the start, which is an anchor, see what the trained encoder sees."""
    start = train(configured(folder, tmp_path / "start", "--train.steps", "1")).run_dir
    new = [flag for name in ("image", "text") for flag in (f"--{name}.encoder", "null", f"--{name}.head", "null")]
    adapted = ("--image.adapt", "{args: {rank: 2}}", "--train.anchor.features", "0.5")
    tokens.clear()
    config = tiny_config(folder, tmp_path / "run", "--init", str(start), *new, *adapted, *HALF)
    assert list(adapters(make_plan(config, 1).method.towers["image"]))
    train(config)
    assert (tokens[9, True], tokens[17, True]) == (6, 2)
    assert "feature_distance" in read_log(tmp_path / "run/metrics.jsonl")[0]


def test_views_of_two_sizes_have_their_own_numbers(folder: Path, tmp_path: Path) -> None:
    flags = ("--method", "{name: swav, args: {small_crops: 2, prototypes: 4}}", "--text", "null", "--data.crop", "{}")
    small = ("--data.views", "{small: {size: 8}}", "--train.fewer_tokens.patches", "0.5")
    vit = VIT.replace("patch_size: 4", "patch_size: 4, dynamic_img_size: true")
    plan = make_plan(tiny_config(folder, tmp_path / "run", "--image.encoder", vit, *flags, *small), 1)
    assert plan.fewer
    assert {name: (one.kept, one.all) for name, one in plan.fewer.counts.items()} == {
        **dict.fromkeys(("a", "b"), (8, 16)),
        **dict.fromkeys(("small_0", "small_1"), (2, 4)),
    }
    assert plan.fewer.describe() == ("8 of 16 and 2 of 4 patches of an image until step 7, all of them in the last step")


def test_smaller_images_of_any_encoder_and_aspect(folder: Path, tmp_path: Path) -> None:
    """Convolutions, and positions on their last map. Views with a size of their own keep it."""
    strided = "{name: strided_cnn, args: {image_size: [24, 16], widths: [4, 8], blocks: [0, 0], feature_dim: 16}}"
    resnet = "{name: timm, args: {name: test_resnet, image_size: [24, 16]}}"
    for encoder in (strided, resnet):
        small = ("--train.fewer_tokens.image_size", "12", "--train.fewer_tokens.finish", "0")
        flags = ("--image.encoder", encoder, *small, "--data.views", "{b: {size: 20, crop: {}}}")
        plan = make_plan(tiny_config(folder, tmp_path / "run", "--text", "null", "--method.name", "simclr", *flags), 1)
        assert plan.fewer
        assert plan.fewer.describe() == "images of 12 x 8 and 20 x 20 pixels until step 8"
        assert not plan.fewer.counts
        assert measure(plan, torch.device("cpu")).seconds > 0


def test_a_fixed_teacher_sees_whole_images(folder: Path, tmp_path: Path) -> None:
    """It may be a network of another kind."""
    source = ("--data.train", "{name: digits}", "--text", "null", "--train.steps", "4")
    small = ("--image.encoder", "{name: small_cnn, args: {image_size: 8, channels: 1, feature_dim: 16}}")
    vit = VIT.replace("image_size: 16", "image_size: 8, in_chans: 1")
    teacher = train(tiny_config(folder, tmp_path / "teacher", *source, *small, "--method.name", "supervised")).run_dir
    taught = ("--method.name", "distillation", "--teacher", str(teacher), "--image.encoder", vit, *HALF)
    run_dir = train(tiny_config(folder, tmp_path / "run", *source, *taught)).run_dir
    assert len(losses(run_dir)) == 4
    with pytest.raises(UserError, match=r"image_size is 4, and the teacher .* would see the smaller images, too: leave it out"):
        make_plan(tiny_config(folder, tmp_path / "r", *source, *taught, "--train.fewer_tokens.image_size", "4"), 1)


def sized(size: int) -> tuple[str, ...]:
    return "--train.fewer_tokens.image_size", str(size)


FROZEN = ("--image.freeze", "true", "--data.augment", "[]")
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no transformer": (
        ("--image.encoder", "{name: torchvision, args: {name: resnet18, image_size: 32}}", *HALF),
        r"train\.fewer_tokens\.patches is 0\.5, and the image encoder torchvision \(resnet18\) has no patches that it could do",
    ),
    "a patch dropout of its own": (
        ("--image.encoder", VIT.replace("depth: 2", "depth: 2, patch_drop_rate: 0.5"), *HALF),
        r"does not go with the image encoder timm \(test_vit\): it has a patch dropout of its own, patch_drop_rate: rem",
    ),
    "no images": (
        ("--image", "null", "--method.name", "simcse", *HALF),
        r"train\.fewer_tokens\.patches is 0\.5, and simcse has no images: leave it out",
    ),
    "no smaller images": (
        ("--image", "null", "--method.name", "simcse", *BOTH),
        r"patches is 0\.5 and train\.fewer_tokens\.image_size is 8, and simcse has no images: leave it out",
    ),
    "stored features of smaller images": (
        (*FROZEN, *SMALL),
        r"train\.fewer_tokens\.image_size is 8, and the features of the frozen image encoder timm \(test_vit\) are computed o",
    ),
    "full size": (
        sized(16),
        r"train\.fewer_tokens\.image_size is 16, and the image encoder timm \(test_vit\) sees images of 16 x 16: set it to les",
    ),
    "parts of patches": (
        sized(10),
        r"image_size is 10, and 10 x 10 pixels of the image encoder timm \(test_vit\) are no whole patches of 4 x 4: set it to",
    ),
    "parts of pixels": (
        ("--image.encoder", "{name: torchvision, args: {name: resnet18, image_size: [32, 24]}}", *sized(15)),
        r"image_size is 15, and 15 x 11\.25 pixels of the image encoder torchvision \(resnet18\) are no whole pixels: set it",
    ),
    "one patch": (
        ("--image.encoder", VIT.replace("patch_size: 4", "patch_size: 16"), *sized(4)),
        r"image_size is 4, and 4 x 4 pixels .* are no whole patches of 16 x 16: leave it out",
    ),
    "an encoder of one size": (
        ("--image.encoder", "{name: small_cnn, args: {image_size: 16, channels: 3}}", *sized(8)),
        r"view 'image': the image encoder small_cnn cannot take images of 8 x 8 \(.*mat1 .*\): set train\.fewer_tokens\.im",
    ),
    "sizes of their own": (
        ("--data.views", "{image: {size: 12, crop: {}}}", *sized(8)),
        r"train\.fewer_tokens\.image_size is 8, and all views have a size of their own, by data\.views or an augmentation with",
    ),
    "a size of the augmentation": (
        ("--data.augment", "[{name: crop, args: {size: 16}}]", *sized(8)),
        r"train\.fewer_tokens\.image_size is 8, and all views have a size of their own, by data\.views or an augmentation with",
    ),
    "cut images": (
        ("--image.preprocess", "{resize: none}", *sized(8)),
        r"image_size is 8, and image\.preprocess\.resize is 'none', which would cut images instead of shrinking them: set that",
    ),
    "no pixels": (sized(0), r"train\.fewer_tokens\.image_size is 0: give null or a whole number of 1 or more"),
    "stored features": (
        (*FROZEN, *HALF),
        r"the features of the frozen image encoder timm \(test_vit\) are computed once, from whole images: leave it out, or se",
    ),
    "a finish alone": (
        ("--train.fewer_tokens.finish", "0.2"),
        r"train\.fewer_tokens\.finish has no effect without train\.fewer_tokens\.patches or train\.fewer_tokens\.image_size: s",
    ),
    "nearly all": (
        ("--train.fewer_tokens.patches", "0.98"),
        r"train\.fewer_tokens\.patches is 0\.98, which of the 16 patches of the view 'image' are all: set a smaller share",
    ),
    "none": (
        ("--train.fewer_tokens.patches", "0"),
        r"train\.fewer_tokens\.patches is 0\.0: give a number above 0 and at mo",
    ),
    "more than all": (
        ("--train.fewer_tokens.patches", "50"),
        r"train\.fewer_tokens\.patches is 50\.0: give a number above 0 ",
    ),
    "all steps": (
        ("--train.fewer_tokens.finish", "1"),
        r"train\.fewer_tokens\.finish is 1\.0: give a number from 0 to belo",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_the_run(folder: Path, tmp_path: Path, case: str) -> None:
    flags, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        make_plan(configured(folder, tmp_path / "run", *flags), 1)
    assert "\n" not in str(caught.value)


def test_an_encoder_that_fails_on_fewer_patches_is_named(folder: Path, tmp_path: Path) -> None:
    with (
        mock.patch("mmcl.encoders.patches.PatchTokens.count", return_value=9),
        pytest.raises(
            UserError, match=r"view 'image': the image encoder timm \(test_vit\) cannot take 4 of 9 patches \(it has"
        ),
    ):
        make_plan(configured(folder, tmp_path / "run", *HALF), 1)


def test_a_frozen_encoder_of_augmented_images_sees_fewer(
    folder: Path, tmp_path: Path, tokens: Counter[tuple[int, bool]]
) -> None:
    """Its features are computed in every step; in micro-batches, once."""
    train(configured(folder, tmp_path / "run", "--image.freeze", "true", "--train.micro_batch", "6", *HALF))
    assert tokens[9, False] == 12 + 1
    assert tokens[17, False] >= 4


WARNED = {
    "too short": (
        ("--train.steps", "1"),
        "train.fewer_tokens has no effect: its finish, in which images are whole, is all of 1 step",
    ),
    "patience": (
        (
            *("--data.holdout", "0.3", "--evaluate", "[{name: retrieval, label: held_out, every: 2}]"),
            *("--train.keep_best", "held_out/text_to_image_mean_rank", "--train.patience", "1"),
        ),
        "train.patience may end the run before step 7, from which on the image encoder sees whole images: set it to null",
    ),
}


@pytest.mark.parametrize("case", WARNED)
def test_what_has_no_effect_is_said(folder: Path, tmp_path: Path, case: str) -> None:
    flags, said = WARNED[case]
    assert said in diagnose(configured(folder, tmp_path / "run", *HALF, *flags)).warnings


def test_the_phases_may_not_change_on_resume(folder: Path, tmp_path: Path) -> None:
    flags = (*HALF, "--train.steps", "2")
    train(configured(folder, tmp_path / "run", *flags))
    with pytest.raises(UserError, match=r"train\.fewer_tokens\.patches: 0\.5 -> 0\.25"):
        train(configured(folder, tmp_path / "run", *flags, "--train.fewer_tokens.patches", "0.25", "--resume"))
