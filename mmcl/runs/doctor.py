"""What a run will be, before it starts: its sizes, what to expect of it, and what would go wrong without a word."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mmcl.config import Config
from mmcl.core.cached_backward import split_views
from mmcl.data.captions import caption_key
from mmcl.data.source import Source
from mmcl.encoders.tower import Tower
from mmcl.engine.schedule import warmup_steps
from mmcl.errors import UserError
from mmcl.methods.method import Method
from mmcl.runs.build import build_method, run_facts
from mmcl.runs.build_data import build_order, build_training_data
from mmcl.runs.checks import check_run
from mmcl.runs.components import check_components
from mmcl.runs.evaluation import build_tasks
from mmcl.runs.frozen_features import has_fixed_inputs
from mmcl.terminal import printable_line


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """The sizes of a run and what is questionable about it.

    Attributes:
        method: its name.
        samples: of the training data.
        processes, global_batch: the launch, and the pairs of one step over all its processes.
        share: pairs of one process.
        pieces: in how many micro-batches a process encodes its share.
        steps, epochs: length of the run.
        negatives: rows that each row is compared with besides its positive; None where the method does not say.
        first_loss: expected of an untrained model; None where the method does not say.
        loss_bytes: embeddings, their gradients, and scores that are kept, no more of them than of embeddings, in one process,
            float32; the other scores live for the time of a tile.
        whole_bytes: what it would be if all scores were kept.
        optimiser: its name.
        learning_rate, muon_learning_rate: their peaks; the second is None without Muon.
        warmup_steps: the steps of the rise.
        trainable, frozen: numbers of parameters.
        frozen_encoders: names of the locked towers.
        warnings: one line each.
    """

    method: str
    samples: int
    processes: int
    global_batch: int
    share: int
    pieces: int
    steps: int
    epochs: float
    negatives: int | None
    first_loss: float | None
    loss_bytes: int
    whole_bytes: int
    optimiser: str
    learning_rate: float
    muon_learning_rate: float | None
    warmup_steps: int
    trainable: int
    frozen: int
    frozen_encoders: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_text(self) -> str:
        names = f" ({', '.join(self.frozen_encoders)})" if self.frozen_encoders else ""  # A teacher is frozen, and no encoder.
        locked = f", {self.frozen / 1e6:.2f} M frozen{names}" if self.frozen else ""
        pieces = f" in {self.pieces} micro-batches" if self.pieces > 1 else ""
        muon = f", Muon {self.muon_learning_rate:g}," if self.muon_learning_rate is not None else ""
        lines = {
            "method": f"{self.method}, {self.trainable / 1e6:.2f} M parameters learn{locked}",
            "data": f"{self.samples:,} samples",
            "length": f"{self.steps:,} steps = {self.epochs:.1f} epochs",
            "global batch": f"{self.global_batch:,} = {self.processes} x {self.share:,}{pieces}",
            "negatives": f"{self.negatives:,} per row" if self.negatives is not None else "not known",
            "first loss": f"about {self.first_loss:.3f}" if self.first_loss is not None else "not known",
            "loss memory": f"{_size(self.loss_bytes)} a process ({_size(self.whole_bytes)} with all scores at once)",
            "learning rate": f"{self.learning_rate:g} ({self.optimiser}){muon} after {self.warmup_steps:,} steps of warm-up",
        }
        return "\n".join(
            [f"{name:<14}{line}" for name, line in lines.items()] + [f"warning: {printable_line(w)}" for w in self.warnings]
        )


def diagnose(config: Config, processes: int = 1) -> Diagnosis:
    """Examines a configuration as if it were launched on so many processes; reads the data, trains nothing.

    Raises:
        UserError: what training would refuse before it builds anything, or there are fewer samples than processes.
    """
    check_components(config)
    if processes < 1:
        raise UserError(f"processes is {processes}: give 1 or more")
    source, held_out = build_training_data(config)
    tasks = build_tasks(config.evaluate, config.data.root, source, held_out)
    asked, config = config, fit_batch(config, len(source), processes)
    method = build_method(config)
    check_run(config, method, source, tasks, processes)
    batch = config.train.batch_size
    order = build_order(config, source)
    run = run_facts(config, order)
    method.configure(run)
    facts = method.describe(batch)
    share = batch // processes
    steps = run.total_steps
    width = method.tower(next(iter(method.views))).embed_dim
    rows = batch if processes == 1 else batch + share
    embedding_bytes = 4 * rows * len(method.views) * width
    scores_bytes = 4 * share * batch * len(method.views)
    frozen = tuple(name for name, tower in method.towers.items() if tower.frozen)
    numbers = [(p.numel(), p.requires_grad) for p in method.parameters()]
    return Diagnosis(
        method=config.method.name,
        samples=len(source),
        processes=processes,
        global_batch=batch,
        share=share,
        pieces=len(split_views({"rows": torch.empty(share)}, config.train.micro_batch)),
        steps=steps,
        epochs=order.epochs(steps),
        negatives=facts.negatives,
        first_loss=facts.first_loss,
        loss_bytes=2 * embedding_bytes + min(embedding_bytes, scores_bytes),
        whole_bytes=2 * embedding_bytes + scores_bytes,
        optimiser=config.optim.name,
        learning_rate=config.optim.lr,
        muon_learning_rate=config.optim.muon_lr,
        warmup_steps=warmup_steps(steps, config.optim.warmup),
        trainable=sum(n for n, learns in numbers if learns),
        frozen=sum(n for n, learns in numbers if not learns),
        frozen_encoders=frozen,
        warnings=(*find_warnings(asked, method, source, processes, steps), *_about_captions(method, source)),
    )


def fit_batch(config: Config, samples: int, processes: int) -> Config:
    """A batch larger than the data set would show samples twice in a step: it becomes what of the data set 1, 2, 4 or 8
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


def find_warnings(config: Config, method: Method, source: Source, processes: int, steps: int) -> list[str]:
    """What would be wrong, or other than it looks, without an error.

    Args:
        config: as it was asked for, before `fit_batch`.
        method: built from it.
        source: the training data.
        processes: of the launch.
        steps: length of the run.
    """
    return [
        *source.warnings,
        *_about_positives(config, method, source),
        *_about_negatives(config, method, source, processes),
        *_about_batch(config, method, source, processes),
        *_about_images(config, method, source),
        *_about_run(config, steps),
    ]


def _about_positives(config: Config, method: Method, source: Source) -> list[str]:
    compares = method.positives == "labels" and method.classes is None  # a classifier compares no samples
    if not compares or config.data.samples_per_class is not None or source.labels is None:
        return []
    share = np.unique(source.labels[source.labels >= 0], return_counts=True)[1] / len(source)
    others = config.train.batch_size * float((share**2).sum())
    if others >= 1:
        return []
    return [f"a sample meets {others:.2f} others of its class in a batch on average: set data.samples_per_class to 4, say"]


def _about_negatives(config: Config, method: Method, source: Source, processes: int) -> list[str]:
    batch = fit_batch(config, len(source), processes).train.batch_size
    negatives = method.describe(batch).negatives
    if negatives is None:
        return []
    if negatives == 0:
        return [f"a batch of {batch} leaves no row a negative, and nothing is learned: set train.batch_size to 2 or more"]
    if method.positives != "labels" or source.labels is None:
        return []
    if (config.data.samples_per_class or 0) >= batch:
        return [
            "every batch is of a single class and no row has a negative: set train.batch_size to twice data.samples_per_class "
            f"({config.data.samples_per_class}) or more"
        ]
    labels = source.labels
    if len(labels) and labels[0] >= 0 and (labels == labels[0]).all():
        return ["all training samples are of a single class: no row has a negative, and nothing is learned"]
    return []


def _about_batch(config: Config, method: Method, source: Source, processes: int) -> list[str]:
    size, micro = config.train.batch_size, config.train.micro_batch
    fitting = fit_batch(config, len(source), processes).train.batch_size
    found = []
    if fitting < size:
        found.append(f"train.batch_size {size} is larger than the {len(source)} training samples; using {fitting}")
    if fitting % processes:
        found.append(f"train.batch_size {fitting} is no multiple of {processes} processes, and training will refuse it")
    in_pieces = micro is not None and micro < fitting // processes
    if micro is not None and not in_pieces:
        found.append(f"train.micro_batch {micro} has no effect: a process has {fitting // processes} pairs in a step")
    if config.train.fsdp and processes == 1:
        found.append("train.fsdp has no effect: there is one process")
    if _has_batch_norm(method) and processes > 1:
        found.append(
            "batch norm is the one exception to exact splitting: it sees each process's rows alone, so the result depends on "
            "the number of processes; encoders and heads with layer norm, or without, are exact"
        )
    if _has_batch_norm(method) and in_pieces:
        found.append("batch norm sees each micro-batch alone, so its result depends on train.micro_batch")
    return found


def _about_images(config: Config, method: Method, source: Source) -> list[str]:
    frozen = any(method.tower(view).frozen for view, kind in method.views.items() if kind == "image")
    if frozen and not has_fixed_inputs("image", config, source):
        return ["data.augment, crop or views in front of the frozen image encoder: its features cannot be kept between epochs"]
    return []


def _about_captions(method: Method, source: Source) -> list[str]:
    """Reads all captions, which is too slow to be done at every start."""
    if "text" not in method.views.values() or source.ids is not None:
        return []
    captions = [caption_key(caption) for index in range(len(source)) for caption in source[index].captions]
    repeated = len(captions) - len(set(captions))
    if repeated == 0:
        return []
    return [f"{repeated:,} of {len(captions):,} captions repeat another; equal ones are positives of each other"]


def _about_run(config: Config, steps: int) -> list[str]:
    found = []
    if config.train.precision == "fp16" and not torch.accelerator.is_available():
        found.append("train.precision fp16 needs an accelerator, and training will refuse it here: use bf16 or fp32")
    if config.optim.warmup > 0 and warmup_steps(steps, config.optim.warmup) == 0:
        found.append(
            f"optim.warmup {config.optim.warmup} of {steps} steps is no step: the first one has the full learning rate"
        )
    if config.init and config.init_missing == "random" and not Path(config.init).exists() and ":" not in config.init:
        found.append(f"{config.init} does not exist: starting from random weights (init_missing is random)")
    return found


def _has_batch_norm(method: Method) -> bool:
    """Whether anything normalises by the batch, a predictor or a teacher too; the batch norms of frozen encoders do not."""
    frozen = {module for name in method.towers for module in _frozen_modules(method.towers[name])}  # type: ignore[arg-type]
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in method.modules() if m not in frozen)


def _frozen_modules(tower: Tower) -> Iterator[nn.Module]:
    return tower.encoder.modules() if tower.frozen else iter(())


def _size(count: int) -> str:
    """1234567 -> "1.2 MB"."""
    value, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 1000 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.3g} {unit}"
