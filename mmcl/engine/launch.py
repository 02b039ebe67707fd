"""From however the script was started to one Accelerator; a world that is not the one asked for is an error, never silence."""

from __future__ import annotations

import ctypes
import os
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import threadpoolctl
import torch

from mmcl.errors import UserError
from mmcl.logging import get_logger

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmcl.config import Config, TrainConfig

logger = get_logger(__name__)

SLOW_SECONDS = 1800.0
"""How long processes wait for each other outside of steps: one may still decode images, or compute features or scores."""

_TRACKER_EXTRAS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def start(config: TrainConfig, run_dir: str) -> Accelerator:
    """Sets the threads and returns the Accelerator for this process.

    Raises:
        UserError: the launcher started another number of processes than it was asked for, the batch cannot be split over them,
            or a tracker is not installed.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    _refuse_lost_processes()
    _refuse_half_a_launch()
    _forget_the_run_before()
    no_accelerator = not torch.accelerator.is_available()
    precision = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[config.precision]
    if config.precision == "fp16" and no_accelerator:
        raise UserError("train.precision fp16 needs an accelerator: use bf16 or fp32 on the CPU")
    # Without cpu=True, two processes that torchrun starts on a machine without accelerator are two worlds of one.
    accelerator = Accelerator(
        cpu=no_accelerator,
        mixed_precision=precision,
        log_with=_trackers(config.trackers),
        project_dir=run_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=max(SLOW_SECONDS, config.timeout_seconds)))],
    )
    asked_for = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked_for:
        raise UserError(f"the launcher asked for {asked_for} processes, but {accelerator.num_processes} found each other")
    if config.batch_size % accelerator.num_processes:
        raise UserError(
            f"train.batch_size {config.batch_size} cannot be split evenly over {accelerator.num_processes} processes; "
            f"take a multiple of {accelerator.num_processes}"
        )
    _set_threads(config.threads)
    # Denormal numbers, which tiny gradients turn into, slow a CPU down tenfold and change nothing.
    torch.set_flush_denormal(True)
    return accelerator


def _refuse_lost_processes() -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process and says nothing; its environment gives it away."""
    env = os.environ
    if "ACCELERATE_MIXED_PRECISION" in env and "MASTER_ADDR" in env and "WORLD_SIZE" not in env:
        raise UserError(
            "accelerate launch was asked for several processes but started one (it does so on a CPU); "
            "use `torchrun --nproc_per_node N -m mmcl train ...`"
        )


def _refuse_half_a_launch() -> None:
    """Variables that a cluster or a shell has set, without a launcher that set them all."""
    env = os.environ
    numbers = {name: env[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE") if name in env}
    given = " ".join(f"{name}={value}" for name, value in numbers.items())
    fix = f"use `accelerate launch` or `torchrun`, or unset {' '.join(numbers)}"
    for name, value in numbers.items():
        if not value.strip().isdecimal():
            raise UserError(f"the environment has {name}={value}, which is not a number of processes: {fix}")
    world, rank = int(numbers.get("WORLD_SIZE", "1")), int(numbers.get("RANK", "0"))
    if world < 1 or rank >= world:
        raise UserError(f"the environment has {given}, which cannot be: {fix}")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in env]
    if missing and world > 1:
        raise UserError(f"the environment asks for {world} processes ({given}) without {' and '.join(missing)}: {fix}")


def _forget_the_run_before() -> None:
    """Accelerate keeps one state for the whole process, with the precision and the world of the run before."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    GradientState._reset_state()


def as_launched(config: Config) -> Config:
    """The configuration with what the launcher's environment asks for besides; Accelerate would ignore it on a CPU.

    `accelerate launch --use_fsdp` is another way to say `train.fsdp`. The spreading is ours (engine/weights.py), so Accelerate
    must not do it again.

    Raises:
        UserError: the launcher asks for what there is not, or it does not go with the precision.
    """
    for name in ("DEEPSPEED", "MEGATRON_LM"):
        if _asked_for(name):
            raise UserError(f"the launcher asks for {name}, which is not used here: launch with --multi_gpu or --use_fsdp")
    if _asked_for("FSDP"):
        os.environ["ACCELERATE_USE_FSDP"] = "false"
        logger.info("--use_fsdp is taken as --train.fsdp true; Accelerate's other FSDP settings are not read")
        config = replace(config, train=replace(config.train, fsdp=True))
    if config.train.fsdp and config.train.precision == "fp16":
        raise UserError("train.fsdp does not go with train.precision fp16, whose scaler knows whole gradients only: use bf16")
    return config


def _asked_for(plugin: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() in ("1", "true")


def keep_freed_memory(keep: bool) -> None:
    """Every step frees and allocates the same large blocks. glibc returns them to the system and asks for them, zeroed, again,
    which takes a tenth of the time of a small network. While training on a CPU it is told to keep them; afterwards, to go back
    to its defaults and return what is free (mallopt(3), malloc_trim(3))."""
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (AttributeError, OSError, TypeError):
        return  # another system, another allocator
    max_mapped, trim_threshold = -4, -1
    mallopt(max_mapped, 0 if keep else 2**16)
    mallopt(trim_threshold, 2**30 if keep else 2**17)
    if not keep:
        trim(0)


def _set_threads(asked_for: int | None) -> None:
    """Launchers set one thread per process; a process may use its share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = asked_for or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    threadpoolctl.threadpool_limits(threads)


def _trackers(names: tuple[str, ...]) -> list[str] | None:
    from accelerate.tracking import get_available_trackers

    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in _TRACKER_EXTRAS:
            raise UserError(f"train.trackers: unknown tracker {name!r}; known: {', '.join(_TRACKER_EXTRAS)}")
        if name not in available:
            raise UserError(f"train.trackers: {name} is not installed; pip install 'mmcl[{_TRACKER_EXTRAS[name]}]'")
    return list(names) or None
