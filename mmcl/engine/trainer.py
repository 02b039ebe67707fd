"""The training loop: one step is encode, gather, loss, backward, guard, update, commit."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from mmcl.config import Config
from mmcl.data.batches.bad_samples import BadSampleBudget
from mmcl.data.batches.order import BatchOrder
from mmcl.engine.activation_checkpointing import ActivationCheckpointing
from mmcl.engine.anchors import FeatureAnchor, WeightAnchor
from mmcl.engine.batch_gradient import BatchGradient
from mmcl.engine.best_checkpoint import BestScore
from mmcl.engine.channels_last import ChannelsLast
from mmcl.engine.checkpoint import load_average, load_checkpoint, take_snapshot
from mmcl.engine.checkpoint_writer import CheckpointWriter
from mmcl.engine.collapse import CollapseMonitor, few_rows
from mmcl.engine.compilation import CompiledEncoders
from mmcl.engine.guards import (
    StopSignals,
    lost_process_reported,
    set_collective_timeout,
)
from mmcl.engine.host_copy import HostCopy
from mmcl.engine.live_evaluation import LiveEvaluation
from mmcl.engine.loading import BatchPieces, loaded, loader_processes
from mmcl.engine.log import Logbook
from mmcl.engine.nonfinite import Snapshot, mark_changed, write_crash_bundle
from mmcl.engine.optim import FUSED, update_unless
from mmcl.engine.precision import matmul_precision
from mmcl.engine.repeated_texts import RepeatedTexts
from mmcl.engine.run_state import RunState, ScalerState, read_run_state
from mmcl.engine.schedule import set_rates
from mmcl.engine.step_record import StepRecord, StepSums
from mmcl.engine.stored_teachers import StoredTeacher
from mmcl.engine.weight_average import WeightAverage
from mmcl.engine.weight_layout import ReplicatedWeights, ShardedWeights, shard
from mmcl.errors import UserError
from mmcl.logging import get_logger
from mmcl.methods.method import Method
from mmcl.types import BadSample, Batch, Embeddings, Tokens

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
        teachers: what the stored rows of the batches are.
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
        teachers: Sequence[StoredTeacher] = (),
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
        train, anchor = config.train, config.train.anchor
        feature_anchor = FeatureAnchor(method, anchor.features) if anchor.features else None
        self.memory = ChannelsLast(method) if config.train.channels_last else nullcontext()
        self.compiled = CompiledEncoders(method) if config.train.compile else None
        changed: list[Any] = [self.compiled] if self.compiled else []
        if config.train.checkpoint_activations:
            changed.append(ActivationCheckpointing(towers))
        # Compiled code would be made for every number of distinct texts.
        repeats = None if config.train.compile else RepeatedTexts(method, accelerator.device)
        layout = ShardedWeights if config.train.fsdp and accelerator.num_processes > 1 else ReplicatedWeights
        self.weights = layout(accelerator, method, config.optim)
        self.encode, self.optimizer = self.weights.encode, self.weights.optimizer
        # Listed once, because large models have thousands of them; the method itself may register buffers later.
        self.committed = method.committed_parameters
        self.stateful = [method, *(one for one in method.modules() if one is not method and list(one.buffers(recurse=False)))]
        if feature_anchor and self.weights.are_sharded:
            shard(feature_anchor.towers, accelerator.device)
        self.gradient = BatchGradient(
            accelerator, method, self.weights, train, anchor=feature_anchor, teachers=teachers, repeats=repeats, changed=changed
        )
        self.weight_anchor = WeightAnchor(method, anchor.l2_sp) if anchor.l2_sp else None
        self.bad_samples = BadSampleBudget(config.data.max_bad_fraction, config.data.max_bad_consecutive)
        self.skipped, self.saved_at = 0, time.monotonic()
        # Else the host waits for each step: under fp16 because only the scaler knows whether it is the cause of an infinite
        # gradient, and on other devices because torch's optimizers, which are not fused there, ignore `update_unless`.
        self.device_decides = accelerator.scaler is None and accelerator.device.type in FUSED
        self.reading_waits = accelerator.device.type != "cpu"
        self.unsettled: StepRecord | None = None
        self.agreed = {"stop": False, "save": False}
        self.stop = StopSignals()
        self.collapse_monitor = CollapseMonitor()
        self.best = BestScore(config.train)
        self.average: WeightAverage | None = None
        folder, keep = self.run_dir / "checkpoints", config.train.keep_checkpoints
        self.writer = CheckpointWriter(folder, keep=keep, shared=self.weights.are_sharded)

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
        lost = lost_process_reported(train.timeout_seconds)
        compiled, matmul = self.compiled or nullcontext(), matmul_precision(train.matmul)
        with closing(self.logbook), self.stop, self.writer, lost, matmul, self.memory, compiled:
            self._warm_up(start)
            set_collective_timeout(train.timeout_seconds)
            steps = range(start, start if self._evaluate(start) else self.total_steps)
            with loaded(self.batches, steps, workers=self.workers, pin=self.accelerator.device.type == "cuda") as batches:
                for step, batch in enumerate(self.logbook.timed(batches), start + 1):
                    self._step(step, batch.to(self.accelerator.device))
                    if self._is_saved(step):
                        self._settle()
                        self._save(step)
                    if self.agreed["stop"] or self._evaluate(step):
                        break
            self.writer.wait()
            self._stop_unwritten(any(gather_object([self.writer.failure is not None])))
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
        buffers = Snapshot(self._buffers())
        self._backward(step + 1, self.batches[step].to(self.accelerator.device))
        self.optimizer.zero_grad()
        buffers.restore()

    def _step(self, step: int, batch: Batch) -> None:
        """Launch one step. The host waits for none of its results: its numbers are read by `_settle`, in the next step."""
        rate = set_rates(self.optimizer.param_groups, step, self.config.optim, total=self.total_steps)
        buffers = Snapshot(self._buffers())
        embeddings, shares = self._backward(step, batch)
        if not self._settle():
            # This pass came before the host took back what the undone step had counted, such as the keys of a queue.
            buffers.restore()
            self.optimizer.zero_grad()
            embeddings, shares = self._backward(step, batch)
        shares["gradient_norm"] = self.weights.clip(self.config.optim.clip) / self.accelerator.num_processes
        self.unsettled = self._record(step, batch, embeddings, shares, rate)
        if self.device_decides:
            self._update(embeddings, batch, buffers, self.unsettled.sums.is_bad)
        elif self._settle():
            self._update_once_known(embeddings, batch)
        else:
            buffers.restore()
            if self.accelerator.scaler:
                self.accelerator.scaler.update()  # it has checked this step's gradients and expects the step to end
        self.optimizer.zero_grad()

    def _buffers(self) -> list[Tensor]:
        return [buffer for module in self.stateful for buffer in module.buffers(recurse=False)]

    def _backward(self, step: int, batch: Batch) -> tuple[Embeddings, dict[str, Tensor]]:
        return self.gradient.accumulate(step, batch)

    def _record(self, step: int, batch: Batch, embeddings: Embeddings, shares: dict[str, Tensor], rate: float) -> StepRecord:
        """Return what `_settle` needs of a step."""
        texts = [view for view in batch.views.values() if isinstance(view, Tokens)]
        flags = {
            "stop": self.stop.received,
            "save": self._save_is_due(),
            "bad": len(batch.bad_samples),
            "truncated": sum(text.truncated for text in texts),
            "unwritten": self.accelerator.is_main_process and self.writer.failure is not None,
        }
        sums = StepSums(self.accelerator, shares, flags, self.method.logit_scale)
        rows = HostCopy(few_rows(embeddings)) if self.logbook.is_logged(step) else None
        shown = {f"shown/{name}": rows for name, rows in self.order.rows_by_part(step).items()}
        return StepRecord(step, replace(batch, views={}), sums, rows, {"lr": rate, **shown}, has_texts=bool(texts))

    def _settle(self) -> bool:
        """Read the numbers of the step that was launched last, and do what depends on them.

        Returns:
            False if it was not finite and nothing was updated. True if all is well, or there is no such step.

        Raises:
            UserError: the run must end, see `fit`; no later step has updated anything.
        """
        record, self.unsettled = self.unsettled, None
        if record is None:
            return True
        metrics, totals, scale = record.sums.read()
        self.agreed = {name: totals[name] > 0 for name in ("stop", "save")}
        self._stop_unwritten(totals["unwritten"] > 0)
        is_finite, geometry = self._is_finite(metrics), {}
        if not is_finite:
            self._skip_or_stop(record, metrics)
        elif record.rows:
            geometry = self.collapse_monitor.check(record.step, self.method, record.rows.read(), scale)
        self._count_bad(record.step, record.batch, any_bad=totals["bad"] > 0)
        temperature = {} if scale is None else {"temperature": 1 / scale}
        truncated = {"truncated_texts": int(totals["truncated"])} if record.has_texts else {}
        self.logbook.step(record.step, {**metrics, **temperature, **record.known, **truncated, **geometry})
        return is_finite

    def _update(self, embeddings: Embeddings, batch: Batch, buffers: Snapshot, is_bad: Tensor) -> None:
        """Take the step, with what follows it, unless it `is_bad`: then nothing changes, which the device decides."""
        optimizer = self.optimizer.optimizer  # Accelerate's own looks for packages in every step, and there is no scaler
        update_unless(optimizer, is_bad)
        optimizer.step()
        if self.weight_anchor:
            self.weight_anchor.pull(self.optimizer.param_groups, is_bad)
        if self.reading_waits:
            parameters = Snapshot(self.committed)
            self.method.commit(embeddings, batch)
            for snapshot in (buffers, parameters):
                snapshot.undo_if(is_bad)
        elif is_bad:
            buffers.restore()
        else:
            self.method.commit(embeddings, batch)
        if self.average:
            self.average.update(is_bad)

    def _update_once_known(self, embeddings: Embeddings, batch: Batch) -> None:
        """Take a step that the host knows to be finite, with what follows it, unless the loss scaler skips it."""
        self.optimizer.step()
        is_taken = not self.optimizer.step_was_skipped
        if self.weight_anchor and is_taken:
            self.weight_anchor.pull(self.optimizer.param_groups)
        self.method.commit(embeddings, batch)
        if self.average and is_taken:
            self.average.update()

    def _is_finite(self, metrics: dict[str, float]) -> bool:
        """Return True if the step may be taken.

        Under fp16 the scaler handles an infinite gradient by skipping the step and halving the scale of the loss. At a scale
        of 1 or below, the scale cannot be the cause of an infinite gradient.
        """
        if not math.isfinite(metrics["loss"]):
            return False
        scaler = self.accelerator.scaler
        return math.isfinite(metrics["gradient_norm"]) or (scaler is not None and scaler.get_scale() > 1)

    def _skip_or_stop(self, record: StepRecord, metrics: dict[str, float]) -> None:
        """Skip a non-finite step or end the run. Every process calls this in the same step."""
        train, rank, batch = self.config.train, self.accelerator.process_index, record.batch
        bundle = write_crash_bundle(self.run_dir / "crash", record.step, rank, batch, metrics, self.config)
        self.skipped += 1
        rows = ", ".join(str(i) for i in batch.index[:8].tolist())
        message = (
            f"the loss of step {record.step} is {metrics['loss']:g}, the norm of its gradient {metrics['gradient_norm']:g}; "
            f"nothing was updated. Lower optim.lr, or look at the samples {rows}, ... ({bundle})"
        )
        if train.on_nonfinite == "stop" or self.skipped > train.max_skipped:
            raise UserError(message)
        logger.warning(message)
        if self.device_decides:  # otherwise nothing was updated in the first place
            mark_changed(self._buffers())
            if self.average:
                self.average.undo()

    def _count_bad(self, step: int, batch: Batch, *, any_bad: bool) -> None:
        """Log unreadable samples in rank order, and stop all processes if there are too many."""
        gathered = gather_object([(batch.bad_samples, batch.bad_rows)]) if any_bad else []
        bad: list[BadSample] = [sample for samples, _ in gathered for sample in samples]
        self.logbook.bad_samples(step, bad)
        self.bad_samples.add(bad, [row for _, rows in gathered for row in rows], seen=self.config.train.batch_size)

    def _stop_unwritten(self, any_failed: bool) -> None:
        """Stop all processes if a checkpoint could not be written; all raise the error, which the first has."""
        if any_failed:
            [reason] = broadcast_object_list([str(self.writer.failure)])
            raise UserError(reason)

    def _evaluate(self, step: int) -> bool:
        """Run the evaluators that are due. Returns True if patience has run out.

        The checkpoint of a step is saved before its evaluation, so a resumed run starts with this.
        """
        if due := self.evaluation.due(step):
            began = time.perf_counter()
            average = self.average.in_place() if self.average else nullcontext()
            with average, self.compiled.paused() if self.compiled else nullcontext():
                scores = self.evaluation.scores(due)
            self.logbook.evaluation(step, scores, time.perf_counter() - began, figures=self.evaluation.figures)
            self.best.update(step, scores)
        return self.best.is_over

    def _is_saved(self, step: int) -> bool:
        every = self.config.train.save_every
        is_due = bool(every and step % every == 0) or step == self.total_steps or bool(self.evaluation.due(step))
        return is_due or self.agreed["save"] or self.agreed["stop"]

    def _save_is_due(self) -> bool:
        """Return True if a checkpoint is due by the clock of the first process."""
        minutes = self.config.train.save_minutes
        if minutes is None or not self.accelerator.is_main_process:
            return False
        return time.monotonic() - self.saved_at >= 60 * minutes

    def _save(self, step: int) -> None:
        """Save a checkpoint. The first process writes it; if the weights are sharded, every process writes its shard."""
        self.saved_at, self.agreed["save"] = time.monotonic(), False
        if not (self.accelerator.is_main_process or self.weights.are_sharded):
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
            identity=self.identity,
            state=asdict(state),
        )
        self.writer.save(snapshot, spare=self.best.step)
