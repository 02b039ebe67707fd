"""Matryoshka training: the loss over prefixes, what a run writes, and what is refused. Exactness: `tests/distributed`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

import mmcl
from mmcl.config import MatryoshkaConfig
from mmcl.core.key_queue import KeyQueue
from mmcl.engine.log import read_log
from mmcl.engine.matryoshka import NestedLoss, check_matryoshka
from mmcl.errors import UserError
from mmcl.methods import METHODS
from mmcl.runs.plan import make_plan
from mmcl.runs.run import train
from mmcl.testing.toys import embed, toy_batch, toy_method
from tests.engine.tiny import tiny_config

WIDTH = 6
NESTED = [name for name in METHODS if toy_method(name).nested_rows]


@pytest.mark.parametrize("name", NESTED)
def test_the_loss_is_that_of_a_loop_over_models_of_each_width(name: str) -> None:
    """A model is made narrower by zeros in the weights of its heads, and its queue by zeros in the keys."""
    method, weights = toy_method(name), {2: 1.0, 4: 2.0, WIDTH: 5.0}
    batch = toy_batch(method, 8)
    found = NestedLoss(method, MatryoshkaConfig(dims=(2, 4), weights=(1, 2, 5)))(embed(method, batch), batch)
    expected = {}
    for dim in weights:
        narrow = toy_method(name)
        with torch.no_grad():
            teacher = getattr(narrow, "teacher", None)
            for towers in (narrow.towers, *([] if teacher is None else [teacher.net])):
                for tower in towers.values():
                    tower.head.weight[dim:] = 0
            for queue in (module for module in narrow.modules() if isinstance(module, KeyQueue)):
                queue.key_KD.copy_(F.pad(F.normalize(queue.key_KD[:, :dim]), (0, WIDTH - dim)))
        expected[dim] = narrow.loss(embed(narrow, batch), batch)
        torch.testing.assert_close(found.metrics[f"loss_{dim}"], expected[dim].loss.detach(), rtol=1e-9, atol=1e-12)
    mean = sum(weights[dim] * output.loss for dim, output in expected.items()) / 8
    torch.testing.assert_close(found.loss, mean, rtol=1e-9, atol=1e-12)
    for metric in expected[WIDTH].metrics:
        mean = sum(weights[dim] * output.metrics[metric] for dim, output in expected.items()) / 8
        torch.testing.assert_close(found.metrics[metric], mean, rtol=1e-9, atol=1e-12)


def test_rows_of_another_head_are_left_as_they_are() -> None:
    """SLIP compares views of images behind a head of their own, whose width may happen to be that of the embeddings."""
    method = toy_method("slip")
    batch = toy_batch(method, 8)
    with mock.patch.object(method, "loss", wraps=method.loss) as loss:
        NestedLoss(method, MatryoshkaConfig(dims=(2,)))(embed(method, batch), batch)
    seen = [call.args[0] for call in loss.call_args_list]
    assert [{name: row.shape[1] for name, row in one.all.items()} for one in seen] == [
        {"image": 2, "text": 2, "a": WIDTH, "b": WIDTH},
        dict.fromkeys(("image", "text", "a", "b"), WIDTH),
    ]
    assert all(one.all is one.local for one in seen), "else losses do not know that one process has all rows"


def test_a_run_logs_every_width_and_its_model_knows_them(folder: Path, tmp_path: Path) -> None:
    flags = ("--train.matryoshka.dims", "[4, 8]", "--train.matryoshka.weights", "[1, 1, 2]", "--train.steps", "3")
    run_dir = train(tiny_config(folder, tmp_path / "run", *flags)).run_dir
    for row in read_log(run_dir / "metrics.jsonl"):
        assert row["loss"] == pytest.approx((row["loss_4"] + row["loss_8"] + 2 * row["loss_16"]) / 4, rel=1e-5)
    model = mmcl.load_model(run_dir)
    assert model.matryoshka_dims == (4, 8)
    assert "matryoshka_dims=[4, 8]" in repr(model)
    model.save(tmp_path / "copy")
    assert mmcl.load_model(tmp_path / "copy").matryoshka_dims == (4, 8)
    assert mmcl.merge([model, mmcl.load_model(run_dir)]).matryoshka_dims == (4, 8)

    file = tmp_path / "copy/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "matryoshka_dims": [4, 16]}))
    with pytest.raises(UserError, match="its matryoshka_dims have 16, and its embeddings are 16 wide"):
        mmcl.load_model(tmp_path / "copy")

    with pytest.raises(UserError, match=r"train\.matryoshka\.dims"):
        train(tiny_config(folder, run_dir, *flags, "--train.matryoshka.dims", "[4, 6]", "--resume"))


DIMS = ("--train.matryoshka.dims", "[4, 8]")
REFUSED = {
    "too wide": (
        ("--train.matryoshka.dims", "[4, 17]"),
        r"train\.matryoshka\.dims has 17, and the full width, 16, is all there",
    ),
    "the full width": (
        ("--train.matryoshka.dims", "[16]"),
        r"train\.matryoshka\.dims has 16, and the full width, 16, always co",
    ),
    "twice": (("--train.matryoshka.dims", "[4, 4]"), r"train\.matryoshka\.dims repeats a width: 4, 4; give each once"),
    "one column": (("--train.matryoshka.dims", "[1]"), r"train\.matryoshka\.dims is \[1\]: give numbers of 2 or more"),
    "no whole number": (("--train.matryoshka.dims", "[4.5]"), r"train\.matryoshka\.dims\.0 must be a whole number"),
    "too few weights": (
        (*DIMS, "--train.matryoshka.weights", "[1, 1]"),
        r"train\.matryoshka\.weights are 2: give 3, one for each",
    ),
    "a weight of zero": (
        (*DIMS, "--train.matryoshka.weights", "[1, 0, 1]"),
        r"train\.matryoshka\.weights is \[1\.0, 0\.0, 1\.0\]",
    ),
    "weights alone": (("--train.matryoshka.weights", "[1]"), r"train\.matryoshka\.weights has no effect without train\.matryo"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_widths_that_a_run_cannot_use_are_refused_before_it(folder: Path, tmp_path: Path, case: str) -> None:
    flags, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        make_plan(tiny_config(folder, tmp_path / "run", *flags), 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_what_its_model_gives_or_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    config, method = tiny_config(folder, tmp_path / "run", "--train.matryoshka.dims", "[2, 4]"), toy_method(name)
    config = replace(config, method=replace(config.method, name=name))
    if name in NESTED and method.embedding == "projection":
        check_matryoshka(config, method)
        return
    why = "gives the features before it: set (image|text)" if name in NESTED else "has no prefixes; leave it"
    with pytest.raises(UserError, match=rf"train\.matryoshka\.dims.*{name}.*{why}"):
        check_matryoshka(config, method)


def test_a_model_of_features_without_a_head_is_trained(folder: Path, tmp_path: Path) -> None:
    flags = ("--image", "null", "--method.name", "simcse", "--text.head", "{name: none}", "--train.matryoshka.dims", "[4]")
    run_dir = train(tiny_config(folder, tmp_path / "run", *flags, "--train.steps", "2")).run_dir
    assert all("loss_4" in row for row in read_log(run_dir / "metrics.jsonl"))
    assert mmcl.load_model(run_dir).matryoshka_dims == (4,)
