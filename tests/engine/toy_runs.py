"""Runs of any method on toy towers and batches, with the engine's own loop and nothing read from files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmcl.config import Config, from_dict
from mmcl.data.batches.order import Order
from mmcl.engine import launch
from mmcl.engine.live_evaluation import LiveEvaluation
from mmcl.engine.trainer import Trainer
from mmcl.methods.method import Method
from mmcl.testing.toys import toy_batch, toy_method
from mmcl.types import Batch, RunFacts
from tests.narrow import of_type

ROWS = 16


class ToyBatches:
    """The same batch in every step."""

    pieces = 1

    def __init__(self, batch: Batch):
        self.batch = batch

    def __getitem__(self, step: int) -> Batch:
        return self.batch

    def piece(self, step: int, number: int) -> Any:
        return self.batch

    def joined(self, step: int, pieces: Iterable[Any], *, pin: bool = False) -> Batch:
        [batch] = pieces
        return of_type(Batch, batch)


def toy_trainer(name: str, run_dir: Path, *, steps: int = 6, optim: dict[str, Any] | None = None, **train: Any) -> Trainer:
    """A trainer that saves nothing before its last step; queues are empty at the beginning."""
    run_dir.mkdir(exist_ok=True)
    config = from_dict(
        Config,
        {
            "method": {"name": name},
            "image": {"encoder": {"name": "small_cnn"}, "head": {"name": "linear"}},  # not built: the towers are toys
            "optim": optim or {},
            "run_dir": str(run_dir),
            "train": {"batch_size": ROWS, "steps": steps, "log_every": 3, "save_every": 100, "threads": 1, **train},
        },
        "toy run",
    )
    accelerator = launch.start(config, str(run_dir))
    method = toy_method(name, torch.float32)
    with torch.no_grad():
        for key, buffer in method.named_buffers():
            if key.endswith("pushed"):
                buffer.zero_()
    method.configure(RunFacts(global_batch=ROWS, total_steps=steps, steps_per_epoch=2, samples=ROWS))
    batches = ToyBatches(toy_batch(method, ROWS, torch.float32))
    evaluation = LiveEvaluation(config, accelerator, method, [], total_steps=steps)
    return Trainer(config, accelerator, method, batches, Order(ROWS, ROWS, 0), evaluation, total_steps=steps, identity={})


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """All that training has changed so far: weights, buffers, the state of the optimizer, the average of the weights."""
    method: Method = trainer.method
    names = {parameter: name for name, parameter in method.named_parameters()}
    moments = {
        f"{names[parameter]}/{key}": torch.as_tensor(value).clone()
        for parameter, state in trainer.optimizer.optimizer.state.items()
        for key, value in state.items()
    }
    average = trainer.average.tensors if trainer.average else {}
    return {
        **{name: tensor.clone() for name, tensor in method.state_dict().items()},
        **moments,
        **{f"average of {name}": tensor.clone() for name, tensor in average.items()},
    }
