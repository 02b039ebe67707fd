"""Warnings about what would silently go wrong in a run, one line each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from mmcl.config import ComponentConfig, TowerConfig
from mmcl.data.captions import caption_key
from mmcl.data.leakage import shared_images
from mmcl.data.sample import OWN_TEXTS
from mmcl.data.source import Source
from mmcl.encoders.adapters import adapters
from mmcl.encoders.tower import Tower
from mmcl.engine.activation_checkpointing import is_trained
from mmcl.engine.parameter_groups import group_parameters
from mmcl.engine.precision import is_faster_in_bf16
from mmcl.engine.schedule import warmup_steps
from mmcl.methods.method import Method
from mmcl.runs.frozen_features import has_fixed_inputs
from mmcl.runs.plan import Plan
from mmcl.runs.read_columns import is_evaluated
from mmcl.terminal import counted, listed

MOST_FOR_RELEASED = 1e-4
"""Learning rate of AdamW above which a released model forgets what it knows within a few steps."""
_LIBRARIES = ("open_clip", "transformers", "timm", "torchvision")
"""Encoders of libraries, whose trained weights are mostly released ones."""


def find_warnings(plan: Plan) -> list[str]:
    """Return the warnings that do not require reading all samples."""
    return [
        *plan.source.warnings,
        *_about_positives(plan),
        *_about_negatives(plan),
        *_about_own_texts(plan),
        *_about_batch(plan),
        *_about_images(plan),
        *_about_groups(plan),
        *_about_run(plan),
        *_about_init(plan),
        *_about_rates(plan),
        *_about_adapters(plan),
    ]


def _about_positives(plan: Plan) -> list[str]:
    config, method, source = plan.asked, plan.method, plan.source
    compares = method.positives == "labels" and method.classes is None  # a classifier compares no samples
    if not compares or config.data.samples_per_class is not None or source.labels is None:
        return []
    share = np.unique(source.labels[source.labels >= 0], return_counts=True)[1] / len(source)
    others = config.train.batch_size * float((share**2).sum())
    if others >= 1:
        return []
    return [f"a sample meets {others:.2f} others of its class in a batch on average: set data.samples_per_class to 4, say"]


def _about_negatives(plan: Plan) -> list[str]:
    config, method, source, batch = plan.config, plan.method, plan.source, plan.facts.global_batch
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


def _about_own_texts(plan: Plan) -> list[str]:
    """Texts in a column of a usual name that nothing reads; a column that the configuration names is refused instead."""
    config, method, sample = plan.config, plan.method, plan.source[0]
    unread = [
        field
        for view, field in OWN_TEXTS.items()
        if getattr(sample, field) and view not in method.views and not is_evaluated(f"{view}_column", config)
    ]
    return [
        f"the data have texts that are {field} of the captions, and {config.method.name} reads none with its settings: see "
        "`mmcl list methods --args`"
        for field in unread
    ]


def _about_batch(plan: Plan) -> list[str]:
    config, method, source, processes = plan.config, plan.method, plan.source, plan.processes
    size, micro, fitting = plan.asked.train.batch_size, config.train.micro_batch, plan.facts.global_batch
    found = []
    if fitting < size:
        found.append(f"train.batch_size {size} is larger than the {len(source)} training samples; using {fitting}")
    if fitting % processes:
        found.append(f"train.batch_size {fitting} is not a multiple of {processes} processes, and training will refuse it")
    in_pieces = micro is not None and micro < fitting // processes
    if micro is not None and not in_pieces:
        found.append(f"train.micro_batch {micro} has no effect: a process has {fitting // processes} pairs in a step")
    if config.train.fsdp and processes == 1:
        found.append("train.fsdp has no effect: there is one process")
    if config.train.checkpoint_activations and not any(map(is_trained, method.towers.values())):  # type: ignore[arg-type]
        found.append("train.checkpoint_activations has no effect: all encoders are frozen")
    if _has_batch_norm(method) and processes > 1:
        found.append(
            "batch norm is the one exception to exact splitting: it sees each process's rows alone, so the result depends on "
            "the number of processes; encoders and heads with layer norm, or without, are exact"
        )
    if _has_batch_norm(method) and in_pieces:
        found.append("batch norm sees each micro-batch alone, so its result depends on train.micro_batch")
    return found


def _about_images(plan: Plan) -> list[str]:
    method = plan.method
    frozen = any(method.tower(view).frozen for view, kind in method.views.items() if kind == "image")
    if frozen and not has_fixed_inputs("image", plan.config, plan.source):
        return ["data.augment, crop or views in front of the frozen image encoder: its features cannot be kept between epochs"]
    return []


def _about_groups(plan: Plan) -> list[str]:
    """Groups, such as patients, that are in both the training and the evaluation data."""
    found = []
    for source, labels in _evaluated(plan):
        if plan.source.groups is None or source.groups is None:
            continue
        rows = np.flatnonzero(np.isin(source.groups, plan.source.groups))
        if len(rows):
            shared, groups = len(np.unique(source.groups[rows])), len(np.unique(source.groups))
            found.append(
                f"{labels}: {shared:,} of {counted(groups, 'group')} are in the training data too, as that of "
                f"{source[int(rows[0])].name}: results do not hold for new groups; leave them out of one (data.keep)"
            )
    return found


def _evaluated(plan: Plan) -> list[tuple[Source, str]]:
    """Return the evaluation data, each once, with the labels of its evaluators."""
    sources = {id(task.source): task.source for task in plan.tasks}.values()
    return [(one, listed(sorted({task.name for task in plan.tasks if task.source is one}))) for one in sources]


def warnings_of_shared_images(plan: Plan) -> list[str]:
    """Return the warnings about evaluation data whose images are in the training data too; reads files of equal sizes."""
    found = []
    for source, labels in _evaluated(plan):
        rows = shared_images(source, plan.source)
        if rows:
            found.append(
                f"{labels}: {len(rows):,} of {counted(len(source), 'image')} are in the training data too, byte for byte, as "
                f"{source[rows[0]].name}: results on them show what was memorized; leave them out of one (data.keep)"
            )
    return found


def warnings_of_captions(plan: Plan) -> list[str]:
    """Return the warnings that require reading all captions, which is too slow for every start."""
    method, source = plan.method, plan.source
    if "text" not in method.views.values() or source.ids is not None:
        return []
    captions = [caption_key(caption) for index in range(len(source)) for caption in source[index].captions]
    repeated = len(captions) - len(set(captions))
    if repeated == 0:
        return []
    return [f"{repeated:,} of {len(captions):,} captions repeat another; equal ones are positives of each other"]


def _about_run(plan: Plan) -> list[str]:
    config, steps = plan.config, plan.facts.total_steps
    found = []
    if config.train.precision == "fp16" and not torch.accelerator.is_available():
        found.append("train.precision fp16 needs an accelerator, and training will refuse it here: use bf16 or fp32")
    if config.train.precision == "bf16" and not torch.accelerator.is_available() and not is_faster_in_bf16(torch.device("cpu")):
        found.append("train.precision bf16 is emulated on this processor, several times slower than fp32: use auto")
    if config.optim.warmup > 0 and warmup_steps(steps, config.optim.warmup) == 0:
        found.append(
            f"optim.warmup {config.optim.warmup} of {counted(steps, 'step')} rounds to zero: "
            "training starts at the full learning rate"
        )
    if config.init and config.init_missing == "random" and not Path(config.init).exists() and ":" not in config.init:
        found.append(f"{config.init} does not exist: starting from random weights (init_missing is random)")
    fewer = config.train.fewer_tokens
    if (fewer.patches < 1 or fewer.image_size is not None) and plan.fewer is None:
        found.append(
            f"train.fewer_tokens has no effect: its finish, in which images are whole, is all of {counted(steps, 'step')}"
        )
    if plan.fewer and plan.fewer.until < steps and config.train.patience is not None:
        found.append(
            f"train.patience may end the run before step {plan.fewer.until + 1:,}, from which on the image encoder sees whole "
            "images: set it to null"
        )
    return found


def _about_init(plan: Plan) -> list[str]:
    config, init = plan.config, plan.config.init
    if init is None:
        return []
    towers = {name: (getattr(plan.asked, name), getattr(config, name)) for name in ("image", "text")}
    lost = [setting for name, both in towers.items() for setting in _replaced(name, *both)]
    found = [f"not used: {listed(lost)} of the configuration, because {init} has its own"] if lost else []
    anchor, decay = config.train.anchor, config.optim.weight_decay
    if anchor.l2_sp and decay:
        found.append(
            f"optim.weight_decay {decay:g} pulls weights to zero, train.anchor.l2_sp to the start: set optim.weight_decay to 0"
        )
    return found


def _about_rates(plan: Plan) -> list[str]:
    config = plan.config
    if config.optim.name != "adamw":
        return []
    groups = group_parameters(plan.method, config.optim)
    rates = {
        start: max((group.lr for group in groups if not weights.isdisjoint(group.parameters)), default=0.0)
        for start, weights in _released_weights(plan).items()
    }
    return [
        f"a learning rate of {rate:g} is far above what the {start} bears: set optim.lr to 1e-5 or less, and give "
        "new heads a higher rate by optim.groups"
        for start, rate in rates.items()
        if rate > MOST_FOR_RELEASED
    ]


def _about_adapters(plan: Plan) -> list[str]:
    config, method, found = plan.config, plan.method, []
    adapted = [name for name in ("image", "text") if (one := getattr(config, name)) is not None and one.adapt is not None]
    encoders = nn.ModuleDict({name: method.towers[name].encoder for name in adapted})  # type: ignore[misc]
    norms = [one for one in encoders.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    if config.train.freeze_statistics is False and norms:
        found.append(f"train.freeze_statistics false has no effect on {listed(adapted)}: adapters keep the statistics")
    for name, adapter in adapters(encoders):
        place, _, own = name.rpartition(".")
        whole = encoders.get_parameter(f"{place}.parametrizations.{own}.original").numel()
        size = sum(p.numel() for p in adapter.parameters())
        if size >= whole:
            tower = name.partition(".")[0]
            found.append(f"the adapter of {name} has {size:,} parameters, the weight {whole:,}: lower {tower}.adapt.args.rank")
            break
    if adapted and config.train.anchor.l2_sp:
        found.append(f"train.anchor.l2_sp pulls nothing in the {listed(adapted)} encoder: weights below adapters are frozen")
    return found


def _replaced(name: str, asked: TowerConfig | None, built: TowerConfig | None) -> list[str]:
    """Return the settings of a tower in whose place the initial model has others."""
    if asked is None or built is None or asked.encoder is None:
        return []
    parts = {"encoder": (asked.encoder, built.encoder), "head": (asked.head, built.head)}
    return [f"{name}.{part}" for part, (given, used) in parts.items() if given and used and not _is_part_of(given, used)]


def _is_part_of(given: ComponentConfig, used: ComponentConfig) -> bool:
    return given.name == used.name and all(used.args.get(key, value) == value for key, value in given.args.items())


def _released_weights(plan: Plan) -> dict[str, set[nn.Parameter]]:
    """Return the weights of encoders that others have trained, without adapters, by what they are in words."""
    config, method = plan.config, plan.method
    of_init = {words.partition(" ")[0] for words in method.from_init}
    found: dict[str, set[nn.Parameter]] = {}
    for name in method.pretrained:
        asked: TowerConfig | None = getattr(config, name)
        if name in of_init:
            start = f"released model {config.init}" if config.init and ":" in config.init else ""
        else:  # towers passed from Python and those of plug-ins may be the user's own
            library = asked.encoder.name if asked and asked.encoder else ""
            start = f"trained {name} encoder of {library}" if library in _LIBRARIES else ""
        if start:
            encoder: nn.Module = method.towers[name].encoder  # type: ignore[assignment]
            weights = (p for path, p in encoder.named_parameters() if "parametrizations." not in path)
            found.setdefault(start, set()).update(weights)
    return found


def _has_batch_norm(method: Method) -> bool:
    """Return True if a module, predictors and teachers included, uses batch statistics; those of frozen parts do not."""
    still = {module for tower in method.modules() if isinstance(tower, Tower) for module in tower.in_evaluation_mode}
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in method.modules() if m not in still)
