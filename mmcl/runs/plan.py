"""The plan of a run: everything that a configuration describes, built and checked once for training and `mmcl doctor`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmcl.config import Config
from mmcl.data.batches.order import BatchOrder
from mmcl.data.batches.views import ImageView
from mmcl.data.source import Source
from mmcl.errors import UserError
from mmcl.evaluate import Task
from mmcl.methods.method import Method
from mmcl.runs.build import build_method, image_views
from mmcl.runs.build_data import build_order, build_training_data
from mmcl.runs.checks import check_run
from mmcl.runs.components import check_components
from mmcl.runs.evaluation import build_tasks
from mmcl.types import RunFacts


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run before its first step, for a number of processes.

    Attributes:
        asked: the configuration as it was given.
        config: the same with a batch that fits the data, see `fit_batch`.
        processes: of the launch.
        source: the training data.
        tasks: of each of `config.evaluate`.
        method: configured for this run, with its initial weights, on the CPU.
        views: how each image view of the method shows an image.
        order: which samples make up a step.
        facts: the size and length of the run.
    """

    asked: Config
    config: Config
    processes: int
    source: Source
    tasks: Sequence[Task]
    method: Method
    views: Mapping[str, ImageView]
    order: BatchOrder
    facts: RunFacts


def make_plan(config: Config, processes: int) -> Plan:
    """Builds everything that a configuration names; opens the data and trains nothing.

    Raises:
        UserError: a name, an argument or the data are wrong, or the run would fail in the middle of training or after it.
    """
    check_components(config)
    if processes < 1:
        raise UserError(f"processes is {processes}: give 1 or more")
    source, held_out = build_training_data(config)
    tasks = build_tasks(config.evaluate, config.data.root, source, held_out)
    asked, config = config, fit_batch(config, len(source), processes)
    method = build_method(config)
    views = image_views(config, method)
    check_run(config, method, source, tasks, views, processes)
    order = build_order(config, source)
    facts = run_facts(config, order)
    method.configure(facts)
    return Plan(
        asked=asked,
        config=config,
        processes=processes,
        source=source,
        tasks=tasks,
        method=method,
        views=views,
        order=order,
        facts=facts,
    )


def fit_batch(config: Config, samples: int, processes: int) -> Config:
    """A batch larger than the dataset would show samples twice in a step: it becomes what of the dataset 1, 2, 4 or 8
    processes can share, whatever the number of those that there are, so that they all train the same.

    Raises:
        UserError: these processes cannot share it.
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


def run_facts(config: Config, order: BatchOrder) -> RunFacts:
    """The size and length of a run."""
    total_steps = config.train.steps or order.steps(config.train.epochs or 1)
    return RunFacts(global_batch=order.batch_size, total_steps=total_steps, steps_per_epoch=order.steps(1))
