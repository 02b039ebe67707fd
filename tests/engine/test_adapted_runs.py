"""Runs that train adapters: settings, checkpoints of megabytes, a merged model, and the base that they belong to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import mmcl
from mmcl.config import Config, read_as
from mmcl.encoders.adapters import adapt, adapters
from mmcl.engine.optim import build_optimizer
from mmcl.engine.parameter_groups import group_parameters
from mmcl.errors import UserError
from mmcl.interop.save import save_model
from mmcl.runs.build import build_method
from mmcl.runs.doctor import diagnose
from mmcl.runs.plan import make_plan
from mmcl.runs.run import train
from tests.engine.tiny import tiny_config
from tests.narrow import of_type

BOTH = ("--image.adapt", "{name: lora, args: {rank: 2}}", "--text.adapt", "{name: dora, args: {rank: 3}}")
FROM_INIT = ("--image.encoder", "null", "--image.head", "null", "--text.encoder", "null", "--text.head", "null")


@pytest.fixture(scope="module")
def base(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model to start from."""
    return train(tiny_config(folder, tmp_path_factory.mktemp("base") / "base", "--train.steps", "3")).run_dir


def adapted_config(folder: Path, base: Path, run_dir: Path, *flags: str) -> Config:
    return tiny_config(folder, run_dir, "--init", str(base), *FROM_INIT, *BOTH, *flags)


@pytest.fixture(scope="module")
def adapted(folder: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(adapted_config(folder, base, tmp_path_factory.mktemp("adapted") / "run")).run_dir


def tensors_of(run_dir: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    [*_, last] = sorted((run_dir / "checkpoints").iterdir())
    return load_file(last / "model.safetensors"), load_file(last / "optimizer.safetensors")


def test_the_model_of_a_run_is_merged(base: Path, adapted: Path) -> None:
    """Matrices have changed by their adapters alone, and everything else of the encoders not at all."""
    before, after = (load_file(run / "model/model.safetensors") for run in (base, adapted))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    heads = {name for name in before if ".head." in name}
    method = build_method(read_as(Config, adapted / "config.yaml"))
    weights = {name.removeprefix("towers.") for name, _ in adapters(method)}
    assert changed == heads | weights
    state, _ = tensors_of(adapted)
    for name in weights:
        owner, _, own = name.rpartition(".")
        A, B = (state[f"towers.{owner}.parametrizations.{own}.0.{key}"] for key in "AB")
        whole = before[name].flatten(1).double() + 16 / len(A) * (B.double() @ A.double())
        if name.startswith("text."):
            magnitude = state[f"towers.{owner}.parametrizations.{own}.0.magnitude"].double()
            whole = whole * (magnitude / whole.norm(dim=1))[:, None]
        torch.testing.assert_close(after[name].flatten(1).double(), whole, rtol=1e-5, atol=1e-6)
    mmcl.load_model(adapted)


def test_a_checkpoint_holds_what_is_trained(adapted: Path) -> None:
    state, moments = tensors_of(adapted)
    trained = {name for name in state if ".parametrizations." in name or ".head." in name or name == "log_scale"}
    statistics = {name for name in state if "running_" in name or "num_batches" in name}
    assert state.keys() == trained | statistics
    assert {name.rpartition("/")[0] for name in moments} == trained
    assert not [name for name in state if name.endswith(".original")]
    assert not [name for name in state if "token_embedding" in name], "the vocabulary is the base's"


def test_adapters_and_magnitudes_do_not_decay(folder: Path, base: Path, tmp_path: Path) -> None:
    config = adapted_config(folder, base, tmp_path / "run", "--optim.weight_decay", "0.5")
    method = build_method(config)
    decays = {p: group["weight_decay"] for group in build_optimizer(method, config.optim).param_groups for p in group["params"]}
    found = [decays[p] for _, adapter in adapters(method) for p in adapter.parameters()]
    assert found
    assert set(found) == {0.0}
    assert {decays[p] for p in method.towers.parameters() if p.requires_grad} == {0.0, 0.5}, "heads decay"
    frozen = [p for p in method.parameters() if not p.requires_grad]
    assert frozen
    assert not set(frozen) & decays.keys()


def test_adapters_have_the_rate_of_matrices_and_a_decay_on_request(folder: Path, base: Path, tmp_path: Path) -> None:
    """A magnitude of DoRA is a vector, but none of the biases and norms to which `optim.bias_lr` belongs."""
    rates = ("--optim.lr", "0.02", "--optim.bias_lr", "0.5", "--optim.weight_decay", "0.1")
    rules = ("--optim.groups", "[{match: '^text[.]encoder', scale: 0.5, weight_decay: 0.3}]")
    config = adapted_config(folder, base, tmp_path / "run", *rates, *rules)
    method = build_method(config)
    found = {p: (g["lr"], g["weight_decay"]) for g in build_optimizer(method, config.optim).param_groups for p in g["params"]}
    options = {name: {found[p] for p in adapter.parameters()} for name, adapter in adapters(method)}
    assert {name.split(".")[1] for name in options} == {"image", "text"}
    for name, given in options.items():
        assert given == ({(0.02, 0.0)} if name.startswith("towers.image.") else {(0.01, 0.3)})
    assert [group.name for group in group_parameters(method, config.optim)] == [
        "adapters (^text[.]encoder)",
        "matrices, tables",
        "biases, norms, scales",
        "adapters",
    ]


def test_the_base_is_not_changed_by_another_of_the_same_name(folder: Path, base: Path, tmp_path: Path) -> None:
    """The weights at the path of `init` are replaced between the start and the resume."""
    init = tmp_path / "init"
    train(tiny_config(folder, init, "--train.steps", "1", "--train.seed", "1"))
    run_dir = tmp_path / "run"
    train(adapted_config(folder, init, run_dir, "--train.steps", "2"))
    (init / "model/model.safetensors").write_bytes((base / "model/model.safetensors").read_bytes())
    with pytest.raises(
        UserError, match=rf"other frozen weights: the image tower of {init} had the fingerprint \w{{8}} and has"
    ):
        train(adapted_config(folder, init, run_dir, "--train.steps", "2", "--resume"))


WITHOUT = ("--init", "null")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--image.freeze", "true", "--image.adapt", "{name: lora}"), r"^image\.adapt and image\.freeze exclude each other"),
        (
            ("--image.adapt", "{name: lora}"),
            r"^image\.adapt changes trained weights, and nothing is trained yet: set init to a",
        ),
        (("--image.adapt", "{name: lor}"), r"^image\.adapt: unknown adapter 'lor'; did you mean 'lora'"),
        (("--image.adapt.args.rnk", "3"), r"^image\.adapt: unknown argument of adapter 'lora': 'rnk'; did you mean 'rank'"),
    ],
)
def test_settings_that_cannot_be(folder: Path, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(tiny_config(folder, tmp_path / "run", *flags), 1)


def test_errors_of_adapters_name_their_setting(folder: Path, base: Path, tmp_path: Path) -> None:
    for flags, message in (
        (("--image.adapt.where", "attn"), r"^image\.adapt: where is 'attn', which matches no matrix .*: \w"),
        (("--text.adapt.args.rank", "0"), r"^text\.adapt: adapter: rank 0"),
    ):
        with pytest.raises(UserError, match=message):
            make_plan(adapted_config(folder, base, tmp_path / "run", *flags), 1)


@pytest.mark.parametrize(
    ("encoder", "is_allowed"),
    [
        ({"name": "timm", "args": {"name": "test_vit"}}, False),
        ({"name": "timm", "args": {"name": "test_vit", "pretrained": "FILE"}}, True),
        ({"name": "torchvision", "args": {"name": "resnet18", "pretrained": False}}, False),
        ({"name": "open_clip", "args": {"arch": "ViT-B-32"}}, False),
        ({"name": "transformers", "args": {"config": {"model_type": "vit"}}}, False),
        ({"name": "small_cnn", "args": {}}, False),
    ],
)
def test_an_encoder_must_come_with_weights(encoder: dict[str, Any], is_allowed: bool, folder: Path, tmp_path: Path) -> None:
    if is_allowed:
        torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pt")
        encoder["args"]["pretrained"] = str(tmp_path / "weights.pt")
    config = tiny_config(folder, tmp_path / "run", "--image.encoder", json.dumps(encoder), "--image.adapt", "{}")
    if is_allowed:
        assert any(True for _ in adapters(build_method(config)))
        return
    with pytest.raises(UserError, match=r"image\.adapt changes trained weights, and nothing is trained yet"):
        build_method(config)


def unreached(tower: nn.Module) -> None:
    tower.encoder.unused = nn.Linear(3, 3)  # type: ignore[union-attr]


def silent(tower: nn.Module) -> None:
    """Its output is multiplied by zero."""
    tower.encoder.silent = nn.Linear(3, 3)  # type: ignore[union-attr]
    tower.encoder.register_forward_hook(lambda module, inputs, output: output + 0 * module.silent(output[:, :3]).sum())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (unreached, r"A of the adapter of towers\.image\.encoder\.unused\.weight has no gradient, because the loss does not"),
        (silent, r"A of the adapter of towers\.image\.encoder\.silent\.weight has a gradient of zero, as the whole adapter"),
    ],
)
def test_an_adapter_that_cannot_learn_stops_the_run(
    spoil: Callable[[nn.Module], None], message: str, folder: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = adapt

    def spoiled(tower: nn.Module, **options: Any) -> Any:
        if options["name"] == "lora":
            spoil(tower)
        return honest(tower, **options)

    monkeypatch.setattr("mmcl.runs.towers.adapt", spoiled)
    config = adapted_config(
        folder, base, tmp_path / "run", "--image.adapt.where", "conv|unused|silent", "--image.adapt.args.rank", "2"
    )
    with pytest.raises(UserError, match=message):
        train(config)


def test_live_evaluation_sees_the_adapters_and_the_report_the_merged_model(folder: Path, base: Path, tmp_path: Path) -> None:
    evaluated = ("--data.holdout", "0.3", "--evaluate", "[{name: retrieval, label: held_out, every: 8}]")
    result = train(adapted_config(folder, base, tmp_path / "run", *evaluated))
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    live = next(row for row in rows if any("held_out/" in key for key in row))
    trained = {f"{m.data}/{m.metric}": m.value for m in result.report.metrics if m.model == "trained"}
    both = {key: value for key, value in live.items() if trained.get(key) is not None}
    assert both
    assert all(trained[key] == pytest.approx(value) for key, value in both.items())
    assert {"trained", "before"} <= {metric.model for metric in result.report.metrics}


def test_save_model_merges_what_a_loop_of_ones_own_adapted(base: Path, tmp_path: Path) -> None:
    model = mmcl.load_model(base, device="cpu")
    mmcl.adapt(model.towers["text"], rank=2)
    with torch.no_grad():
        for _, adapter in adapters(model.towers):
            of_type(Tensor, adapter.B).normal_()
    save_model(tmp_path / "saved", model.towers, logit_scale=model.logit_scale)
    again = mmcl.load_model(tmp_path / "saved", device="cpu")
    texts = ["a red square", "a blue square"]
    np.testing.assert_allclose(again.encode_text(texts), model.encode_text(texts), atol=1e-6)
    start = mmcl.load_model(base, device="cpu")
    assert np.abs(start.encode_text(texts) - model.encode_text(texts)).max() > 1e-2
    half, expected = mmcl.merge([start, model]), mmcl.merge([start, again])
    np.testing.assert_allclose(half.encode_text(texts), expected.encode_text(texts), atol=1e-6)
    assert model.fingerprint == again.fingerprint


def test_the_doctor_says_what_is_saved_and_what_makes_no_sense(
    folder: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients and moments are those of what is trained; a moving average and anchors are copies of it."""
    monkeypatch.setenv("COLUMNS", "80")
    flags = ("--train.ema", "0.9", "--train.anchor.l2_sp", "1", "--optim.weight_decay", "0", "--image.adapt.args.rank", "40")
    found = diagnose(adapted_config(folder, base, tmp_path / "run", *flags))
    trained = 4 * found.trainable
    heads, temperature, memory = 4 * 2 * 16 * 32, 4, found.footprint.memory
    assert (memory.training, memory.average, memory.anchors) == (3 * trained, trained, heads)
    assert memory.adapters == 4 * (trained - heads - temperature)
    assert memory.weights == 4 * (found.trainable + found.frozen)
    assert [line.split()[0] for line in found.adapters] == ["image", "text"]
    text = found.to_text()
    assert "as in full training, see checkpoint_activations and micro_batch" in " ".join(text.split())
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("warning"))
    said = " ".join(found.warnings)
    assert "parameters, the weight" in said
    assert "train.anchor.l2_sp pulls nothing in the image and text encoder" in said
    plain = diagnose(tiny_config(folder, tmp_path / "plain"))
    assert (plain.adapters, plain.footprint.memory.added, plain.advice) == ((), 3 * 4 * plain.trainable, "")
    assert plain.needed == plain.footprint.bytes(plain.share) > plain.footprint.memory.added
