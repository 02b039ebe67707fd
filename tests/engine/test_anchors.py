"""Anchors against forgetting: their formulas, exactness, resume, and what they refuse."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmcl.config import Config
from mmcl.core.cached_backward import cached_backward, split_views
from mmcl.core.gather import gather_embeddings
from mmcl.encoders.adapters import adapt
from mmcl.engine.anchors import FeatureAnchor, WeightAnchor, anchored_weights
from mmcl.engine.log import read_log
from mmcl.engine.optim import build_optimizer
from mmcl.engine.weight_layout import ShardedWeights, shard
from mmcl.errors import UserError
from mmcl.methods import METHODS
from mmcl.methods.method import Method
from mmcl.runs.build import build_method
from mmcl.runs.doctor import diagnose
from mmcl.runs.plan import make_plan
from mmcl.runs.run import train
from mmcl.testing.toys import positives_of, toy_batch, toy_method
from mmcl.types import LossOutput
from tests.distributed.harness import run_processes
from tests.distributed.test_sharded_weights import OPTIMIZERS, accelerator
from tests.engine.tiny import tiny_config

ANCHORED = [name for name in METHODS if toy_method(name).embedded_views]


def moved(name: str) -> tuple[Method, FeatureAnchor]:
    """A method that has moved away from the start that it is anchored to."""
    method = toy_method(name)
    method.pretrained = dict.fromkeys(method.towers, "tower")
    anchor = FeatureAnchor(method, 0.7)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in method.towers.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return method, anchor


@pytest.mark.parametrize("name", ANCHORED)
def test_the_distance_is_that_of_a_loop_over_rows(name: str) -> None:
    method, anchor = moved(name)
    views = toy_batch(method, 7).views
    torch.manual_seed(0)
    rows = method.encode(views)
    output = anchor.add(LossOutput(torch.zeros(())), rows, anchor.rows([views]), 7)
    far: list[float] = []
    for view in method.embedded_views:
        start, own = (tower(views[view]).detach() for tower in (toy_method(name).tower(view), method.tower(view)))
        far += [1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)) for a, b in zip(own, start, strict=True)]
    assert float(output.metrics["feature_distance"]) == pytest.approx(sum(far) / len(far), rel=1e-9)
    assert float(output.loss.detach()) == pytest.approx(0.7 * sum(far) / len(far), rel=1e-9)
    assert min(far) > 1e-6


def step(rank: int, world: int, name: str, pieces: int, sharded: bool) -> dict[str, Tensor]:
    """Gradients of the loss with the distance, on this process's share of 12 rows."""
    method, anchor = moved(name)
    weights = ShardedWeights(accelerator(), method, OPTIMIZERS["sgd"]) if sharded else None
    if sharded:
        shard(anchor.towers, torch.device("cpu"))
    batch = toy_batch(method, 12)
    own = slice(12 // world * rank, 12 // world * (rank + 1))
    views, ids = {view: x[own] for view, x in batch.views.items()}, positives_of(method, batch)[own]
    parts = split_views(views, len(ids) // pieces)
    start = anchor.rows(parts)

    def loss_of(rows: Mapping[str, Tensor]) -> Tensor:
        embeddings = gather_embeddings(rows, ids)
        return anchor.add(method.loss(embeddings, batch), rows, start, len(embeddings.all_ids)).loss

    cached_backward(
        method if weights is None else weights.encode,
        parts,
        loss=loss_of,
        backward=lambda loss: (loss * (world if sharded else 1)).backward(),
        seed=torch.default_generator.manual_seed,
        loss_parameters=method.loss_parameters,
        no_sync=nullcontext if weights is None else weights.no_sync,
    )
    if weights is not None:
        weights.reduce()
    grads = {key: p.grad for key, p in method.named_parameters() if p.grad is not None}
    if sharded:
        return {key: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for key, grad in grads.items()}
    if world > 1:
        for grad in grads.values():
            torch.distributed.all_reduce(grad)
    return grads


@pytest.mark.parametrize(("world", "pieces", "sharded"), [(1, 5, False), (2, 3, False), (3, 2, True)])
@pytest.mark.parametrize("name", ["clip", "momentum_clip"])
def test_the_gradient_is_that_of_the_whole_batch(name: str, world: int, pieces: int, sharded: bool) -> None:
    expected = step(0, 1, name, 1, False)
    arguments = (name, pieces, sharded)
    for found in [step(0, 1, *arguments)] if world == 1 else run_processes(world, step, *arguments):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-11, atol=1e-13, msg=key)


def test_a_weight_moves_back_by_its_rate_and_distance() -> None:
    method = toy_method("clip")
    method.pretrained = {"image": "tower", "text": "encoder"}
    config = OPTIMIZERS["groups"]
    optimizer: Any = build_optimizer(method, config)
    anchor = WeightAnchor(method, 3.0)
    start = {name: value.clone() for name, value in method.named_parameters()}
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = {name: value.clone() for name, value in method.named_parameters()}
    anchor.pull(optimizer.param_groups)
    for name, value in method.named_parameters():
        pulled = name.startswith(("towers.image.", "towers.text.encoder"))
        expected = before[name] - pulled * rates[value] * 3.0 * (before[name] - start[name])
        torch.testing.assert_close(value.detach(), expected, rtol=1e-12, atol=1e-12)
    assert len(set(rates.values())) > 2


def test_adapters_and_frozen_weights_are_not_anchored_and_the_start_shares_them() -> None:
    method = toy_method("clip")
    method.pretrained = {"image": "tower", "text": "tower"}
    adapt(method.towers["image"], name="dora", rank=2)
    method.tower("text").encoder.layers[0].requires_grad_(False)  # type: ignore[index]
    names = {name for name, _ in anchored_weights(method)}
    assert names == {"image.head.weight", "text.encoder.layers.2.weight", "text.encoder.layers.2.bias", "text.head.weight"}
    anchor = FeatureAnchor(method, 1.0)
    assert not [name for name, _ in anchor.towers.named_parameters() if "parametrizations" in name]
    own = {p.data_ptr() for p in method.towers.parameters() if not p.requires_grad}
    shared = {p.data_ptr() for p in anchor.towers.parameters()} & own
    assert len(shared) == len(own)
    views = toy_batch(method, 5).views
    for view, rows in anchor.rows([views]).items():
        torch.testing.assert_close(rows, method.eval().tower(view)(views[view]))


@pytest.fixture(scope="module")
def base(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny_config(folder, tmp_path_factory.mktemp("base") / "base", "--train.steps", "6")).run_dir


TOWERS_OF_INIT = tuple(flag for name in ("image", "text") for flag in (f"--{name}.encoder", "null", f"--{name}.head", "null"))


def tuned(folder: Path, base: Path, run_dir: Path, *flags: str) -> Config:
    return tiny_config(folder, run_dir, "--init", str(base), *TOWERS_OF_INIT, "--optim.weight_decay", "0", *flags)


def distance(run_dir: Path, base: Path) -> float:
    weights, start = (load_file(folder / "model/model.safetensors") for folder in (run_dir, base))
    return float(torch.stack([(weights[name] - start[name]).norm() for name in start]).norm())


def test_a_run_stays_nearer_to_its_start(folder: Path, base: Path, tmp_path: Path) -> None:
    found = {}
    for name, flags in {
        "free": (),
        "weights": ("--train.anchor.l2_sp", "100"),
        "features": ("--train.anchor.features", "30"),
    }.items():
        train(tuned(folder, base, tmp_path / name, *flags))
        found[name] = distance(tmp_path / name, base)
    assert found["weights"] < 0.8 * found["free"]
    rows = read_log(tmp_path / "features/metrics.jsonl")
    assert rows[0]["feature_distance"] == pytest.approx(0, abs=1e-5), "the first step is taken at the start"
    assert all(row["feature_distance"] > 0 for row in rows[1:])
    assert not any("feature_distance" in row for row in read_log(tmp_path / "weights/metrics.jsonl"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--init", "null"), r"train\.anchor\.l2_sp keeps a trained model from changing, and nothing is trained yet: set init"),
        (("--image.freeze", "true", "--text.freeze", "true"), None),
        (("--image.adapt", "{}", "--text.adapt", "{}"), None),
        (
            ("--optim.groups", "[{match: '^(image|text)[.]', freeze: true}]"),
            r"train\.anchor\.l2_sp has no effect: all weights that are trained are new; leave it out",
        ),
        (
            ("--optim.lr", "0.2"),
            r"train\.anchor\.l2_sp 10 times the learning rate 0\.2 moves weights beyond .*: give less than 5",
        ),
        (("--optim.groups", "[{match: '^log_scale', lr: 1}]"), None),
        (("--train.anchor.l2_sp", "-1"), r"train\.anchor\.l2_sp is -1"),
        (
            ("--train.anchor.features", "1", "--image.head", "{name: linear, args: {embed_dim: 16}}"),
            r"train\.anchor\.features compares .*, and the head of the image tower is new: keep the head of init",
        ),
        (
            ("--train.anchor.features", "1", "--text", "null", "--method", "{name: byol}"),
            r"train\.anchor\.features compares embeddings, and BYOL compares what a predictor makes of them: take",
        ),
    ],
)
def test_what_has_no_effect_is_refused(
    folder: Path, base: Path, tmp_path: Path, flags: tuple[str, ...], message: str | None
) -> None:
    def plan() -> None:
        given = tiny_config if "--init" in flags else tuned
        arguments = (folder, tmp_path / "run") if "--init" in flags else (folder, base, tmp_path / "run")
        make_plan(given(*arguments, "--train.anchor.l2_sp", "10", *flags), 1)

    if message is None:
        plan()
        return
    with pytest.raises(UserError, match=message) as caught:
        plan()
    assert "\n" not in str(caught.value)


def test_frozen_towers_have_no_features_to_anchor(folder: Path, base: Path, tmp_path: Path) -> None:
    frozen = ("--optim.groups", "[{match: '^(image|text)[.]', freeze: true}]")
    with pytest.raises(UserError, match=r"train\.anchor\.features has no effect: the towers that have trained weights are"):
        make_plan(tuned(folder, base, tmp_path / "run", "--train.anchor.features", "1", *frozen), 1)


def test_the_doctor_warns_of_two_pulls(folder: Path, base: Path, tmp_path: Path) -> None:
    config = tuned(folder, base, tmp_path / "run", "--train.anchor.l2_sp", "1", "--optim.weight_decay", "0.1")
    assert [one for one in diagnose(config).warnings if one.startswith("optim.weight_decay 0.1 pulls weights to zero")]


def test_the_start_is_compared_on_resume(folder: Path, base: Path, tmp_path: Path) -> None:
    init, run_dir = tmp_path / "init", tmp_path / "run"
    train(tiny_config(folder, init, "--train.steps", "1", "--train.seed", "1"))
    flags = ("--train.anchor.l2_sp", "1", "--train.steps", "2")
    train(tuned(folder, init, run_dir, *flags))
    (init / "model/model.safetensors").write_bytes((base / "model/model.safetensors").read_bytes())
    with pytest.raises(UserError, match=rf"on other anchors: the image tower of {init} had the fingerprint \w{{8}} and has"):
        train(tuned(folder, init, run_dir, *flags, "--resume"))


def test_what_is_trained_before_the_first_step_is_known(folder: Path, base: Path, tmp_path: Path) -> None:
    for flags, expected in (
        ((), {"image": "tower", "text": "tower"}),
        (("--image.head", "{name: linear, args: {embed_dim: 16}}"), {"image": "encoder", "text": "tower"}),
    ):
        assert build_method(tuned(folder, base, tmp_path / "run", *flags)).pretrained == expected
    assert build_method(tiny_config(folder, tmp_path / "run")).pretrained == {}


def test_a_copy_of_the_start_does_not_move() -> None:
    method, anchor = moved("clip")
    before = copy.deepcopy(anchor.towers.state_dict())
    nn.init.ones_(next(method.towers.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in anchor.towers.state_dict().items())
