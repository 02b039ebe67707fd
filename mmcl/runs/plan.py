"""Plan of a run: everything that a configuration describes, built and checked once for training and `mmcl doctor`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmcl.config import Config
from mmcl.data.batches.fewer_tokens import FewerTokens
from mmcl.data.batches.order import BatchOrder
from mmcl.data.batches.views import ImageView
from mmcl.data.source import Source
from mmcl.engine.stored_teachers import check_teachers
from mmcl.errors import UserError
from mmcl.evaluate import Task
from mmcl.methods.method import Method
from mmcl.runs.build import as_built, build_method, image_views
from mmcl.runs.build_data import build_order, build_training_data
from mmcl.runs.checks import check_run
from mmcl.runs.components import check_components
from mmcl.runs.evaluation import build_tasks
from mmcl.runs.fewer_tokens import plan_fewer_tokens
from mmcl.runs.hard_batches import HardBatches, open_hard_batches
from mmcl.runs.read_columns import check_training_columns
from mmcl.runs.stored_inputs import check_stored_inputs, with_widths
from mmcl.runs.stored_teachers import TeacherFolders, open_teachers
from mmcl.types import RunFacts


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run before its first step, for a given number of processes.

    Attributes:
        asked: the configuration as given.
        config: the configuration with a batch size that fits the data and the towers that were built, see `fit_batch` and
            `as_built`.
        processes: number of processes of the launch.
        source: the training data.
        tasks: one for each evaluator in `config.evaluate`.
        teachers: those of `data.embeddings`.
        hard_batches: clusters of the samples; None if batches are not made of clusters.
        method: configured for this run, with its initial weights, on the CPU.
        views: settings of each image view of the method.
        order: selects the samples of each step.
        facts: size and length of the run.
        fewer: what the image encoder sees of each image in most steps; None if it sees all in every step.
    """

    asked: Config
    config: Config
    processes: int
    source: Source
    tasks: Sequence[Task]
    teachers: Sequence[TeacherFolders]
    hard_batches: HardBatches | None
    method: Method
    views: Mapping[str, ImageView]
    order: BatchOrder
    facts: RunFacts
    fewer: FewerTokens | None


def make_plan(config: Config, processes: int) -> Plan:
    """Build everything that a configuration names and open the data, without training.

    Raises:
        UserError: a name, an argument or the data are wrong, or the run would fail during or after training.
    """
    check_components(config)
    if processes < 1:
        raise UserError(f"processes is {processes}: give 1 or more")
    source, held_out = build_training_data(config)
    tasks = build_tasks(config.evaluate, config.data.root, source, held_out)
    asked, config = config, with_widths(fit_batch(config, len(source), processes), source)
    method = build_method(config)
    check_training_columns(config, method.views)
    config = as_built(config, method)
    check_stored_inputs(config, method, source)
    views = image_views(config, method)
    teachers = open_teachers(config, method, source)
    check_teachers(config, method, [one.teacher for one in teachers])
    check_run(config, method, source, tasks, views, processes)
    hard_batches = open_hard_batches(config, method, source)
    order = build_order(config, source, hard_batches.file if hard_batches else None)
    facts = run_facts(config, order, len(source))
    fewer = plan_fewer_tokens(config, method, source, views, facts.total_steps)
    method.configure(facts)
    return Plan(
        asked=asked,
        config=config,
        processes=processes,
        source=source,
        tasks=tasks,
        teachers=teachers,
        hard_batches=hard_batches,
        method=method,
        views=views,
        order=order,
        facts=facts,
        fewer=fewer,
    )


def fit_batch(config: Config, samples: int, processes: int) -> Config:
    """Reduce a batch that is larger than the dataset, because it would contain samples twice.

    The new size can be split over 1, 2, 4 or 8 processes, whatever the actual number, so that training is the same for all.

    Raises:
        UserError: the batch cannot be split over these processes.
    """
    if config.train.batch_size < processes:
        raise UserError(f"train.batch_size {config.train.batch_size} cannot be split over {processes} processes; start fewer")
    if config.train.batch_size <= samples:
        return config
    fitting = samples // 8 * 8 or 1 << max(samples.bit_length() - 1, 0)
    if fitting % processes:
        raise UserError(
            f"train.batch_size {config.train.batch_size} is larger than the {samples} training samples, and the {fitting} that "
            f"it becomes cannot be shared by {processes} processes: set it to a multiple of {processes} up to {samples}, or "
            "start fewer processes"
        )
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=fitting))


def run_facts(config: Config, order: BatchOrder, samples: int) -> RunFacts:
    """Return the size and length of a run."""
    total_steps = config.train.steps or order.steps(config.train.epochs or 1)
    steps_per_epoch = order.steps(1)
    return RunFacts(global_batch=order.batch_size, total_steps=total_steps, steps_per_epoch=steps_per_epoch, samples=samples)
