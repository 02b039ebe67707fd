"""The training loop: one step is encode, gather, loss, backward, guard, update, commit."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmcl import rng
from mmcl.config import Config
from mmcl.core.cached_backward import cached_backward, split_views
from mmcl.core.gather import gather_embeddings
from mmcl.data.bad_samples import BadSampleBudget
from mmcl.engine.checkpoint import load_checkpoint, save_checkpoint
from mmcl.engine.log import MetricsLog, Progress
from mmcl.engine.optim import build_optimiser
from mmcl.engine.schedule import learning_rate
from mmcl.errors import UserError
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, Views

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmcl.engine.checkpoint import Checkpoint


class Trainer:
    """Trains a method to the end of a run, from the beginning or from a checkpoint.

    Args:
        config: the run.
        accelerator: device, precision and processes.
        method: what is trained; moved to the device and, over several processes, wrapped.
        batches: item number s is this process's share of step s.
        total_steps: length of the run.
        identity: what a checkpoint must agree on before it may be continued, JSON values.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        method: Method,
        batches: Dataset[Batch],
        *,
        total_steps: int,
        identity: dict[str, Any],
    ):
        self.config, self.accelerator, self.method, self.batches = config, accelerator, method, batches
        self.total_steps, self.identity = total_steps, identity
        self.run_dir = Path(config.run_dir or "")
        optimiser = build_optimiser(method.to(accelerator.device), config.optim)
        # The loader and the schedule stay ours: Accelerate would reorder the one and step the other once per process.
        self.encode, self.optimiser = accelerator.prepare(method, optimiser)
        self.bad_samples = BadSampleBudget(config.data.max_bad_fraction)

    def fit(self, checkpoint: Checkpoint | None = None) -> None:
        """Runs all steps that are left, saving on the way and at the end.

        Args:
            checkpoint: where to continue from.
        """
        start = checkpoint.step if checkpoint else 0
        if checkpoint:
            load_checkpoint(checkpoint, self.method, self.optimiser.optimizer)
        is_main = self.accelerator.is_main_process
        log = MetricsLog(self.run_dir / "metrics.jsonl", resume_from=start) if is_main else None
        progress = Progress(done=start, total=self.total_steps, batch_size=self.config.train.batch_size, enabled=is_main)
        self.encode.train()
        clock = _Clock(self.config.train.batch_size, start)
        for step, batch in enumerate(self._loader(start), start + 1):
            metrics = self._step(step, batch.to(self.accelerator.device))
            progress.advance({name: metrics[name] for name in ("loss", "temperature") if name in metrics})
            if log and (step % self.config.train.log_every == 0 or step in (1, self.total_steps)):
                row = {"step": step, **metrics, "samples_per_second": clock.rate(step)}
                log.write(row)
                self.accelerator.log({key: value for key, value in row.items() if key != "step"}, step=step)
            if step == self.total_steps or (self.config.train.save_every and step % self.config.train.save_every == 0):
                self._save(step)
        progress.close()

    def _loader(self, start: int) -> DataLoader[Batch]:
        steps = range(start, self.total_steps)
        workers = self.config.data.workers
        # Item numbers are steps and every batch is a pure function of its step: resuming is starting the range later.
        return DataLoader(self.batches, sampler=steps, batch_size=None, num_workers=workers)

    def _step(self, step: int, batch: Batch) -> dict[str, float]:
        rate = self._set_rate(step)
        embeddings, _, shares = cached_backward(
            self.encode,
            self._pieces(batch),
            loss=lambda rows: self._loss(step, rows, batch),
            # Accelerate averages gradients over the processes; the shares of the loss are to be summed.
            backward=lambda result: self.accelerator.backward(result[1] * self.accelerator.num_processes),
            seed=lambda piece: self._seed(step, piece),
            no_sync=lambda: self.accelerator.no_sync(self.encode),
            loss_parameters=self.method.loss_parameters,
        )
        if self.config.optim.clip is not None:
            self.accelerator.clip_grad_norm_(self.encode.parameters(), self.config.optim.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.method.commit(embeddings, batch)
        self._list_bad(batch)
        return {**shares, "temperature": 1 / float(self.method.logit_scale.detach()), "lr": rate}

    def _set_rate(self, step: int) -> float:
        """Sets every group's learning rate for this step; returns that of `optim.lr`."""
        optim = self.config.optim
        share = learning_rate(step - 1, total=self.total_steps, peak=1.0, warmup=optim.warmup, final=optim.final_lr)
        for group in self.optimiser.param_groups:
            group["lr"] = share * group["initial_lr"]
        return share * optim.lr

    def _pieces(self, batch: Batch) -> list[Views]:
        """The micro-batches; with several, what frozen encoders do is done once and not in both passes."""
        pieces = split_views(batch.views, self.config.train.micro_batch)
        if len(pieces) == 1:
            return pieces
        # Without gradient already here: DDP must not prepare itself for a backward pass that never comes.
        with torch.no_grad():
            return [self.encode(piece, frozen_only=True) for piece in pieces]

    def _seed(self, step: int, piece: int) -> None:
        torch.manual_seed(rng.sample_seed(self.config.train.seed, step, self.accelerator.process_index, piece))

    def _loss(self, step: int, rows: Mapping[str, Tensor], batch: Batch) -> tuple[Embeddings, Tensor, dict[str, float]]:
        """The loss of all rows: what it saw, this process's share, and the sum of the shares for the log."""
        positives = batch.labels if self.method.positives == "labels" else batch.ids
        assert positives is not None, "a run refuses data without labels before it starts"
        embeddings = gather_embeddings(rows, positives)
        output = self.method.loss(embeddings, batch)
        shares = self._sum_over_processes({"loss": output.loss, **output.metrics})
        self._guard(step, shares["loss"], batch)
        return embeddings, output.loss, shares

    def _sum_over_processes(self, shares: Mapping[str, Tensor]) -> dict[str, float]:
        stacked = torch.stack([share.detach().float() for share in shares.values()])
        return dict(zip(shares, self.accelerator.reduce(stacked, "sum").tolist(), strict=True))

    def _guard(self, step: int, loss: float, batch: Batch) -> None:
        """Stops before the update, on every process at the same step, when the loss is no number."""
        if loss - loss != 0:
            rows = ", ".join(str(i) for i in batch.index[:8].tolist())
            raise UserError(
                f"the loss of step {step} is {loss}; nothing was updated. Lower optim.lr, or look at the samples {rows}, ..."
            )

    def _list_bad(self, batch: Batch) -> None:
        """Lists what could not be read; stops when it is too much."""
        if batch.bad_samples:
            with (self.run_dir / "bad_samples.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(bad), ensure_ascii=False) + "\n" for bad in batch.bad_samples)
        self.bad_samples.add(batch.bad_samples, seen=len(batch.ids))

    def _save(self, step: int) -> None:
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.run_dir / "checkpoints",
                step,
                self.method,
                self.optimiser.optimizer,
                identity=self.identity,
                keep=self.config.train.keep_checkpoints,
            )
        self.accelerator.wait_for_everyone()


class _Clock:
    """Samples per second since the last reading."""

    def __init__(self, batch_size: int, step: int):
        self.batch_size, self.step, self.time = batch_size, step, time.perf_counter()

    def rate(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self.step) * self.batch_size / max(now - self.time, 1e-9)
        self.step, self.time = step, now
        return rate
