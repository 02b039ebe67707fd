"""The precision `auto`: bfloat16 where the machine has instructions for it, else float32; that of products and of attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional

from mmcl.config import Config, TrainConfig
from mmcl.core.precision import in_float32
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


@contextmanager
def matmul_precision(setting: Literal["highest", "high"]) -> Iterator[None]:
    """Context in which CUDA devices compute products of float32 matrices as `train.matmul` says.

    Convolutions are left to cuDNN, which computes them in TF32 by default. CPUs are not affected.
    """
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    # The default of torch is float32, but the program around a run may have changed it.
    switch.fp32_precision = "tf32" if setting == "high" else ("ieee" if before == "tf32" else before)
    try:
        yield
    finally:
        switch.fp32_precision = before


@contextmanager
def attention_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Context in which a CPU without AMX computes attention in float32 where autocast would compute it in bfloat16.

    There torch's backward pass of attention is slower in bfloat16. Measured on an AMD processor with AVX-512 BF16, both passes:
    seven times for sequences of 16 tokens, three times for 77, and a fifth for 512. The function itself is exchanged, because
    the encoders of all libraries call it.

    Args:
        precision: `train.precision`, once settled; unless it is "bf16", nothing changes.
        device: device of the run; on all but CPUs, nothing changes.
    """
    if precision != "bf16" or device.type != "cpu" or torch.cpu._is_amx_tile_supported():
        yield
        return
    exchanged = functional.scaled_dot_product_attention
    wide = in_float32(exchanged)

    def attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return wide(query, *args, **kwargs).to(query.dtype)

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = exchanged


def precision_in_words(train: TrainConfig) -> str:
    """Return in what precision this machine computes under `train.precision`, once settled, and `train.matmul`, in words."""
    has_tf32 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    if not has_tf32:
        return train.precision + ("; train.matmul high has no effect on this machine" if train.matmul == "high" else "")
    products = "TF32" if train.matmul == "high" else "float32 (TF32: train.matmul high)"
    return f"{train.precision}, matrix products in {products}"


def fastest_precision() -> tuple[str, str]:
    """Return the precision that `auto` stands for on this machine, and why, in words."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    machine = "the processor" if device.type == "cpu" else str(device)
    if device.type == "cuda":
        machine = torch.cuda.get_device_name()
    if is_faster_in_bf16(device):
        return "bf16", f"{machine} has instructions for it"
    return "fp32", f"{machine} is not faster in bf16"


def is_faster_in_bf16(device: torch.device) -> bool:
    """Whether products of matrices are faster in bfloat16 than in float32 on a device of this machine.

    They are on CUDA devices from compute capability 8.0 on, and on x86 processors with AVX-512 BF16, which include all with
    AMX. Elsewhere bfloat16 would be emulated, which is slower: on a CPU, some twenty times.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
