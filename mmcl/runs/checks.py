"""Checks before the first step, shared by training and `mmcl doctor`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl.config import Config
from mmcl.data.batches.views import ImageView
from mmcl.data.source import Source
from mmcl.encoders.tower import Tower
from mmcl.engine.activation_checkpointing import check_blocks
from mmcl.engine.anchors import check_anchors
from mmcl.engine.channels_last import check_channels_last
from mmcl.engine.compilation import check_compiler
from mmcl.engine.matryoshka import check_matryoshka
from mmcl.engine.parameter_groups import group_parameters
from mmcl.errors import UserError, first_line
from mmcl.evaluate import Task, check
from mmcl.interop.device import find_device
from mmcl.methods.method import Method
from mmcl.runs.build_data import check_data
from mmcl.types import Features, Tokens

_TEXTS = ("a photo", "a longer text of several words")


def check_run(
    config: Config, method: Method, source: Source, tasks: Sequence[Task], views: Mapping[str, ImageView], processes: int
) -> None:
    """Detect errors that would otherwise occur during or after training.

    Args:
        config: configuration with the batch size from `fit_batch`.
        method: built from `config`; its weights and statistics are left unchanged.
        source: the training data.
        tasks: one for each evaluator in `config.evaluate`.
        views: settings of each image view of the method.
        processes: number of processes of the launch.

    Raises:
        UserError: the run would fail; the message names the setting and the fix.
    """
    group_parameters(method, config.optim)
    check_anchors(config, method)
    check_matryoshka(config, method)
    if config.train.channels_last:
        check_channels_last(method, fsdp=config.train.fsdp)
    if config.train.compile:
        check_compiler(find_device())
    if config.train.checkpoint_activations:
        check_blocks(dict(method.towers))  # type: ignore[arg-type]
    check_data(config, method, source)
    check_alpha(config, method)
    check_views(config, method, views)
    check_single_rows(config, method, views, processes, len(source))
    check_evaluators(config, tasks, has_text="text" in method.towers)


def check_alpha(config: Config, method: Method) -> None:
    """Raise UserError if the exported model is to be a mean with the initial one, and a tower or head is not from there."""
    new = [name for name in method.towers if f"{name} tower" not in method.from_init]
    if config.train.alpha < 1 and new:
        part = f"{new[0]} head" if f"{new[0]} encoder" in method.from_init else f"{new[0]} tower"
        raise UserError(
            f"train.alpha {config.train.alpha:g} is for a mean with the weights of init, and the {part} has none there: set it "
            "to 1"
        )


def check_evaluators(config: Config, tasks: Sequence[Task], *, has_text: bool) -> None:
    """Raise UserError that names every evaluator that cannot run on its data or with this model."""
    found = []
    for number, (evaluator, task) in enumerate(zip(config.evaluate, tasks, strict=True)):
        try:
            check(evaluator.name, evaluator.args, task, has_text=has_text)
        except UserError as error:
            found.append(f"evaluate.{number}, {evaluator.name}: {error}")
    if found:
        raise UserError("; ".join(found))


@torch.random.fork_rng(devices=[])
@torch.no_grad()
def check_views(config: Config, method: Method, views: Mapping[str, ImageView]) -> None:
    """Encode two images or texts of every view with its tower, on the CPU.

    Raises:
        UserError: an encoder cannot process them; the message names the view and the encoder.
    """
    modes = {module: module.training for module in method.modules()}
    method.eval()
    for name in method.views:
        _try_view(name, views.get(name), config, method)
    for module, mode in modes.items():
        module.training = mode


@torch.random.fork_rng(devices=[])
@torch.no_grad()
def check_single_rows(config: Config, method: Method, views: Mapping[str, ImageView], processes: int, samples: int) -> None:
    """Encode a single sample as in training, on the CPU, if a forward pass in training will have only one.

    Raises:
        UserError: a batch norm cannot normalize it.
    """
    share, micro = config.train.batch_size // processes, config.train.micro_batch
    if min(share, micro or share) != 1:
        return
    inputs: dict[str, Any] = {name: _two_inputs(method.tower(name), views.get(name), config) for name in method.views}
    try:
        copy.deepcopy(method).train().encode({name: both[:1] for name, both in inputs.items()})
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"{_why_single(config, processes, samples)}, or take encoders and heads without batch norm ({_batch_norms(method)})"
        ) from error


def _why_single(config: Config, processes: int, samples: int) -> str:
    """Explain why a forward pass has a single sample, and how to change it."""
    if samples < 2 * processes:
        found = "1 sample" if samples == 1 else f"{samples} samples"
        return f"the training data have {found}, and a batch norm needs two in each process: give more data"
    setting, least = ("train.micro_batch", 2) if config.train.micro_batch == 1 else ("train.batch_size", 2 * processes)
    return f"{setting} leaves one sample in a pass, and a batch norm needs two: set {setting} to {least} or more"


def _batch_norms(method: Method) -> str:
    """List the parts that contain a batch norm, such as image.head."""
    names = (name.removeprefix("towers.") for name, module in method.named_modules() if "BatchNorm" in type(module).__name__)
    return ", ".join(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))


def _try_view(name: str, view: ImageView | None, config: Config, method: Method) -> None:
    tower = method.tower(name)
    encoder = type(tower.encoder).__name__ if tower.spec is None else tower.spec.encoder
    inputs = _two_inputs(tower, view, config)
    try:
        tower(inputs, unit=False)
    except Exception as error:  # other libraries raise various errors for an unsupported size
        if view is None:
            raise UserError(f"view {name!r}: the text encoder {encoder} cannot take its texts ({_why(error)})") from error
        size = " x ".join(map(str, inputs.shape[1:]))  # type: ignore[union-attr]
        preprocess: Any = tower.encoder.preprocess
        raise UserError(
            f"view {name!r}: the image encoder {encoder} cannot take its images of {size} ({_why(error)}); "
            f"give it {preprocess.height} x {preprocess.width} pixels by "
            f"data.views.{name}.size and the augmentations, or take another encoder"
        ) from error


def _two_inputs(tower: Tower, view: ImageView | None, config: Config) -> Tensor | Tokens | Features:
    """Return two black images, two texts, or two rows of an encoder that reads rows alone."""
    if not tower.encoder.encodes:
        return Features(torch.zeros(2, tower.encoder.feature_dim))
    return _two_texts(tower.encoder) if view is None else two_images(view, config.train.seed)


def two_images(view: ImageView, seed: int) -> Tensor:
    """Return two black images, augmented as in training, because an augmentation may change the size."""
    image_BCHW = torch.zeros(2, view.preprocess.channels, view.preprocess.height, view.preprocess.width)
    if view.augment is None:
        return image_BCHW
    return view.augment(image_BCHW, seed=seed, epoch=np.zeros(2, np.int64), index=np.arange(2), view=view.number)


def _two_texts(encoder: Any) -> Tokens:
    tokens: Tokens = encoder.tokenizer(_TEXTS)
    return tokens


def _why(error: Exception) -> str:
    return " ".join(first_line(error).split())
