"""Weights sharded over processes (FSDP): equal training, checkpoints that fit any layout, evaluation and resume."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmcl.config import GroupConfig, OptimConfig
from mmcl.core.cached_backward import cached_backward, split_views
from mmcl.core.gather import gather_embeddings
from mmcl.encoders.blocks import blocks
from mmcl.encoders.tower import TowerSpec, build_tower
from mmcl.engine.checkpoint import take_snapshot
from mmcl.engine.optim import build_optimizer, update_unless
from mmcl.engine.weight_average import WeightAverage
from mmcl.engine.weight_layout import ShardedWeights, gathered_weights
from mmcl.methods import METHODS
from mmcl.methods.method import Method
from mmcl.methods.simcse import SimCSE
from mmcl.testing.toys import positives_of, without_batch_norm
from mmcl.types import Batch, Embeddings, Tokens
from tests.arithmetic import network_tolerance
from tests.distributed.harness import run_processes, whole
from tests.distributed.test_one_gradient import ADAPTED, NESTED, SOME, TAUGHT, batch_of_step, configured, share_of
from tests.grid import grid, sample_of
from tests.narrow import of_type

CLIP = 0.05
OPTIMIZERS = {
    "adamw": OptimConfig(lr=1e-3, eps=1e-3, weight_decay=0.1, clip=CLIP),
    "sgd": OptimConfig(name="sgd", lr=1e-2),
    "lars": OptimConfig(name="lars", lr=1e-1, weight_decay=0.1),
    "muon": OptimConfig(lr=1e-3, eps=1e-3, muon_lr=1e-3),
    "groups": OptimConfig(
        lr=1e-3,
        eps=1e-3,
        muon_lr=1e-3,
        groups=(GroupConfig(match="^image[.]encoder", scale=0.1), GroupConfig(match="head|bias", lr=1e-2)),
    ),
    "layer decay": OptimConfig(name="sgd", lr=1e-2, layer_decay=0.5),
}
STEPS = 3
CASES = [(name, "adamw") for name in [*METHODS, *ADAPTED, *NESTED[:2], *TAUGHT[:2], *SOME]] + [
    ("byol", "sgd"),
    ("clip", "lars"),
    ("swav", "muon"),
]
CASES += [("clip with lora", "lars"), ("byol with dora", "muon"), ("clip", "groups")]

State = dict[str, Tensor]


@functools.cache
def alone(name: str, optimizer_name: str) -> State:
    """The reference: one process, plain autograd, torch's own clipping."""
    config = OPTIMIZERS[optimizer_name]
    method = configured(name, torch.float64)
    optimizer = build_optimizer(method, config)
    average, norms = WeightAverage(method, 0.3), []
    for step in range(STEPS):
        batch = batch_of_step(method, step, torch.float64)
        rows, ids = method.encode(batch.views), positives_of(method, batch)
        embeddings = Embeddings(rows, rows, ids, ids, all_index=batch.index, all_stored=batch.stored)
        method.loss(embeddings, batch).loss.backward()
        norms.append(nn.utils.clip_grad_norm_(method.parameters(), config.clip or math.inf))
        optimizer.step()
        optimizer.zero_grad()
        method.commit(embeddings, batch)
        average.update()
    return state_of(method, optimizer, norms, average)


def accelerator() -> Any:
    """What `ShardedWeights` takes of Accelerate's, in full precision."""
    keep = {"prepare_model": lambda model, **_: model, "prepare_optimizer": lambda optimizer: optimizer}
    return SimpleNamespace(device=torch.device("cpu"), **keep)


def sharded_over(rank: int, world: int, name: str, optimizer_name: str, pieces: int) -> State:
    config, method = OPTIMIZERS[optimizer_name], configured(name, torch.float64)
    weights = ShardedWeights(accelerator(), method, config)
    assert all(isinstance(p, DTensor) for p in method.towers.parameters())
    average, norms = WeightAverage(method, 0.3), []
    for step in range(STEPS):
        local = share_of(batch_of_step(method, step, torch.float64), rank, world, even=True)

        def loss_of(rows: Mapping[str, Tensor], local: Batch = local) -> tuple[Embeddings, Tensor]:
            ids = positives_of(method, local)
            embeddings = gather_embeddings(rows, ids, index=local.index, stored=local.stored)
            return embeddings, method.loss(embeddings, local).loss

        embeddings, _ = cached_backward(
            weights.encode,
            split_views(local.views, math.ceil(len(local.ids) / pieces)),
            loss=loss_of,
            backward=lambda result: (result[1] * world).backward(),
            seed=torch.default_generator.manual_seed,
            no_sync=weights.no_sync,
            loss_parameters=method.loss_parameters,
        )
        weights.reduce()
        norms.append(weights.clip(config.clip))
        for is_bad in (True, False):  # an update that is undone leaves no trace
            update_unless(weights.optimizer, torch.tensor(is_bad))
            weights.optimizer.step()
        weights.optimizer.zero_grad()
        method.commit(embeddings, local)
        average.update()
    return state_of(method, weights.optimizer, norms, average)


def state_of(method: nn.Module, optimizer: Any, norms: list[Tensor], average: WeightAverage) -> State:
    """The state of a checkpoint, and the weights with the average in their place."""
    snapshot = whole(take_snapshot(STEPS, method, optimizer, average=average.tensors))
    with average.in_place():
        averaged = whole(take_snapshot(STEPS, method, optimizer)).model
    again = whole(take_snapshot(STEPS, method, optimizer)).model
    assert all(torch.equal(again[key], value) for key, value in snapshot.model.items()), "the weights are back"
    assert snapshot.average is not None
    parts = {"moment": snapshot.optimizer, "average": snapshot.average, "averaged": averaged}
    flat = {f"{part} {key}": value for part, tensors in parts.items() for key, value in tensors.items()}
    return {"norms": torch.stack(norms), **snapshot.model, **flat}


PIECES = {2: 1, 3: 5, 4: 2}
"""World size -> number of micro-batches."""
SAMPLE = sample_of(PIECES, CASES)


def all_cases(rank: int, world: int, cases: list[tuple[str, str]]) -> dict[Any, State]:
    return {case: sharded_over(rank, world, *case, PIECES[world]) for case in cases}


@functools.cache
def all_ranks(world: int, sampled: bool) -> list[dict[Any, State]]:
    """The cases of the sample, or all others, in one start of the processes."""
    return run_processes(world, all_cases, [case for case in CASES if ((world, case) in SAMPLE) == sampled])


@pytest.mark.parametrize(("world", "case"), grid(PIECES, CASES))
def test_training_is_that_of_one_process(world: int, case: tuple[str, str]) -> None:
    """Weights, their average, moments, teachers, queues and the gradient's norm."""
    expected = alone(*case)
    for state in all_ranks(world, (world, case) in SAMPLE):
        ours = state[case]
        assert ours.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-9, atol=1e-11, msg=functools.partial("{}: {}".format, key))


def text_method() -> Method:
    """A transformer of three layers, one scalar among its weights, and a head with batch norm."""
    torch.manual_seed(0)
    encoder = {"width": 12, "layers": 3, "heads": 2}
    head = {"hidden_dim": 10, "embed_dim": 6, "layers": 3}
    tower = build_tower(TowerSpec(modality="text", encoder="small_text", encoder_args=encoder, head="mlp", head_args=head))
    tower.encoder.strength = nn.Parameter(torch.tensor(1.0))
    return SimCSE(nn.ModuleDict({"text": tower}), temperature=0.5)


def texts(count: int, start: int) -> Tokens:
    tokenizer: Any = text_method().towers["text"].encoder.tokenizer  # type: ignore[union-attr]
    return of_type(Tokens, tokenizer([f"number {n} of the {n % 3}" for n in range(start, start + count)]))


def used(rank: int, world: int) -> dict[str, Any]:
    """A step of training on other texts in every process, an evaluation of other numbers of texts, and another step."""
    method = text_method()
    weights = ShardedWeights(accelerator(), method, OPTIMIZERS["adamw"])
    own = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in method.parameters())

    def step(number: int) -> None:
        tokens = texts(4, 100 * rank + number)
        sum(rows.square().sum() for rows in weights.encode(dict.fromkeys(method.views, tokens)).values()).backward()
        weights.reduce()
        weights.optimizer.step()
        weights.optimizer.zero_grad()

    step(0)
    method.eval()
    with gathered_weights(method), torch.inference_mode():
        encoded = [method.towers["text"](texts(2, number)) for number in range(rank + 1)]
    assert all(isinstance(p, DTensor) for p in method.towers.parameters() if p.ndim > 0), "taken apart again"
    state = whole(take_snapshot(1, method, weights.optimizer)).model
    method.train()
    step(1)
    return {
        "own": own,
        "units": len(blocks(method)),
        "rows": encoded,
        "state": state,
        "later": whole(take_snapshot(2, method, weights.optimizer)).model,
        "running": {name: x.clone() for name, x in method.named_buffers() if "running" in name},
    }


def test_uneven_evaluation_and_what_a_process_holds() -> None:
    """Processes that encode different numbers of texts do not wait for each other; the rows are those of the whole model,
    which has the running statistics of the first process everywhere; training continues afterwards."""
    found = run_processes(3, used)
    method = text_method()
    size = sum(p.numel() for p in method.parameters())
    assert found[0]["units"] == 3 + 3
    method.load_state_dict(found[0]["state"])
    method.eval()
    for rank, ours in enumerate(found):
        assert ours["own"] < 0.36 * size
        for number, rows in enumerate(ours["rows"]):
            expected_ND, tolerance = method.towers["text"](texts(2, number)), network_tolerance(method.towers["text"])
            torch.testing.assert_close(rows, expected_ND, rtol=0, atol=tolerance)
        assert len(ours["rows"]) == rank + 1
        assert ours["running"]
        for name, value in ours["running"].items():
            assert torch.equal(value, found[0]["running"][name])
        changed = [not torch.equal(ours["later"][key], ours["state"][key]) for key in ours["state"] if "weight" in key]
        assert all(changed)


def partly_frozen(rank: int, world: int) -> State:
    """Two steps with the two lower blocks frozen, each process on its share of twelve texts."""
    method = without_batch_norm(text_method())
    method.towers["text"].freeze(2)
    weights = ShardedWeights(accelerator(), method, OPTIMIZERS["layer decay"]) if world > 1 else None
    optimizer = build_optimizer(method, OPTIMIZERS["layer decay"]) if weights is None else weights.optimizer
    share = 12 // world
    for _ in range(2):
        tokens = texts(share, share * rank)
        rows = method.encode(dict.fromkeys(method.views, tokens))
        (world * sum(row[:, 0].sum() for row in rows.values())).backward()
        if weights is not None:
            weights.reduce()
        optimizer.step()
        optimizer.zero_grad()
    return whole(take_snapshot(2, method, optimizer)).model


def test_blocks_may_be_frozen() -> None:
    expected, start = partly_frozen(0, 1), text_method().state_dict()
    moved = {name for name, value in expected.items() if name in start and not torch.equal(value, start[name])}
    assert {name for name in moved if "blocks" in name} == {name for name in start if "blocks.2" in name}
    for state in run_processes(3, partly_frozen):
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6, msg=name)
            assert torch.equal(state[name], value) or name in moved


def test_blocks_are_found_by_structure() -> None:
    layer = nn.TransformerEncoderLayer(8, 2)
    stages = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()), nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()))
    mixed = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    net = nn.ModuleDict({"text": nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), "image": stages, "head": mixed})
    assert len(blocks(net)) == 3 + 2
    assert blocks(mixed) == []
