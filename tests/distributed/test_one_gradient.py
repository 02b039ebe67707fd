"""Loss, gradients and training on W processes and any micro-batches equal those of one whole batch."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmcl.config import DistillationConfig, MatryoshkaConfig
from mmcl.core.cached_backward import cached_backward, split_views
from mmcl.core.gather import gather_embeddings, gather_rows, row_counts
from mmcl.encoders.adapters import adapt, adapters
from mmcl.encoders.tower import Tower
from mmcl.engine.compilation import CompiledEncoders
from mmcl.engine.matryoshka import NestedLoss
from mmcl.engine.stored_teachers import DistilledLoss, StoredTeacher, is_teachable
from mmcl.engine.weight_average import WeightAverage
from mmcl.engine.weight_layout import ddp_options
from mmcl.methods import METHODS
from mmcl.methods.method import Method
from mmcl.testing.toys import embed, positives_of, toy_batch, toy_method, toy_tower
from mmcl.types import Batch, Embeddings, RunFacts
from tests.distributed.harness import run_processes
from tests.distributed.patches import smaller_tower, some_patches, transformer_tower
from tests.grid import grid, sample_of

ROWS = 84  # cut into five, the share of 1, 2, 3 or 4 processes leaves a ragged last piece
STEPS = 3
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
LAYOUTS = {"whole": 1, "two pieces": 2, "five pieces, tiled": 5, "uneven shares, tiled": 2}

State = dict[str, Tensor]


def train(method: Method, step_of: Callable[[int], tuple[Tensor, Embeddings, Batch]]) -> State:
    """A few steps of AdamW. Returns loss and gradients of the first, and the state after the last: weights, their average,
    teachers, queues."""
    learning = [p for p in method.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(learning, lr=1e-3, eps=1e-3)
    if learning[0].dtype == torch.float32 and not method.unit_rows:
        # The gradients of some biases are zero but for rounding (Barlow Twins, VICReg), of which Adam would make steps.
        optimizer = torch.optim.SGD(learning, lr=1e-3, momentum=0.9)
    state: State = {}
    average = WeightAverage(method, 0.3)
    for step in range(STEPS):
        loss, embeddings, batch = step_of(step)
        if step == 0:
            state["loss"] = loss
            state |= {f"gradient of {name}": p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        method.commit(embeddings, batch)
        average.update()
    state |= {f"average of {name}": value for name, value in average.tensors.items()}
    return state | {f"trained {name}": value.detach().clone() for name, value in method.state_dict().items()}


def configured(name: str, dtype: torch.dtype) -> Method:
    """A method on toy towers; as in "clip with lora", with adapters that have already been trained, "with prefixes", "with
    teachers", "with neighbors" as their targets, or "with patches" or "smaller images", of which most steps see some."""
    name, _, more = name.partition(" with ")
    adapter = more if more in ("lora", "dora") else ""

    def adapted_tower() -> Tower:
        tower = toy_tower()
        adapt(tower, name=adapter, rank=3)
        for _, one in adapters(tower):
            nn.init.normal_(one.B, std=0.3)  # type: ignore[arg-type]
        return tower

    towers = {"lora": adapted_tower, "dora": adapted_tower, "patches": transformer_tower, "smaller images": smaller_tower}
    with mock.patch("mmcl.testing.toys.toy_tower", towers[more]) if more in towers else nullcontext():
        method = toy_method(name, dtype)
    taught = DistillationConfig(weight=0.7, targets="neighbors" if more == "neighbors" else "pairs")
    distilled = DistilledLoss(method, teachers_of(method), taught) if "teachers" in more or more == "neighbors" else None
    if "prefixes" in more:
        nested = NestedLoss(method, MatryoshkaConfig(dims=(4, 2), weights=(2.0, 1.0, 3.0)), distilled)
        method.loss = nested  # type: ignore[method-assign]
    elif distilled:
        method.loss = distilled  # type: ignore[method-assign]
    method.configure(RunFacts(global_batch=ROWS, total_steps=STEPS, steps_per_epoch=2, samples=ROWS))
    return method


def teachers_of(method: Method) -> list[StoredTeacher]:
    """Two at once and, but for sigmoids, a third that has seen images alone."""
    pairs = [
        StoredTeacher(name=name, scale=scale, bias=-2.0, has_text="text" in method.towers)
        for name, scale in (("first", 9.0), ("second", 4.0))
    ]
    images = StoredTeacher(name="images", scale=6.0, bias=None, has_text=False)
    return pairs if method.logit_bias is not None else [*pairs, images]


def batch_of_step(method: Method, step: int, dtype: torch.dtype) -> Batch:
    batch = toy_batch(method, ROWS, dtype)
    views = {view: x.roll(step, dims=1) for view, x in batch.views.items()}  # type: ignore[union-attr]
    rng = torch.Generator().manual_seed(step)
    widths = {"first/image": 3, "first/text": 3, "second/image": 7, "second/text": 7, "images/image": 4}
    stored = {name: torch.randn(ROWS, width, generator=rng, dtype=dtype) for name, width in widths.items()}
    return replace(batch, views=some_patches(method, views, until=STEPS - 1, step=step), stored=stored)


@functools.cache
def alone(name: str, dtype: torch.dtype) -> State:
    """The reference: one process and one batch, in plain autograd."""
    method = configured(name, dtype)

    def step_of(step: int) -> tuple[Tensor, Embeddings, Batch]:
        batch = batch_of_step(method, step, dtype)
        embeddings = embed(method, batch)
        loss = method.loss(embeddings, batch).loss
        loss.backward()
        return loss.detach(), embeddings, batch

    return train(method, step_of)


def share_of(batch: Batch, rank: int, world: int, *, even: bool) -> Batch:
    weights = [1] * world if even else list(range(1, world + 1))
    start, stop = (round(ROWS * sum(weights[:r]) / sum(weights)) for r in (rank, rank + 1))
    part = slice(start, stop)
    assert batch.labels is not None
    views = {name: view[part] for name, view in batch.views.items()}
    stored = {name: rows[part] for name, rows in batch.stored.items()}
    return Batch(views, batch.ids[part], batch.index[part], labels=batch.labels[part], stored=stored)


def together(rank: int, world: int, name: str, dtype: torch.dtype, layout: str) -> State:
    """As the engine does it: DDP averages the gradients, so the shares of the loss are multiplied by their number."""
    method = configured(name, dtype)
    encode = DistributedDataParallel(method, **ddp_options(method).to_kwargs()) if world > 1 else method
    even = "uneven" not in layout

    def step_of(step: int) -> tuple[Tensor, Embeddings, Batch]:
        local = share_of(batch_of_step(method, step, dtype), rank, world, even=even)
        counts = None if even else row_counts(local.ids)

        def loss_of(rows: Mapping[str, Tensor]) -> tuple[Tensor, Embeddings]:
            ids = positives_of(method, local)
            embeddings = gather_embeddings(rows, ids, counts, index=local.index, stored=local.stored)
            return method.loss(embeddings, local).loss, embeddings

        loss, embeddings = cached_backward(
            encode,
            split_views(local.views, math.ceil(len(local.ids) / LAYOUTS[layout])),
            loss=loss_of,
            backward=lambda result: (result[0] * world).backward(),
            seed=torch.default_generator.manual_seed,  # the other one writes down a stack trace for every kind of device
            no_sync=encode.no_sync if isinstance(encode, DistributedDataParallel) else nullcontext,
            loss_parameters=method.loss_parameters,
        )
        loss = loss.detach()
        if world > 1:
            torch.distributed.all_reduce(loss)
        return loss, embeddings, local

    with small_tiles() if "tiled" in layout else nullcontext():
        return train(method, step_of)


@contextmanager
def small_tiles() -> Iterator[None]:
    """As if every batch were a large one."""
    with ExitStack() as stack:
        for module in ("info_nce", "sigmoid", "distillation"):
            stack.enter_context(mock.patch(f"mmcl.core.{module}.choose_tile", return_value=(19, 23)))
        yield


ADAPTED = ("clip with lora", "byol with dora")
"""Adapters of one tower that is trained by itself, and of one that a teacher follows."""

NESTED = tuple(f"{name} with prefixes" for name in METHODS if toy_method(name).nested_rows)
"""The loss over prefixes of the rows, of every method that has one."""

TEACHABLE = tuple(f"{name} with teachers" for name in METHODS if is_teachable(toy_method(name)))
TAUGHT = (*TEACHABLE, "clip with prefixes and teachers", "clip with neighbors")
"""The loss mixed with what stored teachers say, of every method that has a temperature."""

SOME = ("clip with patches", "simclr with patches", "momentum_clip with patches", "clip with smaller images")
"""Images of which some of the patches are seen: of one view, of two, by a teacher too, and of smaller images."""

WORLDS, NAMES = (1, 2, 3, 4), (*METHODS, *ADAPTED, *NESTED, *TAUGHT, *SOME)
KINDS = (*((torch.float64, layout) for layout in LAYOUTS), (torch.float32, "two pieces"))
SAMPLE = sample_of(WORLDS[:3], NAMES, KINDS)
"""Four processes gather as three do, and have a share of those in test_sharded_weights.py."""


def all_cases(rank: int, world: int, cases: list[tuple[str, torch.dtype, str]]) -> dict[Any, State]:
    return {case: together(rank, world, *case) for case in cases}


@functools.cache
def all_ranks(world: int, sampled: bool) -> list[dict[Any, State]]:
    """The cases of the sample, or all others, in one start of the processes."""
    kept = [case for case in itertools.product(NAMES, KINDS) if ((world, *case) in SAMPLE) == sampled]
    cases = [(name, *kind) for name, kind in kept]
    return [all_cases(0, 1, cases)] if world == 1 else run_processes(world, all_cases, cases)


@pytest.mark.parametrize(("world", "name", "kind"), grid(WORLDS, NAMES, KINDS, sample=SAMPLE))
def test_training_is_that_of_one_process(world: int, name: str, kind: tuple[torch.dtype, str]) -> None:
    dtype, layout = kind
    expected = alone(name, dtype)
    learning = [key for key, p in configured(name, dtype).named_parameters() if p.requires_grad]
    assert any("parametrizations" in key for key in learning) == (name in ADAPTED)
    assert {f"gradient of {key}" for key in learning} <= expected.keys()
    # Gradients that are zero but for rounding, such as those of a bias under Barlow Twins, are small beside the others.
    whole_gradient = torch.stack([value.norm() for key, value in expected.items() if key.startswith("gradient")]).norm()
    for ours in all_ranks(world, (world, name, kind) in SAMPLE):
        state = ours[name, dtype, layout]
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            size = value.double().norm().clamp(min=float(whole_gradient / 10) if key.startswith("gradient") else 1e-3)
            error = (state[key] - value).double().norm() / size
            assert error <= TOLERANCE[dtype], f"{key}: relative error {error:.1e}"


def compiled(rank: int, world: int) -> dict[str, State]:
    """Training with compiled encoders, of all methods."""
    warnings.simplefilter("ignore")  # the compiler's own, which it hides, unless warnings are errors
    original = configured

    def compiled_method(name: str, dtype: torch.dtype) -> Method:
        method = original(name, dtype)
        CompiledEncoders(method, backend="aot_eager").__enter__()
        return method

    with mock.patch(f"{__name__}.configured", compiled_method):
        return {name: together(rank, world, name, torch.float64, "two pieces") for name in NAMES}


@pytest.mark.long
@pytest.mark.parametrize("world", [2, 1])
def test_training_of_compiled_encoders_is_that_of_one_process(world: int) -> None:
    # Alone in a process of its own, too, because tests that fork must follow.
    for found in run_processes(world, compiled):
        for name, state in found.items():
            expected = alone(name, torch.float64)
            assert state.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(state[key], value, rtol=1e-9, atol=1e-12, msg=f"{name}, {key}")


def with_dropout(name: str) -> Method:
    method = toy_method(name)
    for tower in method.towers.values():
        tower.encoder.layers.insert(2, nn.Dropout(0.4))  # type: ignore[operator, union-attr]
    return method


@pytest.mark.parametrize("name", METHODS)
def test_dropout_masks_are_the_same_in_both_passes(name: str) -> None:
    """The reference keeps the graphs of all pieces, each encoded once after seeding with its number."""
    ours, reference = with_dropout(name), with_dropout(name)
    batch = toy_batch(ours, 11)
    pieces = split_views(batch.views, 4)

    def loss_of(method: Method, rows: Mapping[str, Tensor]) -> Tensor:
        ids = positives_of(method, batch)
        return method.loss(Embeddings(rows, rows, ids, ids, all_index=batch.index), batch).loss

    encoded = [reference.encode(piece) for number, piece in enumerate(pieces) if torch.manual_seed(number)]
    expected = loss_of(reference, {view: torch.cat([rows[view] for rows in encoded]) for view in encoded[0]})
    expected.backward()
    state_expected = torch.get_rng_state()

    loss = cached_backward(
        ours, pieces, loss=lambda rows: loss_of(ours, rows), backward=lambda loss: loss.backward(), seed=torch.manual_seed
    )
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-14)
    assert torch.equal(torch.get_rng_state(), state_expected)


def test_batch_norm_counts_every_piece_once() -> None:
    encode = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3))
    expected = nn.BatchNorm1d(3)
    data = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = encode

        def forward(self, views: Any) -> dict[str, Tensor]:
            return {"a": self.encode(views["a"])}

    cached_backward(
        Encoder(),
        split_views({"a": data}, 4),
        loss=lambda rows: rows["a"].square().sum(),
        backward=lambda loss: loss.backward(),
        seed=torch.manual_seed,
    )
    for piece in data.split(4):
        expected(piece)
    for name, value in expected.named_buffers():
        torch.testing.assert_close(encode[1].get_buffer(name), value)
    assert encode[1].track_running_stats


def test_an_odd_row_joins_the_piece_before() -> None:
    rows = {"a": torch.arange(13)}
    for size, lengths in {4: [4, 4, 5], 5: [5, 5, 3], 6: [6, 7], 12: [13], 13: [13], None: [13], 1: [1] * 13}.items():
        pieces = split_views(rows, size)
        assert [len(piece["a"]) for piece in pieces] == lengths
        assert torch.equal(torch.cat([piece["a"] for piece in pieces]), rows["a"])  # type: ignore[misc]
    norm = nn.BatchNorm1d(3)
    for piece in split_views({"a": torch.randn(13, 3)}, 4):
        norm(piece["a"])


@pytest.mark.parametrize("kind", ["module", "function", "bound method"])
def test_what_encodes_may_be_any_function_and_give_integers_too(kind: str) -> None:
    """Against one graph of all pieces."""
    torch.manual_seed(0)
    layer, data = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double(), torch.randn(9, 3, dtype=torch.float64)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, views: Any) -> dict[str, Tensor]:
            return encode(views)

    def encode(views: Any) -> dict[str, Tensor]:
        return {"a": layer(views["a"]), "class": views["a"].argmax(1), "kept": views["a"] > 0}

    def loss_of(rows: Mapping[str, Tensor]) -> Tensor:
        a, one, kept = rows["a"], rows["class"][:, None], rows["kept"].any(1)
        return (a * (1 + one)).pow(3).sum() + a[kept].sum()

    pieces = split_views({"a": data}, 4)
    encoded = [encode(piece) for piece in pieces]
    rows = {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}
    expected = torch.autograd.grad(loss_of(rows), list(layer.parameters()))
    module = Encoder()
    counted = layer[1].get_buffer("num_batches_tracked")
    before = counted.item()
    ways: dict[str, Callable[[Any], dict[str, Tensor]]] = {"module": module, "function": encode, "bound method": module.forward}
    cached_backward(ways[kind], pieces, loss=loss_of, backward=lambda loss: loss.backward(), seed=torch.manual_seed)
    torch.testing.assert_close([p.grad for p in layer.parameters()], list(expected), rtol=1e-10, atol=1e-12)
    if kind != "function":
        assert counted == before + len(pieces)


def weighted_squares(rank: int, world: int, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3, dtype=dtype))
    data = torch.arange(4 * world, dtype=dtype).view(world, 4)[rank : rank + 1]
    rows = gather_rows(data @ weight)
    (rows.square().sum() * (rank + 1)).backward()
    assert weight.grad is not None
    return weight.grad


def scattered(rank: int, world: int, dtype: torch.dtype) -> Tensor:
    """As on NCCL, which sends to each process only the sums of its own rows; gloo computes them here from those of all."""
    calls: list[int] = []

    def scatter(share: Tensor, rows: Tensor) -> None:
        calls.append(len(share))
        total = rows.clone()
        torch.distributed.all_reduce(total)
        share.copy_(total.chunk(world)[rank])

    with (
        mock.patch("mmcl.core.gather._scatters", return_value=True),
        mock.patch("torch.distributed.reduce_scatter_tensor", scatter),
    ):
        gradient = weighted_squares(rank, world, dtype)
    assert calls == [1]
    return gradient


@pytest.mark.parametrize("work", [weighted_squares, scattered])
def test_every_rank_contributes_to_the_gradient_of_a_row(work: Callable[..., Tensor]) -> None:
    """Rank r weighs the sum of squares by r + 1; a row's gradient must carry the weights of all ranks."""
    world, dtype = 3, torch.float64
    torch.manual_seed(0)
    weight = torch.randn(4, 3, dtype=dtype)
    data = torch.arange(4 * world, dtype=dtype).view(world, 4)
    for rank, gradient in enumerate(run_processes(world, work, dtype)):
        row = data[rank : rank + 1]
        expected = row.T @ (2 * row @ weight) * sum(range(1, world + 1))
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


def penalized_gradient(rank: int, world: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    data = torch.arange(4.0 * world, dtype=torch.float64).view(world, 4)[rank : rank + 1]
    loss = (rank + 1) * gather_rows(data @ weight).pow(4).sum()
    (grad,) = torch.autograd.grad(loss, weight, create_graph=True)
    found = torch.autograd.grad(grad.square().sum(), weight)[0]
    alone = 4 * sum(range(1, world + 1)) * data.T @ (data @ weight).pow(3)
    return found, torch.autograd.grad(alone.square().sum(), weight)[0]


def test_a_gradient_penalty_crosses_process_borders() -> None:
    """A row's gradient has a share of every rank, and so has the gradient of that gradient."""
    for found, expected in run_processes(3, penalized_gradient):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def uneven(rank: int, world: int) -> dict[str, Any]:
    """Rank r has r rows, the first none, each filled with its number in the whole."""
    offset = sum(range(rank))
    local = torch.arange(offset, offset + rank, dtype=torch.float64)[:, None].expand(-1, 2).clone().requires_grad_()
    counts = row_counts(local)
    embeddings = gather_embeddings({"a": local, "b": 10 * local[:, :1]}, torch.arange(offset, offset + rank), counts)
    # The sum of the two hands both nodes the same gradient tensor.
    total = gather_rows(local, counts) + gather_rows(local * 2, counts)
    (total.square().sum() / 2 + embeddings.all["b"].sum()).backward()
    found = {name: rows.detach() for name, rows in embeddings.all.items()}
    return {**found, "ids": embeddings.all_ids, "offset": embeddings.offset, "counts": counts, "grad": local.grad}


def test_uneven_shares_lie_in_rank_order() -> None:
    world = 3
    rows = torch.arange(3, dtype=torch.float64)[:, None]
    for rank, found in enumerate(run_processes(world, uneven)):
        assert found["counts"] == [0, 1, 2]
        assert found["offset"] == sum(range(rank))
        assert torch.equal(found["ids"], torch.arange(3))
        assert torch.equal(found["a"], rows.expand(-1, 2))
        assert torch.equal(found["b"], 10 * rows)
        own = rows[sum(range(rank)) : sum(range(rank + 1))].expand(-1, 2)
        expected = world * (9 * own + torch.tensor([10.0, 0.0], dtype=torch.float64))
        torch.testing.assert_close(found["grad"], expected, rtol=1e-12, atol=0)


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"counts \[3\] do not fit process 0 of 1 with 2 rows"):
        gather_rows(torch.zeros(2, 4), [3])
