"""The contract suite passes for every registered method, and each check detects a violation."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from mmcl.errors import UserError
from mmcl.methods import METHODS
from mmcl.methods.clip import CLIP
from mmcl.methods.method import POSITIVE, Method, check_positive
from mmcl.methods.sogclr import SogCLR
from mmcl.methods.supcon import SupCon
from mmcl.testing import METHOD_CHECKS, check_method
from mmcl.testing.toys import toy_method
from mmcl.types import Batch, Embeddings, LossOutput, Views


@pytest.mark.parametrize("check", METHOD_CHECKS)
@pytest.mark.parametrize("name", METHODS)
def test_contract(name: str, check: str) -> None:
    METHOD_CHECKS[check](name)


class LongRows(CLIP):
    unit_rows: ClassVar[bool] = False

    def encode(self, views: Views) -> dict[str, Tensor]:
        return self.embed(self.towers, views, unit=True)


class Impure(CLIP):
    calls: Tensor

    def __init__(self, towers: nn.ModuleDict, **args: Any):
        super().__init__(towers, **args)
        self.register_buffer("calls", torch.zeros(()))

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        self.calls += 1
        return super().loss(embeddings, batch)


class Meddling(CLIP):
    def commit(self, embeddings: Embeddings, batch: Batch) -> None:
        with torch.no_grad():
            next(self.towers.parameters()).mul_(0.9)


class Ordered(CLIP):
    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        loss = super().loss(embeddings, batch)
        return LossOutput(loss.loss * (1 + embeddings.local["image"][0, 0]))


class OneSided(CLIP):
    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        loss = super().loss(embeddings, batch)
        return LossOutput(loss.loss + embeddings.local["image"].square()[:, 0].mean())


class NotFinite(CLIP):
    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        return LossOutput(super().loss(embeddings, batch).loss / (len(embeddings.ids) - 1))


class Idle(CLIP):
    def __init__(self, towers: nn.ModuleDict, **args: Any):
        super().__init__(towers, **args)
        self.unused = nn.Parameter(torch.ones(()))


class Constant(CLIP):
    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        return LossOutput(super().loss(embeddings, batch).loss * 1e-3 + 1)


class Forgetful(CLIP):
    def __init__(self, towers: nn.ModuleDict, **args: Any):
        super().__init__(towers, **args)
        self.steps = 0

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        return LossOutput(super().loss(embeddings, batch).loss * (1 + self.steps))

    def commit(self, embeddings: Embeddings, batch: Batch) -> None:
        self.steps += 1


class Weighted(CLIP):
    """It needs rows of the full width, which it does not say."""

    column: Tensor

    def __init__(self, towers: nn.ModuleDict, **args: Any):
        super().__init__(towers, **args)
        self.register_buffer("column", torch.linspace(0.5, 1.5, self.tower("image").embed_dim))

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        rows = {name: row * self.column for name, row in embeddings.local.items()}
        return super().loss(replace(embeddings, local=rows, all=rows), batch)


class Counting(CLIP):
    """Its loss depends on the number of columns."""

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        return LossOutput(super().loss(embeddings, batch).loss / embeddings.local["image"].shape[1])


class Remembering(SogCLR):
    """Its averages are those of whole rows."""

    @property
    def nested_rows(self) -> Collection[str]:
        return self.embedded_views


class Undeclared(SupCon):
    positives: ClassVar[Any] = "classes"


@pytest.mark.parametrize(
    ("method", "check"),
    [
        (Undeclared, "declarations"),
        (LongRows, "unit rows"),
        (Weighted, "nested rows"),
        (Counting, "nested rows"),
        (Remembering, "nested rows"),
        (Impure, "pure loss"),
        (Meddling, "commit"),
        (Ordered, "order of rows"),
        (OneSided, "order of views"),
        (NotFinite, "sizes of batches"),
        (Idle, "gradients"),
        (Constant, "learning"),
        (Forgetful, "resume"),
    ],
)
def test_a_method_that_breaks_it_is_found(method: type[Method], check: str) -> None:
    with pytest.raises(AssertionError, match=r"\w"):
        METHOD_CHECKS[check](method)
    with pytest.raises(AssertionError):
        check_method(method)


def test_what_the_engine_gives_a_method_is_declared() -> None:
    with pytest.raises(UserError, match=r"Mine\(towers, temperature, \.\.\.\) is built as Mine\(towers, \*, \.\.\.\)"):

        class Mine(Method):
            def __init__(self, towers: nn.ModuleDict, temperature: float = 0.1):
                super().__init__(towers)

    with pytest.raises(
        UserError, match=r"Student\(towers, teacher, \.\.\.\) is built as Student\(towers, \*.*set takes_teacher"
    ):

        class Student(Method):
            def __init__(self, towers: nn.ModuleDict, teacher: nn.Module | None):
                super().__init__(towers)

    for name in ("temperature", "momentum"):
        with pytest.raises(UserError, match=f"Warm.init_args: '{name}' is not a keyword-only parameter"):

            class Warm(Method):
                init_args: ClassVar[tuple[str, ...]] = (name,)

                def __init__(self, towers: nn.ModuleDict, *, momentum: float = 0.1):
                    super().__init__(towers)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_exports_a_temperature_takes_that_of_init(name: str) -> None:
    """Else fine-tuning would begin at a temperature that the model was not trained with."""
    method = toy_method(name)
    assert ("temperature" in method.init_args) == (method.logit_scale is not None)
    assert ("bias" in method.init_args) == (method.logit_bias is not None)


@pytest.mark.parametrize("name", METHODS)
def test_temperatures_are_above_0(name: str) -> None:
    for argument in METHODS.parameters(name):
        if argument.endswith(POSITIVE):
            check_positive({argument: 1e-9})
            for value in (0, -1.0, math.inf, math.nan):
                with pytest.raises(UserError, match=rf"^{argument} is .*: give a number above 0$"):
                    check_positive({argument: value})
