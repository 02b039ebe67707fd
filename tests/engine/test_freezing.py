"""Frozen blocks and frozen batch-norm statistics never change, and the rest of the model learns."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmcl.config import Config
from mmcl.engine.log import read_log
from mmcl.errors import UserError
from mmcl.runs.build import build_method
from mmcl.runs.doctor import diagnose
from mmcl.runs.run import train
from tests.engine.tiny import tiny_config

NORMED = ("--image.encoder", "{name: strided_cnn, args: {image_size: 16, widths: [4, 8, 8], feature_dim: 8}}")
DEEP = ("--text.encoder.args.layers", "3", "--text.encoder.args.dropout", "0.2")
TOWERS_OF_INIT = ("--image.encoder", "null", "--image.head", "null", "--text.encoder", "null", "--text.head", "null")
SAVED = ("--train.save_every", "1", "--train.steps", "3")

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def start(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with batch norms and three text blocks, to start from."""
    return train(tiny_config(folder, tmp_path_factory.mktemp("runs") / "start", *NORMED, *DEEP)).run_dir


Tuned = Callable[..., tuple[State, State]]


@pytest.fixture
def tuned(folder: Path, start: Path, tmp_path: Path) -> Tuned:
    """Fine-tunes for three steps. Returns the state after the second and after the last."""

    def tune(*flags: str) -> tuple[State, State]:
        train(tiny_config(folder, tmp_path / "run", *TOWERS_OF_INIT, *SAVED, "--init", str(start), *flags))
        first, last = (load_file(tmp_path / f"run/checkpoints/step-000000{n}/model.safetensors") for n in (2, 3))
        return first, last

    return tune


def changed(states: tuple[State, State], part: str) -> set[str]:
    """Names of the tensors of a part that the last step changed."""
    names = [name for name in states[0] if name.startswith(part)]
    assert names
    return {name for name in names if not torch.equal(states[0][name], states[1][name])}


def exported(run_dir: Path, part: str) -> State:
    weights = load_file(run_dir / "model/model.safetensors")
    return {name: value for name, value in weights.items() if name.startswith(part)}


FROZEN_GROUP = ("--optim.groups", "[{match: '^text[.]head|blocks[.]2[.]mlp_in|log_scale', freeze: true}]")


def test_what_is_frozen_never_changes_and_the_others_learn(tuned: Tuned, start: Path, tmp_path: Path) -> None:
    """Checkpoints leave it out, and hold all that learns."""
    states = tuned("--text.freeze", "2", "--image.freeze", "1", *FROZEN_GROUP)
    lowest = ("text.encoder.token", "text.encoder.position", "text.encoder.blocks.0", "text.encoder.blocks.1")
    grouped = ("text.encoder.blocks.2.mlp_in", "text.head")
    for part in (*lowest, *grouped, "image.encoder.stages.1.0."):
        frozen, before = exported(tmp_path / "run", part), exported(start, part)
        assert before
        assert all(torch.equal(frozen[name], value) for name, value in before.items())
        assert not [name for name in states[0] if name.startswith(f"towers.{part}")]
    learning = ("text.encoder.blocks.2.mlp_out", "text.encoder.final_norm", "image.encoder.stages.2", "image.head")
    for part in learning:
        assert changed(states, f"towers.{part}")


@pytest.mark.parametrize(("below", "blocks"), [(-1, 2), (-2, 1), (-3, 0), (-7, 0)])
def test_all_below_the_last_blocks_is_frozen(folder: Path, tmp_path: Path, below: int, blocks: int) -> None:
    """As much as by the number of the lowest blocks; where there are no more blocks, the embeddings alone."""

    def trained(freeze: int) -> set[str]:
        method = build_method(tiny_config(folder, tmp_path / "run", *DEEP, "--text.freeze", str(freeze)))
        return {name for name, parameter in method.named_parameters() if parameter.requires_grad}

    found = trained(below)
    assert {name.split(".")[4] for name in found if ".blocks." in name} == {str(number) for number in range(blocks, 3)}
    assert not [name for name in found if "embedding" in name or "text.encoder.position" in name]
    assert blocks == 0 or found == trained(blocks)


def test_a_teacher_of_frozen_parts_resumes(folder: Path, start: Path, tmp_path: Path) -> None:
    """Its own weights are averages of others, and no group freezes them."""
    momentum = ("--method", "{name: momentum_clip, args: {queue: 24}}", "--init", str(start), *TOWERS_OF_INIT)
    flags = (*momentum, *SAVED, "--text.freeze", "2", *FROZEN_GROUP)
    train(tiny_config(folder, tmp_path / "run", *flags))
    expected = load_file(tmp_path / "run/checkpoints/step-0000003/model.safetensors")
    assert {name for name in expected if name.startswith("teacher.") and "text.head" in name}
    shutil.rmtree(tmp_path / "run/checkpoints/step-0000003")
    train(tiny_config(folder, tmp_path / "run", *flags, "--resume"))
    found = load_file(tmp_path / "run/checkpoints/step-0000003/model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("flags", [("--text.freeze", "2"), FROZEN_GROUP], ids=["blocks", "group"])
def test_a_resume_needs_the_same_frozen_weights(flags: tuple[str, ...], folder: Path, start: Path, tmp_path: Path) -> None:
    init = tmp_path / "init"
    shutil.copytree(start, init)
    config = ("--init", str(init), *TOWERS_OF_INIT, *SAVED, *flags)
    train(tiny_config(folder, tmp_path / "run", *config))
    other = {name: value + 1 for name, value in load_file(init / "model/model.safetensors").items()}
    save_file(other, init / "model/model.safetensors")
    with pytest.raises(
        UserError, match=r"cannot be continued on other frozen weights: the text tower of .* had the fingerprint"
    ):
        train(tiny_config(folder, tmp_path / "run", *config, "--resume"))


def test_statistics_of_a_model_that_is_fine_tuned_stay(tuned: Tuned) -> None:
    """Their weights and biases learn."""
    states = tuned()
    found = changed(states, "towers.image.encoder")
    assert {"towers.image.encoder.norm.weight", "towers.image.encoder.norm.bias"} <= found
    assert not [name for name in found if "running" in name or "tracked" in name]


def test_statistics_may_be_those_of_the_new_data(tuned: Tuned) -> None:
    found = changed(tuned("--train.freeze_statistics", "false"), "towers.image.encoder")
    assert {"towers.image.encoder.norm.running_mean", "towers.image.encoder.norm.num_batches_tracked"} <= found


def norms_in_training(config: Config) -> dict[str, bool]:
    modules = build_method(config).train().named_modules()
    return {name: module.training for name, module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)}


def test_a_new_head_has_statistics_of_its_own(folder: Path, start: Path, tmp_path: Path) -> None:
    head = ("--image.head", "{name: mlp, args: {embed_dim: 16}}", "--image.encoder", "null")
    rest = ("--init", str(start), "--text.encoder", "null", "--text.head", "null")
    for setting in ("auto", "true"):
        config = tiny_config(folder, tmp_path / "run", *head, *rest, "--train.freeze_statistics", setting)
        for name, in_training in norms_in_training(config).items():
            assert in_training == (".head." in name)


@pytest.mark.parametrize(("setting", "expected"), [("auto", True), ("false", True), ("true", False)])
def test_statistics_of_random_weights_are_frozen_on_request_only(
    folder: Path, tmp_path: Path, setting: str, expected: bool
) -> None:
    missing = ("--init", "runs/none", "--init_missing", "random")
    config = tiny_config(folder, tmp_path / "run", *NORMED, *missing, "--train.freeze_statistics", setting)
    assert set(norms_in_training(config).values()) == {expected}


def test_a_momentum_teacher_has_the_same_statistics(folder: Path, start: Path, tmp_path: Path) -> None:
    momentum = ("--method", "{name: momentum_clip, args: {queue: 24}}")
    found = norms_in_training(tiny_config(folder, tmp_path / "run", *TOWERS_OF_INIT, *momentum, "--init", str(start)))
    assert {name.partition(".")[0] for name in found} == {"towers", "teacher"}
    assert not any(found.values())


def test_frozen_statistics_make_micro_batches_exact(folder: Path, start: Path, tmp_path: Path) -> None:
    """Without them a batch norm is the exception. A doctor has nothing to warn of."""
    flags = (*TOWERS_OF_INIT, "--init", str(start), "--train.steps", "3", "--optim.warmup", "0.5", "--text.freeze", "true")
    losses = {}
    for name, more in (("whole", ()), ("pieces", ("--train.micro_batch", "5"))):
        config = tiny_config(folder, tmp_path / name, *flags, *more)
        assert not [warning for warning in diagnose(config, 2).warnings if "batch norm" in warning]
        train(config)
        losses[name] = [row["loss"] for row in read_log(tmp_path / name / "metrics.jsonl")]
    assert losses["pieces"] == pytest.approx(losses["whole"], rel=1e-5)


def test_the_doctor_says_what_is_frozen(folder: Path, tmp_path: Path) -> None:
    found = diagnose(tiny_config(folder, tmp_path / "run", *NORMED, *DEEP, "--image.freeze", "true", "--text.freeze", "1"))
    assert found.frozen_encoders == ("image", "text: 1 block")
    assert "frozen (image, text: 1 block)" in " ".join(found.to_text().split())
    found = diagnose(tiny_config(folder, tmp_path / "run", *NORMED, *DEEP, "--image.freeze", "-1", "--text.freeze", "-2"))
    assert found.frozen_encoders == ("image: all below the last 1 block", "text: all below the last 2 blocks")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--text.freeze", "4"), "text.freeze is 4, and the encoder small_text has 3 blocks: give a smaller number"),
        (("--image.freeze", "1"), "image.freeze is 1, and the encoder small_cnn has no blocks: give"),
        (("--image.freeze", "-1"), "image.freeze is -1, and the encoder small_cnn has no blocks: give"),
        (("--text.freeze", "0"), "text.freeze is 0: give true, false, or a number of blocks: 2 freezes the lowest two, -2 all"),
        (("--text.freeze", "some"), "--text.freeze must be true or false or a whole number, not 'some'"),
        (("--text.freeze", "1.5"), "--text.freeze must be true or false or a whole number, not 1.5"),
        (("--train.freeze_statistics", "2"), "--train.freeze_statistics"),
    ],
)
def test_what_cannot_be_frozen_is_named(folder: Path, tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        train(tiny_config(folder, tmp_path / "run", *DEEP, *flags))
    assert not (tmp_path / "run" / "config.yaml").exists()
