"""Setup of the Accelerator for any launcher; a number of processes other than the one requested is an error."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from mmcl.engine.precision import is_faster_in_bf16
from mmcl.errors import UserError, how_to_install
from mmcl.logging import get_logger

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmcl.config import Config

logger = get_logger(__name__)

SLOW_SECONDS = 1800.0
"""Seconds that processes wait for each other outside of steps: one may still decode images, or compute features or scores."""

_TRACKER_EXTRAS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def start(config: Config, run_dir: str) -> Accelerator:
    """Return the Accelerator for this process.

    Raises:
        UserError: the launcher started a different number of processes than requested, the batch cannot be split over them,
            a tracker is not installed, or the machines differ in a way that would let their weights drift apart.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    _refuse_lost_processes()
    _refuse_half_a_launch()
    _forget_the_run_before()
    settings = config.train
    no_accelerator = not torch.accelerator.is_available()
    precision = "no" if settings.precision == "fp32" else settings.precision
    if settings.precision == "fp16" and no_accelerator:
        raise UserError("train.precision fp16 needs an accelerator: use bf16 or fp32 on the CPU")
    # Without cpu=True, two processes of torchrun on a machine without an accelerator become two worlds of size one.
    accelerator = Accelerator(
        cpu=no_accelerator,
        mixed_precision=precision,
        log_with=_trackers(settings.trackers),
        project_dir=run_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=max(SLOW_SECONDS, settings.timeout_seconds)))],
    )
    asked_for = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked_for:
        raise UserError(f"the launcher asked for {asked_for} processes, but {accelerator.num_processes} found each other")
    if settings.batch_size % accelerator.num_processes:
        raise UserError(
            f"train.batch_size {settings.batch_size} cannot be split evenly over {accelerator.num_processes} processes; "
            f"take a multiple of {accelerator.num_processes}"
        )
    _refuse_different_machines(accelerator, config)
    return accelerator


def _refuse_different_machines(accelerator: Accelerator, config: Config) -> None:
    """Refuse processes that would compute in different precisions, as on machines of different age."""
    precision = ("fp32", "bf16", "fp16").index(config.train.precision)
    mine = torch.tensor([[precision, is_faster_in_bf16(accelerator.device)]], device=accelerator.device)
    precisions, of_muon = accelerator.gather(mine).T
    if len(precisions.unique()) > 1:
        raise UserError("train.precision auto means fp32 on some of the machines and bf16 on others: choose one of them")
    if config.optim.muon_lr is not None and len(of_muon.unique()) > 1:
        raise UserError(
            "optim.muon_lr: Muon computes in bf16 on some of the machines and in fp32 on others, and their weights would drift "
            "apart: take machines of one kind, or AdamW alone (optim.muon_lr null)"
        )


def _refuse_lost_processes() -> None:
    """Refuse `accelerate launch --cpu --num_processes 2`, which silently starts one process, by its environment variables."""
    env = os.environ
    if "ACCELERATE_MIXED_PRECISION" in env and "MASTER_ADDR" in env and "WORLD_SIZE" not in env:
        raise UserError(
            "accelerate launch was asked for several processes but started one (it does so on a CPU); "
            "use `torchrun --nproc_per_node N -m mmcl train ...`"
        )


def _refuse_half_a_launch() -> None:
    """Refuse an incomplete set of launch variables, as set by a cluster or a shell instead of a launcher."""
    env = os.environ
    numbers = {name: env[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE") if name in env}
    given = " ".join(f"{name}={value}" for name, value in numbers.items())
    fix = f"use `accelerate launch` or `torchrun`, or unset {' '.join(numbers)}"
    for name, value in numbers.items():
        if not value.strip().isdecimal():
            raise UserError(f"the environment has {name}={value}, which is not a number of processes: {fix}")
    world, rank = int(numbers.get("WORLD_SIZE", "1")), int(numbers.get("RANK", "0"))
    if world < 1 or rank >= world:
        raise UserError(f"the environment has {given}, which is impossible: {fix}")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in env]
    if missing and world > 1:
        raise UserError(f"the environment asks for {world} processes ({given}) without {' and '.join(missing)}: {fix}")


def _forget_the_run_before() -> None:
    """Reset Accelerate's process-wide state, which keeps the precision and the processes of the previous run."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    GradientState._reset_state()


def as_launched(config: Config) -> Config:
    """Return the configuration with the launcher's environment settings applied; Accelerate would ignore them on a CPU.

    `accelerate launch --use_fsdp` is equivalent to `train.fsdp`. mmcl shards the weights itself (engine/weight_layout.py), so
    Accelerate must not shard them again.

    Raises:
        UserError: the launcher requests an unsupported feature, or one that is incompatible with the precision.
    """
    for name in ("DEEPSPEED", "MEGATRON_LM"):
        if _asked_for(name):
            raise UserError(f"the launcher asks for {name}, which is not used here: launch with --multi_gpu or --use_fsdp")
    if _asked_for("FSDP"):
        os.environ["ACCELERATE_USE_FSDP"] = "false"
        logger.info("--use_fsdp is taken as --train.fsdp true; Accelerate's other FSDP settings are not read")
        config = replace(config, train=replace(config.train, fsdp=True))
    if config.train.fsdp and config.train.precision == "fp16":
        raise UserError("train.fsdp does not work with train.precision fp16, whose scaler needs whole gradients: use bf16")
    return config


def _asked_for(plugin: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() in ("1", "true")


def _trackers(names: tuple[str, ...]) -> list[str] | None:
    from accelerate.tracking import get_available_trackers

    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in _TRACKER_EXTRAS:
            raise UserError(f"train.trackers: unknown tracker {name!r}; known: {', '.join(_TRACKER_EXTRAS)}")
        if name not in available:
            raise UserError(f"train.trackers: {name} is not installed: {how_to_install(_TRACKER_EXTRAS[name])}")
    return list(names) or None
