"""Every setting that makes steps faster keeps the promises: one order, one gradient for any split, resumed to the bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmcl.config import Config
from mmcl.engine.compilation import CompiledEncoders
from mmcl.engine.log import read_log
from tests.faults.runs import KILLED, before_step, final_state, kill, run, samples, tiny_run

Strike = Callable[[], Any]


class Products(TorchDispatchMode):
    """Products of float32 matrices as TF32 computes them: their factors are rounded to 10 bits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default):
            args = (*args[:-2], *map(_rounded, args[-2:]))
        return func(*args, **(kwargs or {}))


def products_in_tf32() -> Products:
    """The mode, which is left when the process ends."""
    return Products()  # type: ignore[no-untyped-call]


def _rounded(factor: Tensor) -> Tensor:
    if factor.dtype != torch.float32:
        return factor
    bits = (factor.contiguous().view(torch.int32) + 2**12) & -(2**13)
    return bits.view(torch.float32)


def compile_quickly() -> None:
    """Without the compiler of C++, which would take minutes."""
    warnings.simplefilter("ignore")  # the compiler's own, which it hides, unless warnings are errors
    patch("mmcl.engine.trainer.CompiledEncoders", partial(CompiledEncoders, backend="aot_eager")).start()
    patch("mmcl.runs.checks.check_compiler").start()


class Setting(NamedTuple):
    """Flags, what to do in a process before it starts, and the tolerance of losses and norms of gradients."""

    flags: tuple[str, ...]
    before: Strike = lambda: None
    tolerance: float = 1e-5


SETTINGS = {
    "compile": Setting(("--train.compile", "true"), compile_quickly),
    "compile, spread weights": Setting(("--train.compile", "true", "--train.fsdp", "true"), compile_quickly),
    "TF32": Setting(
        ("--train.matmul", "high"),
        lambda: products_in_tf32().__enter__(),  # type: ignore[no-untyped-call]
        1e-3,
    ),
    "channels last": Setting(("--train.channels_last", "true")),
    # Each micro-batch rounds its share of the gradient to 8 bits.
    "bf16": Setting(("--train.precision", "bf16"), tolerance=2e-2),
    "bytes": Setting(("--data.augment", "[]", "--data.workers", "1")),
    "augmented on the device": Setting(("--data.augment_on", "device", "--data.workers", "1")),
}
QUICK = {"bf16"}
"""Tested by default; the others in the long tier, since each takes many processes."""
NAMES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in SETTINGS]


@pytest.mark.parametrize("name", NAMES)
def test_one_order_one_gradient_and_the_same_bits(name: str, image_folder: Path, tmp_path: Path) -> None:
    flags, before, tolerance = SETTINGS[name]
    flags = (*flags, "--text.encoder.args.dropout", "0", "--train.steps", "4")
    whole = tiny_run(image_folder, tmp_path / "whole", *flags)
    split = tiny_run(image_folder, tmp_path / "split", *flags, "--train.micro_batch", "3")
    for config, world in ((whole, 1), (split, 2)):
        assert run(config, world, lambda rank: before()) == [0] * world
    assert shares(samples(whole, 1)) == shares(samples(split, 2))
    for measure in ("loss", "gradient_norm"):
        assert column(split, measure) == pytest.approx(column(whole, measure), rel=tolerance)

    def killed(rank: int) -> None:
        before()
        before_step(3, kill)(rank)

    config = tiny_run(image_folder, tmp_path / "run", *flags, "--train.micro_batch", "3")
    assert run(config, 2, killed) == [KILLED] * 2
    config = tiny_run(image_folder, tmp_path / "run", *flags, "--train.micro_batch", "3", "--resume")
    assert run(config, 2, lambda rank: before()) == [0, 0]
    assert final_state(config) == final_state(split)


def shares(steps: dict[int, list[int]]) -> dict[int, list[list[int]]]:
    """The rows of each process in every step; those of micro-batches are sorted by the lengths of their texts."""
    return {step: [sorted(rows[:6]), sorted(rows[6:])] for step, rows in steps.items()}


def column(config: Config, name: str) -> list[float]:
    return [row[name] for row in read_log(Path(config.run_dir or "") / "metrics.jsonl")]


def test_factors_are_rounded_to_ten_bits() -> None:
    assert _rounded(torch.tensor([1 + 2**-10, 1 + 2**-12, 1 + 2**-11 + 2**-12])).tolist() == [1 + 2**-10, 1.0, 1 + 2**-10]
    with products_in_tf32():
        product = torch.tensor([[1 + 2**-12]]) @ torch.ones(1, 1)
    assert product.item() == 1
