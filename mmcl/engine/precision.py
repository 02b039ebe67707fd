"""The precision `auto`: bfloat16 where the machine has instructions for it, else float32."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

import torch

from mmcl.config import Config
from mmcl.logging import get_logger

logger = get_logger(__name__)


def settle_precision(config: Config, saved: str | None = None) -> Config:
    """Replace `train.precision: auto` by the precision that it stands for, and log the choice.

    Args:
        config: configuration of the run.
        saved: precision of the run that is resumed: it continues with the precision of its start on any machine.
    """
    if config.train.precision != "auto":
        return config
    if saved is not None:
        precision, reason = saved, "as at the start of the run"
    else:
        precision, reason = fastest_precision()
    logger.info(f"train.precision auto is {precision}: {reason}")
    return replace(config, train=replace(config.train, precision=cast(Literal["bf16", "fp32"], precision)))


def fastest_precision() -> tuple[str, str]:
    """Return the precision that `auto` stands for on this machine, and why, in words.

    bfloat16 is chosen where its products are faster than those of float32: on CUDA devices from compute capability 8.0 on, and
    on x86 processors with AVX-512 BF16, which include all with AMX. Elsewhere it would be emulated, which is slower.
    """
    if torch.cuda.is_available():
        has_bf16, machine = torch.cuda.is_bf16_supported(including_emulation=False), torch.cuda.get_device_name()
    elif torch.accelerator.is_available():
        has_bf16, machine = False, str(torch.accelerator.current_accelerator())
    else:
        has_bf16, machine = torch.cpu._is_avx512_bf16_supported(), "the processor"
    return ("bf16", f"{machine} has instructions for it") if has_bf16 else ("fp32", f"{machine} is not faster in bf16")
