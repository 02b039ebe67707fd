"""Learning rates, weight decay and freezing of parts of a model: by depth, by name, and the same in a loop of one's own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmcl.config import Config, GroupConfig, OptimConfig, from_dict
from mmcl.encoders.heads import LinearHead
from mmcl.encoders.small_text import SmallText
from mmcl.encoders.strided_cnn import StridedCNN
from mmcl.encoders.tower import Tower
from mmcl.engine.optim import build_optimizer
from mmcl.engine.parameter_groups import param_groups
from mmcl.errors import UserError
from mmcl.methods.clip import CLIP
from mmcl.runs.build import build_method
from mmcl.runs.doctor import diagnose
from mmcl.runs.run import train
from tests.engine.tiny import tiny_config


@pytest.fixture
def method() -> CLIP:
    """An image tower of two blocks and a text tower of three."""
    image, text = StridedCNN(image_size=8, widths=(4, 8), blocks=(0, 0), feature_dim=8), SmallText(width=8, heads=2, layers=3)
    return CLIP(
        nn.ModuleDict({"image": Tower(image, LinearHead(8, embed_dim=4)), "text": Tower(text, LinearHead(8, embed_dim=4))})
    )


def options(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay by name."""
    names = {parameter: name.removeprefix("towers.") for name, parameter in module.named_parameters()}
    return {names[p]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}


def groups(*settings: dict[str, Any]) -> tuple[GroupConfig, ...]:
    return tuple(from_dict(GroupConfig, one, "groups") for one in settings)


def rates(module: nn.Module, **settings: Any) -> dict[str, float]:
    found = options(build_optimizer(module, OptimConfig(lr=1.0, **settings)), module)
    return {name: lr for name, (lr, _) in found.items()}


def test_the_rate_falls_from_block_to_block(method: CLIP) -> None:
    """Of n blocks, the i-th has d^(n + 1 - i), embeddings that of i = 0, and everything above the last the full rate."""
    expected = {"embedding": 0.5**4, "blocks.0": 0.5**3, "blocks.1": 0.5**2, "blocks.2": 0.5}
    expected |= {"stages.1.": 0.5**2, "stages.2.": 0.5}
    found = rates(method, layer_decay=0.5)
    assert found.keys() == {name.removeprefix("towers.") for name, _ in method.named_parameters()}
    for name, rate in found.items():
        assert rate == next((rate for part, rate in expected.items() if part in name), 1.0), name
    assert {found["log_scale"], found["text.encoder.final_norm.weight"], found["image.head.weight"]} == {1.0}


def test_every_kind_of_rate_falls(method: CLIP) -> None:
    found = rates(method, layer_decay=0.5, bias_lr=0.1, muon_lr=10.0)
    block = "text.encoder.blocks.1.mlp_in"
    assert (found[f"{block}.weight"], found[f"{block}.bias"]) == (10 / 4, 0.1 / 4)
    assert (found["text.encoder.token_embedding.weight"], found["log_scale"]) == (1 / 16, 0.1)


def test_the_first_group_that_matches_wins(method: CLIP) -> None:
    """`lr` is the rate, and `scale` a factor of the one without the group; a number that is not given stays."""
    given = groups(
        {"match": "^text[.]head", "lr": 7.0},
        {"match": "^text[.]", "scale": 0.1},
        {"match": "head|norm", "weight_decay": 0.3},
    )
    module, config = method, OptimConfig(lr=1.0, weight_decay=0.2, layer_decay=0.5, groups=given)
    found = options(build_optimizer(module, config), module)
    assert found["text.head.weight"] == (7.0, 0.2)
    assert found["text.encoder.blocks.1.mlp_in.weight"] == (0.1 * 0.25, 0.2)
    assert found["text.encoder.blocks.1.mlp_in.bias"] == (0.1 * 0.25, 0.0)
    assert found["image.head.weight"] == (1.0, 0.3)
    assert found["image.encoder.norm.weight"] == (1.0, 0.0), "a norm has no weight decay"


def test_a_rate_of_a_group_is_not_decayed(method: CLIP) -> None:
    found = rates(method, layer_decay=0.5, groups=groups({"match": "blocks", "lr": 3.0}))
    assert {rate for name, rate in found.items() if "blocks" in name} == {3.0}


def test_frozen_groups_are_no_longer_trained(method: CLIP) -> None:
    frozen = groups({"match": "blocks[.]0[.].*weight", "lr": 1.0}, {"match": "embedding|blocks[.]0|log_scale", "freeze": True})
    given = param_groups(method, lr=0.1, groups=[{"match": one.match, "lr": one.lr, "freeze": one.freeze} for one in frozen])
    still = {name for name, parameter in method.named_parameters() if not parameter.requires_grad}
    assert {"log_scale", "towers.text.encoder.token_embedding.weight", "towers.text.encoder.blocks.0.mlp_in.bias"} <= still
    assert "towers.text.encoder.blocks.0.mlp_in.weight" not in still
    assert {id(p) for group in given for p in group["params"]} == {id(p) for p in method.parameters() if p.requires_grad}


SETTINGS = {
    "plain": {},
    "all": {
        "weight_decay": 0.1,
        "bias_lr": 0.01,
        "layer_decay": 0.7,
        "groups": [{"match": "^image[.]", "scale": 0.5}, {"match": "norm", "lr": 0.3}],
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_loop_of_ones_own_has_the_groups_of_training(method: CLIP, settings: dict[str, Any]) -> None:
    given = {**settings, "groups": groups(*settings["groups"])} if settings else {}
    trained = build_optimizer(method, OptimConfig(lr=0.2, **given)).param_groups
    own = param_groups(method, lr=0.2, **settings)
    assert len(own) == len(trained) > len(settings)
    for ours, theirs in zip(own, trained, strict=True):
        assert [id(p) for p in ours["params"]] == [id(p) for p in theirs["params"]]
        assert all(ours[key] == theirs[key] for key in ("lr", "weight_decay", "name"))


def test_a_network_without_towers_has_the_depth_of_its_own_blocks() -> None:
    network = SmallText(width=8, heads=2, layers=2)
    found = options(torch.optim.SGD(param_groups(network, lr=1.0, layer_decay=0.5)), network)
    assert [found[f"blocks.{number}.mlp_in.weight"][0] for number in (0, 1)] == [0.25, 0.5]
    assert (found["token_embedding.weight"][0], found["final_norm.bias"][0]) == (0.125, 1.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"groups": [{"match": "vision", "lr": 1}]}, "optim.groups.0: no parameter that the groups before it leave matches"),
        (
            {"groups": [{"match": "vision", "lr": 1}]},
            "some names: log_scale, image.encoder.norm.weight, text.encoder",
        ),
        ({"groups": [{"match": ".", "lr": 1}, {"match": "text", "lr": 2}]}, "optim.groups.1: no parameter that the groups"),
        ({"groups": [{"match": "(", "lr": 1}]}, "'(': it is not a regular expression"),
        ({"groups": [{"match": "text", "lr": 1, "scale": 2}]}, "lr and scale, which exclude each other"),
        ({"groups": [{"match": "text", "scale": 2, "freeze": True}]}, "freeze and scale, which exclude each other"),
        ({"groups": [{"match": "text"}]}, "changes nothing: give lr, scale, weight_decay or freeze"),
        ({"groups": [{"match": "log_scale", "weight_decay": 1}]}, "only parameters without weight decay"),
        ({"groups": [{"match": "text", "lr": -1}]}, "groups.0.lr is -1.0: give null or a number above 0"),
        ({"groups": [{"match": "text", "rate": 1}]}, "groups.0"),
        ({"groups": [{"match": ".", "freeze": True}]}, "all parameters are frozen"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5: give"),
        ({"lr": 0}, "lr is 0: give a number above 0"),
    ],
)
def test_what_cannot_be_is_named(method: CLIP, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        param_groups(method, **{"lr": 0.1, **settings})


def test_a_group_of_frozen_parameters_is_named(method: CLIP) -> None:
    method.tower("text").freeze()
    with pytest.raises(UserError, match=r"optim\.groups\.0: all parameters that match '\^text\[\.\]encoder' are frozen"):
        param_groups(method, lr=0.1, groups=[{"match": "^text[.]encoder", "lr": 1}])


def test_depth_needs_blocks_where_something_learns(method: CLIP) -> None:
    method.towers["image"].encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
    with pytest.raises(UserError, match=r"optim\.layer_decay: image has no blocks; freeze it"):
        param_groups(method, lr=0.1, layer_decay=0.5)
    method.tower("image").freeze()
    assert param_groups(method, lr=0.1, layer_decay=0.5)


IMAGE = ("--image.encoder", "{name: strided_cnn, args: {image_size: 16, widths: [4, 8], blocks: [0, 0], feature_dim: 8}}")
NO_BLOCKS = ("--image.encoder", "{name: small_cnn, args: {image_size: 16, channels: 3, feature_dim: 32}}")
PLAIN = ("--optim", "{name: sgd, lr: 0.1, momentum: 0, weight_decay: 0, warmup: 0, clip: null}", "--train.steps", "1")


def config_of(folder: Path, run_dir: Path, *flags: str) -> Config:
    return tiny_config(folder, run_dir, *IMAGE, "--text.encoder.args.layers", "2", *PLAIN, *flags)


def change(config: Config) -> dict[str, torch.Tensor]:
    """What the first step adds to the towers: by SGD, the gradient times the rate."""
    start = {name: value.detach().clone() for name, value in build_method(config).towers.named_parameters()}
    trained = load_file(train(config).run_dir / "model/model.safetensors")
    return {name: trained[name] - value for name, value in start.items()}


def test_a_run_steps_by_these_rates(folder: Path, tmp_path: Path) -> None:
    rules = '[{match: "^text[.]head", freeze: true}, {match: "^image[.]", scale: 0.25}]'
    plain = change(config_of(folder, tmp_path / "plain"))
    ours = change(config_of(folder, tmp_path / "groups", "--optim.layer_decay", "0.5", "--optim.groups", rules))
    factors = {
        "image.encoder.stages.1.": 0.25 / 4,
        "image.encoder.stages.2.": 0.25 / 2,
        "image.": 0.25,
        "text.head": 0.0,
        "embedding": 1 / 8,
        "text.encoder.blocks.0": 1 / 4,
        "text.encoder.blocks.1": 1 / 2,
        "": 1.0,
    }
    for name, value in plain.items():
        factor = next(factor for part, factor in factors.items() if part in name)
        size = float(value.abs().max())
        assert size > 0, name
        torch.testing.assert_close(ours[name], value * factor, rtol=0, atol=1e-3 * size + 1e-7, msg=name)


def test_a_resume_has_the_same_groups_in_the_same_order(folder: Path, tmp_path: Path) -> None:
    first, second = '{match: "^text[.]", scale: 0.5}', '{match: "norm", lr: 0.01}'
    flags = ("--train.steps", "2", "--train.save_every", "1", "--optim.momentum", "0.9", "--optim.layer_decay", "0.5")
    whole = config_of(folder, tmp_path / "run", *flags, "--optim.groups", f"[{first}, {second}]")
    train(whole)
    expected = load_file(tmp_path / "run/model/model.safetensors")
    shutil.rmtree(tmp_path / "run/checkpoints/step-0000002")
    with pytest.raises(UserError, match=r"cannot be continued with other settings \(optim\.groups"):
        train(config_of(folder, tmp_path / "run", *flags, "--optim.groups", f"[{second}, {first}]", "--resume"))
    train(config_of(folder, tmp_path / "run", *flags, "--optim.groups", f"[{first}, {second}]", "--resume"))
    found = load_file(tmp_path / "run/model/model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_doctor_shows_all_groups(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = diagnose(config_of(folder, tmp_path / "run", "--optim.layer_decay", "0.5", "--optim.weight_decay", "0.1"))
    assert sum(group.parameters for group in found.groups) == found.trainable
    assert {group.learning_rate for group in found.groups} == {0.1 * 0.5**depth for depth in range(4)}
    lines = found.to_text().splitlines()
    assert all(len(line) <= 80 for line in lines if not line.startswith("warning"))
    [block] = [line.split() for line in lines if line.startswith("text block 1: matrices, tables")]
    assert block[-4:] == ["4", "12,288", "0.025", "0.1"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--optim.groups", "[{match: vision, lr: 1}]"), r"optim\.groups\.0: no parameter .* matches 'vision'"),
        (("--optim.groups", "[{match: text, lr: 1, scale: 2}]"), "lr and scale"),
        (("--optim.groups", "[{match: text, lr: 0}]"), r"optim\.groups\.0\.lr is 0"),
        ((*NO_BLOCKS, "--optim.layer_decay", "0.5"), "image has no blocks"),
    ],
)
def test_a_run_refuses_them_before_it_begins(folder: Path, tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        train(config_of(folder, tmp_path / "run", *flags))
    assert not (tmp_path / "run/config.yaml").exists()
