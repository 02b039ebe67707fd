"""`gathered` over W processes with uneven shares gives value and gradients of one process with all rows, for every loss."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmcl import losses
from mmcl.errors import UserError
from mmcl.losses import LOSSES
from mmcl.testing.losses import toy_loss_arguments
from tests.distributed.harness import run_processes
from tests.narrow import of_type, present

ROWS, WIDTH = 13, 6
Case = tuple[dict[str, Tensor], dict[str, Any], Any]


def case(name: str) -> Case:
    """Inputs of an encoder and ids, one for each sample; what all processes have; the loss, with learned numbers."""
    entry = LOSSES.entry(name)
    arguments = toy_loss_arguments(entry, ROWS)
    per_sample = {key: arguments[key] for key in (*entry.rows, "ids") if key in arguments}
    shared = {key: value for key, value in arguments.items() if key not in per_sample}
    return per_sample, {key: value for key, value in shared.items() if key not in entry.learned}, Learned(name)


class Learned(nn.Module):
    """A loss of the table whose numbers are parameters, called as its function is."""

    def __init__(self, name: str):
        super().__init__()
        entry = LOSSES.entry(name)
        numbers = {key: nn.Parameter(torch.tensor(float(entry.args[key]), dtype=torch.float64)) for key in entry.learned}
        self.numbers, self.name = nn.ParameterDict(numbers), name

    def forward(self, *rows: Any, **shared: Any) -> Tensor:
        return LOSSES[self.name](*rows, **shared, **self.numbers)  # type: ignore[no-any-return]


class Model(nn.Module):
    """Encoder and loss in one module, as DDP requires."""

    def __init__(self, name: str, loss: Any):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, WIDTH)).double()
        self.order, self.loss = _names(name), loss

    def forward(self, per_sample: dict[str, Tensor], shared: dict[str, Any]) -> Tensor:
        encoded = {key: x if key == "ids" else self.encoder(x) for key, x in per_sample.items()}
        return self.loss(*(encoded.get(key) for key in self.order), **shared)  # type: ignore[no-any-return]


def _names(name: str) -> list[str]:
    """Rows and ids in the order of the function's parameters."""
    names = {*LOSSES.entry(name).rows, "ids"}
    return [key for key in inspect.signature(LOSSES[name]).parameters if key in names]


def outcome(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    grads = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach()} | {key.split("module.")[-1].replace("loss.loss.", "loss."): x for key, x in grads.items()}


@functools.cache
def alone(name: str) -> dict[str, Tensor]:
    per_sample, shared, loss = case(name)
    model = Model(name, loss)
    value = model(per_sample, shared)
    value.backward()
    return outcome(model, value)


def share(per_sample: dict[str, Tensor], rank: int, world: int) -> dict[str, Tensor]:
    """Process r has r + 1 times as many rows as the first."""
    starts = [round(ROWS * r * (r + 1) / (world * (world + 1))) for r in range(world + 1)]
    return {key: x[starts[rank] : starts[rank + 1]] for key, x in per_sample.items()}


def together(rank: int, world: int) -> dict[tuple[str, str], dict[str, Tensor]]:
    found = {}
    for name in LOSSES:
        for reduction in ("mean", "sum"):
            per_sample, shared, loss = case(name)
            model: nn.Module = Model(name, losses.gathered(loss, gradient_reduction=reduction))
            if reduction == "mean":
                model = DistributedDataParallel(model)
            value = model(share(per_sample, rank, world), shared)
            value.backward()
            if reduction == "sum":
                for p in model.parameters():
                    dist.all_reduce(present(p.grad))
            found[name, reduction] = outcome(model, value)
    return found


@functools.cache
def all_ranks(world: int) -> list[dict[tuple[str, str], dict[str, Tensor]]]:
    return run_processes(world, together)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_value_and_gradients_are_those_of_one_process(world: int, name: str, reduction: str) -> None:
    expected = alone(name)
    for ours in all_ranks(world):
        assert ours[name, reduction].keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                ours[name, reduction][key], value, rtol=1e-9, atol=1e-11, msg=functools.partial("{}: {}".format, key)
            )


def modules(rank: int, world: int) -> list[Any]:
    """Queues and prototypes over processes; one tensor in two places; queries and keys in different numbers."""
    rows = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.arange(12) % 5
    part = slice(rank * 12 // world, (rank + 1) * 12 // world)
    torch.manual_seed(0)
    queue = losses.gathered(losses.MoCoLoss(size=20, dim=WIDTH).double())
    mixing = losses.gathered(losses.MoCoLoss(size=20, dim=WIDTH, mixed=5, mixed_with_query=2).double())
    swav = losses.gathered(losses.SwAVLoss(count=4, dim=WIDTH).double())
    own = rows[part]
    info_nce = losses.gathered(losses.info_nce)
    few = slice(part.start, part.start + 1)
    nested = losses.gathered(losses.matryoshka(losses.supcon_loss, dims=[2, 4]))
    return [
        nested(own, ids[part], temperature=0.1).item(),
        *(queue(own, own + step, ids[part]).item() for step in range(3)),
        *(mixing(own, own + step, ids[part]).item() for step in range(3)),
        of_type(losses.MoCoLoss, queue.loss).queue.keys.sum().item(),
        swav(own, own.flip(1), [own + 1, own - 1]).item(),
        info_nce(own, own, ids[part], temperature=0.1).item(),
        info_nce(rows[few], own, ids[few], ids[part], temperature=0.1).item() if world == 2 else None,
    ]


def test_modules_and_forms_of_arguments() -> None:
    expected = modules(0, 1)
    for found in run_processes(2, modules):
        assert found[:-1] == pytest.approx(expected[:-1], rel=1e-10)
        rows = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        ids, few = torch.arange(12) % 5, torch.tensor([0, 6])
        one = losses.info_nce(rows[few], rows, ids[few], ids, temperature=0.1)
        assert found[-1] == pytest.approx(one.item(), rel=1e-10)


def test_a_reduction_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match="gradient_reduction must be 'mean' or 'sum', not 'max'"):
        losses.gathered(losses.clip_loss, gradient_reduction="max")  # type: ignore[arg-type]


def no_tensor(rank: int, world: int) -> str:
    try:
        losses.gathered(losses.clip_loss)(torch.eye(3), torch.eye(3).tolist(), scale=1.0)
    except UserError as error:
        return str(error)
    return "nothing"


def test_other_types_are_refused_before_the_processes_wait_for_each_other() -> None:
    assert all("text must be a tensor" in said for said in run_processes(2, no_tensor))
