"""Evaluation of the current towers during training, by all processes, without affecting the run."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from mmcl.config import Config, EvaluatorConfig
from mmcl.data.source import Source
from mmcl.engine.distributed_model import encode_together
from mmcl.engine.guards import longer_timeout
from mmcl.engine.launch import SLOW_SECONDS
from mmcl.engine.weight_layout import broadcast_statistics, gathered_weights
from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS, CachedModel, Report, Task
from mmcl.interop.model import Model, build_model
from mmcl.logging import get_logger
from mmcl.methods.method import Method

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = get_logger(__name__)

Due = Sequence[tuple[EvaluatorConfig, Task]]


class LiveEvaluation:
    """The evaluators of a run that are scheduled during training. All processes hold one and call it at the same steps.

    Args:
        config: configuration of the run.
        accelerator: processes of the run.
        method: the method being trained.
        tasks: one for each evaluator in `config.evaluate`, in that order.
        total_steps: length of the run; all evaluators are due after its last step.

    Attributes:
        figures: PNG files of the last evaluation by name; drawn by the first process, and only if there are trackers to show
            them.
    """

    def __init__(self, config: Config, accelerator: Accelerator, method: Method, tasks: Sequence[Task], *, total_steps: int):
        self.config, self.accelerator, self.method, self.total_steps = config, accelerator, method, total_steps
        self.figures: Mapping[str, bytes] = {}
        draws = bool(config.train.trackers) and accelerator.is_main_process
        self.evaluators = [
            (evaluator, replace(task, baselines=False, figures=draws))
            for evaluator, task in zip(config.evaluate, tasks, strict=True)
            if evaluator.every is not None
        ]

    def due(self, step: int) -> Due:
        """Return the evaluators that are due after a step."""
        return [
            (evaluator, task)
            for evaluator, task in self.evaluators
            if step > 0 and (step % (evaluator.every or 1) == 0 or step == self.total_steps)
        ]

    def scores(self, due: Due) -> dict[str, float]:
        """Run evaluators: "label/metric" -> value, the same in all processes. Metrics without a value are omitted.

        Raises:
            UserError: an evaluator returns no numbers, or `train.keep_best` is not among them.
        """
        usual = self.config.train.timeout_seconds
        with state_preserved(self.method.towers), longer_timeout(max(SLOW_SECONDS, usual), usual=usual):
            model = build_model(self.method)
            if self.accelerator.num_processes == 1:
                return self._score(model, due)
            # After its last forward pass, a process has running statistics of its own rows.
            broadcast_statistics(self.method)
            sources = sources_of([task for _, task in due])
            # Processes encode shares of different sizes, so sharded weights cannot be gathered block by block.
            with gathered_weights(self.method):
                found = encode_together([model], sources, lambda shared: self._score(shared[0], due))
            scores: dict[str, float] = broadcast_object_list([found])[0]
            return scores

    def _score(self, model: Model, due: Due) -> dict[str, float]:
        cached, report, ran = CachedModel(model), Report(), []
        for evaluator, task in due:
            try:
                found: Report = EVALUATORS[evaluator.name](cached, task, **evaluator.args)
            except UserError as error:  # such as non-finite embeddings: this does not end the run
                logger.warning(f"{evaluator.name} of {evaluator.label}: not evaluated: {error}")
                continue
            if not found.metrics:
                raise UserError(f"evaluate: {evaluator.name} of {evaluator.label} gives no scores; remove its `every`")
            self._require_new(found, report)
            report += found
            ran.append(evaluator)
        scores = {f"{row.data}/{row.metric}": row.value for row in report.metrics if row.value is not None}
        self._require_monitored(scores.keys(), ran)
        self.figures = {**report.figures, **report.draw_examples()}
        return scores

    def _require_new(self, found: Report, before: Report) -> None:
        """Refuse duplicate names: scores are named by label and metric, and evaluators of plug-ins may use the same names."""
        known = {(metric.data, metric.metric): metric.evaluator for metric in before.metrics}
        for metric in found.metrics:
            other = known.get((metric.data, metric.metric))
            if other is not None:
                score = f"{metric.data}/{metric.metric}"
                raise UserError(f"evaluate: {other} and {metric.evaluator} both give {score}; give them different labels")

    def _require_monitored(self, known: Collection[str], ran: Sequence[EvaluatorConfig]) -> None:
        """Refuse the name of a score that is still missing after all evaluators that could produce it have run."""
        best, monitored = self.config.train.keep_best, self.config.monitored_evaluators
        if best is not None and best not in known and all(evaluator in ran for evaluator in monitored):
            raise UserError(f"train.keep_best is {best}, which no evaluator gives; there are {', '.join(sorted(known))}")


def sources_of(tasks: Sequence[Task]) -> list[Source]:
    """Return the data of tasks, in the same order in all processes."""
    return [source for task in tasks for source in (task.source, task.bank) if source is not None]


@contextmanager
def state_preserved(towers: nn.Module) -> Iterator[None]:
    """Restore the modes of all modules and the states of all random generators on exit."""
    modes = {module: module.training for module in towers.modules()}
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        for module, mode in modes.items():
            module.training = mode
