"""The host learns a step later what the device has computed: no step waits, and what is not finite changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from mmcl.engine.collapse import measure
from mmcl.engine.log import read_log
from mmcl.engine.step_record import StepSums
from mmcl.engine.trainer import Trainer
from mmcl.errors import UserError
from mmcl.methods import METHODS
from tests.engine.toy_runs import state_of, toy_trainer
from tests.waits import Waits

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw", "clip": 1.0},
    "sgd": {"name": "sgd", "weight_decay": 1e-3},
    "sgd without momentum": {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0},
    "lars": {"name": "lars", "weight_decay": 1e-3},
    "muon": {"muon_lr": 0.01},
}
EVERYTHING: dict[str, Any] = {"ema": 0.9}


@pytest.mark.parametrize("name", METHODS)
def test_no_step_waits(name: str, tmp_path: Path) -> None:
    """Neither a plain step nor one that is logged. Only what has been copied to the host before is read, of the step before."""
    trainer = toy_trainer(name, tmp_path)
    trainer.reading_waits = True  # as on a GPU
    waits: dict[int, list[str]] = {}
    made: dict[int, int] = {}
    launch, record, read = trainer._step, trainer._record, StepSums.read

    def launched(step: int, batch: Any) -> None:
        with Waits() as counter:
            launch(step, batch)
        waits[step] = counter.waits

    def recorded(step: int, *args: Any) -> Any:
        found = record(step, *args)
        made[id(found.sums)] = step
        return found

    def read_late(sums: StepSums) -> Any:
        assert made[id(sums)] == len(waits)
        with Waits.paused():
            return read(sums)

    def measured(*args: Any) -> Any:
        with Waits.paused():
            return measure(*args)

    trainer._step, trainer._record = launched, recorded  # type: ignore[method-assign,assignment]
    with mock.patch.object(StepSums, "read", read_late), mock.patch("mmcl.engine.collapse.measure", measured):
        trainer.fit()
    # The first step after a checkpoint is loaded, or, here, after queues were emptied, reads the numbers of their keys.
    assert len(waits.pop(1)) <= 2
    assert waits == {step: [] for step in range(2, 7)}
    assert [row["step"] for row in read_log(tmp_path / "metrics.jsonl")] == [1, 3, 6]


def poison(trainer: Trainer, number: int) -> None:
    """The gradient of a step is not a number, and neither are the running statistics that its forward pass has left."""
    original = trainer._backward

    def poisoned(step: int, batch: Any) -> Any:
        found = original(step, batch)
        if step == number:
            for parameter in trainer.method.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))
            for buffer in trainer.method.buffers():
                if buffer.is_floating_point():
                    buffer.fill_(float("nan"))
        return found

    trainer._backward = poisoned  # type: ignore[method-assign]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of tensors that differ; an optimizer that has not begun is one whose state is zero."""
    zero = torch.zeros(())
    return [
        name for name in a.keys() | b.keys() if not torch.equal(*torch.broadcast_tensors(a.get(name, zero), b.get(name, zero)))
    ]


CASES = [*((name, "adamw") for name in METHODS), *(("clip", optimizer) for optimizer in OPTIMIZERS if optimizer != "adamw")]


@pytest.mark.parametrize(("number", "device"), [(1, "cpu"), (4, "cpu"), (4, "like cuda")])
@pytest.mark.parametrize(("name", "optimizer"), CASES)
def test_a_run_that_is_not_finite_ends_a_step_later_with_the_state_before(
    name: str, optimizer: str, number: int, device: str, tmp_path: Path
) -> None:
    trainer = toy_trainer(name, tmp_path, optim=OPTIMIZERS[optimizer], **EVERYTHING)
    trainer.reading_waits = device != "cpu"
    poison(trainer, number)
    before: dict[int, dict[str, Tensor]] = {}
    original = trainer._step

    def noted(step: int, batch: Any) -> None:
        before[step] = state_of(trainer)
        original(step, batch)

    trainer._step = noted  # type: ignore[method-assign]
    with pytest.raises(UserError, match=f"the loss of step {number} is"):
        trainer.fit()
    assert list(before) == [*range(1, number + 2)], "found in the step after it"
    assert equal(state_of(trainer), before[number]) == []


@pytest.mark.parametrize(("name", "optimizer"), CASES)
def test_a_skipped_step_leaves_no_trace_whenever_it_is_noticed(name: str, optimizer: str, tmp_path: Path) -> None:
    """Noticed a step later, or at once, as before a checkpoint, or before the update, as on devices without fused optimizers,
    and on a CPU, where reading does not wait: the run goes on with the same bits."""
    found = []
    for when in ("late", "on a CPU", "at once", "before it is taken"):
        trainer = toy_trainer(
            name, tmp_path / when, optim=OPTIMIZERS[optimizer], steps=7, on_nonfinite="skip", log_every=1, **EVERYTHING
        )
        poison(trainer, 3)
        if when == "at once":
            settle_at_once(trainer)
        trainer.device_decides, trainer.reading_waits = when != "before it is taken", when != "on a CPU"
        trainer.fit()
        rows = [(row["step"], row["loss"], row["gradient_norm"]) for row in read_log(tmp_path / when / "metrics.jsonl")]
        found.append((state_of(trainer), rows, trainer.average.updates if trainer.average else 0))
    (late, *late_log), *others = found
    for state, *log in others:
        assert equal(late, state) == []
        assert late_log == log
    assert late_log[1] == 6
    assert all(tensor.isfinite().all() for tensor in late.values())


def settle_at_once(trainer: Trainer) -> None:
    original = trainer._step

    def settled(step: int, batch: Any) -> None:
        original(step, batch)
        trainer._settle()

    trainer._step = settled  # type: ignore[method-assign]
