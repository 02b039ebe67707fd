"""The training loop: one step is encode, gather, loss, backward, guard, update, commit."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from mmcl import rng
from mmcl.config import Config
from mmcl.core.cached_backward import cached_backward, split_views
from mmcl.core.gather import gather_embeddings
from mmcl.data.batches.bad_samples import BadSampleBudget
from mmcl.data.batches.order import BatchOrder
from mmcl.engine.activation_checkpointing import ActivationCheckpointing
from mmcl.engine.anchors import FeatureAnchor, WeightAnchor
from mmcl.engine.best_checkpoint import BestScore
from mmcl.engine.checkpoint import load_average, load_checkpoint, take_snapshot
from mmcl.engine.checkpoint_writer import CheckpointWriter
from mmcl.engine.collapse import CollapseMonitor
from mmcl.engine.guards import (
    BufferSnapshot,
    StopSignals,
    check_adapters,
    lost_process_reported,
    set_collective_timeout,
    write_crash_bundle,
)
from mmcl.engine.live_evaluation import LiveEvaluation
from mmcl.engine.loading import BatchPieces, loaded, loader_processes
from mmcl.engine.log import Logbook
from mmcl.engine.run_state import RunState, ScalerState, read_run_state
from mmcl.engine.schedule import set_rates
from mmcl.engine.weight_average import WeightAverage
from mmcl.engine.weight_layout import ReplicatedWeights, ShardedWeights, shard
from mmcl.errors import UserError
from mmcl.logging import get_logger
from mmcl.methods.method import Method
from mmcl.types import BadSample, Batch, Embeddings, LossOutput, Tokens, Views, views_on

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmcl.engine.checkpoint import Checkpoint

logger = get_logger(__name__)


class FitResult(NamedTuple):
    """Outcome of training.

    Attributes:
        step: last completed step.
        is_complete: false if a signal stopped the run early.
        best: the best of the monitored scores.
    """

    step: int
    is_complete: bool
    best: BestScore


class Trainer:
    """Train a method to the end of a run, from the beginning or from a checkpoint.

    Args:
        config: configuration of the run.
        accelerator: device, precision and processes.
        method: the method to train; it is moved to the device and, with several processes, wrapped.
        batches: item number s is this process's share of step s.
        order: order of the batches, for the log.
        evaluation: evaluators that run during training.
        total_steps: length of the run.
        identity: JSON values that a checkpoint must match before training may continue from it.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        method: Method,
        batches: BatchPieces,
        order: BatchOrder,
        evaluation: LiveEvaluation,
        *,
        total_steps: int,
        identity: dict[str, Any],
    ):
        self.config, self.accelerator, self.method, self.batches, self.order = config, accelerator, method, batches, order
        self.evaluation, self.total_steps, self.identity = evaluation, total_steps, identity
        self.run_dir = Path(config.run_dir or "")
        on_cuda, processes = accelerator.device.type == "cuda", int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.workers = loader_processes(config.data.workers, on_cuda=on_cuda, processes=processes)
        method.to(accelerator.device)
        # Accelerate gets neither the loader nor the schedule: it would reorder the data and advance the schedule once per
        # process.
        towers: Any = dict(method.towers)
        anchor = config.train.anchor
        self.feature_anchor = FeatureAnchor(method, anchor.features) if anchor.features else None
        self.checkpointing = ActivationCheckpointing(towers) if config.train.checkpoint_activations else None
        layout = ShardedWeights if config.train.fsdp and accelerator.num_processes > 1 else ReplicatedWeights
        self.weights = layout(accelerator, method, config.optim)
        self.encode, self.optimizer = self.weights.encode, self.weights.optimizer
        if self.feature_anchor and self.weights.are_sharded:
            shard(self.feature_anchor.towers, accelerator.device)
        self.weight_anchor = WeightAnchor(method, anchor.l2_sp) if anchor.l2_sp else None
        self.bad_samples = BadSampleBudget(config.data.max_bad_fraction, config.data.max_bad_consecutive)
        self.skipped, self.saved_at, self.checked = 0, time.monotonic(), False
        self.stop = StopSignals()
        self.collapse_monitor = CollapseMonitor()
        self.best = BestScore(config.train)
        self.average: WeightAverage | None = None
        self.writer = CheckpointWriter(self.run_dir / "checkpoints", keep=config.train.keep_checkpoints)

    def fit(self, checkpoint: Checkpoint | None = None) -> FitResult:
        """Run the remaining steps, with saving and evaluation. On a stop signal, finish the current step and return.

        Args:
            checkpoint: checkpoint to continue from.

        Raises:
            UserError: a loss or gradient is not finite, too many samples are unusable, a checkpoint cannot be written, or
                another process has ended.
        """
        step = start = self._restore(checkpoint)
        train = self.config.train
        self.logbook = Logbook(self.run_dir, self.accelerator, train, done=start, total=self.total_steps)
        self.encode.train()
        with closing(self.logbook), self.stop, self.writer, lost_process_reported(train.timeout_seconds):
            self._warm_up(start)
            set_collective_timeout(train.timeout_seconds)
            steps = range(start, start if self._evaluate(start) else self.total_steps)
            with loaded(self.batches, steps, workers=self.workers, pin=self.accelerator.device.type == "cuda") as batches:
                for step, batch in enumerate(self.logbook.timed(batches), start + 1):
                    metrics, totals = self._step(step, batch.to(self.accelerator.device))
                    self.logbook.step(step, metrics)
                    if self._is_saved(step, totals):
                        self._save(step)
                    if totals["stop"] or self._evaluate(step):
                        break
            self.writer.wait()
            _, totals = self._sum_over_processes({}, unwritten=self.writer.failure is not None)
            self._stop_unwritten(totals["unwritten"] > 0)
        return FitResult(step, step == self.total_steps or self.best.is_over, self.best)

    def _restore(self, checkpoint: Checkpoint | None) -> int:
        """Restore the state of the run. Returns the number of steps done."""
        step = checkpoint.step if checkpoint else 0
        if checkpoint:
            state = read_run_state(checkpoint)
            load_checkpoint(checkpoint, self.method, self.optimizer.optimizer)
            bad = self.bad_samples
            bad.count, bad.seen, bad.run, self.skipped = state.bad, state.seen, state.bad_run, state.skipped
            if self.accelerator.scaler and state.scaler:
                self.accelerator.scaler.load_state_dict(asdict(state.scaler))
            self.best.restore(state.best, checkpoint.path.parent)
        if self.config.train.ema is not None:
            self.average = WeightAverage(self.method, self.config.train.ema)
            if checkpoint and load_average(checkpoint, self.average.tensors):
                self.average.updates = state.averaged
        return step

    def _warm_up(self, step: int) -> None:
        """Run one throw-away step and undo it.

        After its first backward pass DDP rebuilds its buckets, which changes the order of its sums. A resumed run would do so
        at a later step than an uninterrupted one, and with three or more processes the last bits of the weights would differ.
        """
        if self.accelerator.num_processes == 1 or step == self.total_steps:
            return
        buffers = BufferSnapshot(self.method)
        self._backward(step + 1, self.batches[step].to(self.accelerator.device))
        self.optimizer.zero_grad()
        buffers.restore()

    def _step(self, step: int, batch: Batch) -> tuple[dict[str, Any], dict[str, float]]:
        """Run one step. Returns the metrics, and the numbers that were summed over the processes."""
        rate = set_rates(self.optimizer.param_groups, step, self.config.optim, total=self.total_steps)
        buffers = BufferSnapshot(self.method) if self.config.train.on_nonfinite == "skip" else None
        embeddings, shares = self._backward(step, batch)
        shares["gradient_norm"] = self.weights.clip(self.config.optim.clip) / self.accelerator.num_processes
        texts = [view for view in batch.views.values() if isinstance(view, Tokens)]
        metrics, totals = self._sum_over_processes(
            shares,
            stop=self.stop.received,
            save=self._save_is_due(),
            bad=len(batch.bad_samples),
            truncated=sum(text.truncated for text in texts),
            unwritten=self.writer.failure is not None,
        )
        self._stop_unwritten(totals["unwritten"] > 0)
        if self._is_finite(metrics):
            self._update(embeddings, batch)
            geometry = self.collapse_monitor.check(step, self.method, embeddings) if self.logbook.is_logged(step) else {}
        else:
            geometry = {}
            self._skip_or_stop(step, metrics, batch)
            if buffers:
                buffers.restore()
        self.optimizer.zero_grad()
        self._count_bad(step, batch, any_bad=totals["bad"] > 0)
        scale = self.method.logit_scale
        temperature = {} if scale is None else {"temperature": 1 / float(scale.detach())}
        shown = {f"shown/{name}": rows for name, rows in self.order.rows_by_part(step).items()}
        truncated = {"truncated_texts": int(totals["truncated"])} if texts else {}
        return {**metrics, **temperature, "lr": rate, **truncated, **shown, **geometry}, totals

    def _backward(self, step: int, batch: Batch) -> tuple[Embeddings, dict[str, Tensor]]:
        """Accumulate the gradient of a step. Returns the inputs of the loss and this process's shares of loss and metrics."""
        pieces, on_device = self._pieces(batch), partial(views_on, self.accelerator.device)
        with self.accelerator.autocast():
            start = self.feature_anchor.rows(map(on_device, pieces)) if self.feature_anchor else {}
        embeddings, output = cached_backward(
            self.encode,
            pieces,
            loss=lambda rows: self._loss(rows, start, batch),
            # Accelerate averages gradients over the processes, but the shares of the loss must be summed.
            backward=lambda result: self.accelerator.backward(result[1].loss * self.accelerator.num_processes),
            seed=lambda piece: self._seed(step, piece),
            prepare=on_device,
            no_sync=self.weights.no_sync,
            loss_parameters=self.method.loss_parameters,
        )
        self.weights.reduce()
        if not self.checked:
            check_adapters(self.method, self.accelerator)
            if self.checkpointing:
                self.checkpointing.check()
            self.checked = True
        return embeddings, {"loss": output.loss, **output.metrics}

    def _update(self, embeddings: Embeddings, batch: Batch) -> None:
        """Take the step, with what follows it."""
        self.optimizer.step()
        is_taken = not self.optimizer.step_was_skipped  # by the loss scaler
        if self.weight_anchor and is_taken:
            self.weight_anchor.pull(self.optimizer.param_groups)
        self.method.commit(embeddings, batch)
        if self.average and is_taken:
            self.average.update()

    def _pieces(self, batch: Batch) -> list[Views]:
        """Return the micro-batches; if there are several, frozen encoders run once instead of in both passes."""
        pieces = split_views(batch.views, self.config.train.micro_batch)
        frozen = {name for name in batch.views if self.method.tower(name).frozen}
        if len(pieces) == 1 or not frozen:
            return pieces
        # Gradients are disabled here so that DDP does not prepare for a backward pass that never comes.
        with torch.no_grad():
            return [{**piece, **self._features({name: piece[name] for name in frozen})} for piece in pieces]

    def _features(self, views: Views) -> Views:
        """Return the features of views of frozen encoders."""
        features: Views = self.encode(views_on(self.accelerator.device, views), frozen_only=True)
        return features

    def _seed(self, step: int, piece: int) -> None:
        torch.manual_seed(rng.sample_seed(self.config.train.seed, step, self.accelerator.process_index, piece))

    def _loss(self, rows: Mapping[str, Tensor], start: Mapping[str, Tensor], batch: Batch) -> tuple[Embeddings, LossOutput]:
        positives = batch.labels if self.method.positives == "labels" else batch.ids
        assert positives is not None, "a run refuses data without labels before it starts"
        embeddings = gather_embeddings(rows, positives, text_ids=batch.text_ids)
        output = self.method.loss(embeddings, batch)
        if self.feature_anchor:
            output = self.feature_anchor.add(output, rows, start, len(embeddings.all_ids))
        return embeddings, output

    def _sum_over_processes(self, shares: Mapping[str, Tensor], **numbers: float) -> tuple[dict[str, float], dict[str, float]]:
        """Sum everything that the processes must agree on in a step with a single collective."""
        own = torch.tensor([float(number) for number in numbers.values()], device=self.accelerator.device)
        stacked = torch.stack([*(share.detach().float() for share in shares.values()), *own])
        summed = iter(self.accelerator.reduce(stacked, "sum").tolist())
        return {name: next(summed) for name in shares}, {name: next(summed) for name in numbers}

    def _is_finite(self, metrics: Mapping[str, float]) -> bool:
        """Return True if the step may be taken.

        Under fp16 the scaler handles an infinite gradient by skipping the step and halving the scale of the loss. At a scale
        of 1 or below, the scale cannot be the cause of an infinite gradient.
        """
        if not math.isfinite(metrics["loss"]):
            return False
        scaler = self.accelerator.scaler
        return math.isfinite(metrics["gradient_norm"]) or (scaler is not None and scaler.get_scale() > 1)

    def _skip_or_stop(self, step: int, metrics: dict[str, float], batch: Batch) -> None:
        """Skip a non-finite step or end the run. Every process calls this at the same step, before the update."""
        train, rank = self.config.train, self.accelerator.process_index
        bundle = write_crash_bundle(self.run_dir / "crash", step, rank, batch, metrics, self.config)
        self.skipped += 1
        rows = ", ".join(str(i) for i in batch.index[:8].tolist())
        message = (
            f"the loss of step {step} is {metrics['loss']:g}, the norm of its gradient {metrics['gradient_norm']:g}; "
            f"nothing was updated. Lower optim.lr, or look at the samples {rows}, ... ({bundle})"
        )
        if train.on_nonfinite == "stop" or self.skipped > train.max_skipped:
            raise UserError(message)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # it has checked this step's gradients and expects the step to end
        logger.warning(message)

    def _count_bad(self, step: int, batch: Batch, *, any_bad: bool) -> None:
        """Log unreadable samples in rank order, and stop all processes if there are too many."""
        gathered = gather_object([(batch.bad_samples, batch.bad_rows)]) if any_bad else []
        bad: list[BadSample] = [sample for samples, _ in gathered for sample in samples]
        self.logbook.bad_samples(step, bad)
        self.bad_samples.add(bad, [row for _, rows in gathered for row in rows], seen=self.config.train.batch_size)

    def _stop_unwritten(self, any_failed: bool) -> None:
        """Stop all processes if the first, which alone writes checkpoints, failed; all raise its error."""
        if any_failed:
            [reason] = broadcast_object_list([str(self.writer.failure)])
            raise UserError(reason)

    def _evaluate(self, step: int) -> bool:
        """Run the evaluators that are due. Returns True if patience has run out.

        The checkpoint of a step is saved before its evaluation, so a resumed run starts with this.
        """
        if due := self.evaluation.due(step):
            began = time.perf_counter()
            with self.average.in_place() if self.average else nullcontext():
                scores = self.evaluation.scores(due)
            self.logbook.evaluation(step, scores, time.perf_counter() - began, figures=self.evaluation.figures)
            self.best.update(step, scores)
        return self.best.is_over

    def _is_saved(self, step: int, totals: Mapping[str, float]) -> bool:
        every = self.config.train.save_every
        is_due = bool(every and step % every == 0) or step == self.total_steps or bool(self.evaluation.due(step))
        return is_due or bool(totals["save"] or totals["stop"])

    def _save_is_due(self) -> bool:
        """Return True if a checkpoint is due. Only the first process writes, so only its clock counts."""
        minutes = self.config.train.save_minutes
        if minutes is None or not self.accelerator.is_main_process:
            return False
        return time.monotonic() - self.saved_at >= 60 * minutes

    def _save(self, step: int) -> None:
        """Save a checkpoint. The first process writes; sharded weights are gathered from all processes."""
        self.saved_at = time.monotonic()
        is_writer = self.accelerator.is_main_process
        if not (is_writer or self.weights.are_sharded):
            return
        scaler, bad = self.accelerator.scaler, self.bad_samples
        state = RunState(
            bad=bad.count,
            seen=bad.seen,
            bad_run=bad.run,
            skipped=self.skipped,
            scaler=ScalerState(**scaler.state_dict()) if scaler else None,
            best=self.best.state,
            averaged=self.average.updates if self.average else 0,
        )
        snapshot = take_snapshot(
            step,
            self.method,
            self.optimizer.optimizer,
            average=self.average.tensors if self.average else None,
            keep=is_writer,
            identity=self.identity,
            state=asdict(state),
        )
        if is_writer:
            self.writer.save(snapshot, spare=self.best.step)
