"""Arguments of every entry of every registry: defaults fit what they are annotated with, and values of another kind do not."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mmcl.data import SOURCES
from mmcl.data.augment import AUGMENTATIONS
from mmcl.encoders import ADAPTERS, HEADS, IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS
from mmcl.methods import METHODS
from mmcl.registry import Registry

REGISTRIES = [ADAPTERS, AUGMENTATIONS, EVALUATORS, HEADS, IMAGE_ENCODERS, METHODS, SOURCES, TEXT_ENCODERS]
OTHERS: dict[str, list[Any]] = {
    "int": [True, 1.5, float("nan"), float("inf"), "7", [7], {"a": 7}],
    "float": [False, "0.5", [0.5], {"a": 0.5}],
    "bool": [0, 1, 0.5, "yes", [True], {"a": True}],
}
FITTING: dict[str, list[Any]] = {
    "int": [7, 10**400, np.int64(7)],
    "float": [0.5, 7, np.float32(0.5)],
    "bool": [True, False],
    "None": [None],
}


def numbers_and_switches(registry: Registry) -> Iterator[tuple[str, str, list[str], Any]]:
    """Each argument that is a number, a switch or either: the entry, its name, its kinds and its default."""
    for entry in registry:
        for name, parameter in registry.parameters(entry).items():
            kinds = str(parameter.annotation).split(" | ")
            if set(kinds) <= FITTING.keys():
                yield entry, name, kinds, parameter.default


def refusal(registry: Registry, entry: str, name: str, value: Any) -> str:
    try:
        registry.check(entry, {name: value})
    except UserError as error:  # or another argument is missing
        return str(error)
    return ""


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_numbers_and_switches_are_of_their_kind(registry: Registry) -> None:
    for entry, name, kinds, default in numbers_and_switches(registry):
        fitting = [value for kind in kinds for value in FITTING[kind]] + [default] * (default is not inspect.Parameter.empty)
        others = [value for value in OTHERS[kinds[0]] if len(set(kinds) - {"None"}) == 1]
        others += [] if "None" in kinds else [None]
        said = f"{name} of {registry.kind} {entry!r} must be "
        assert not [value for value in fitting if said in refusal(registry, entry, name, value)]
        assert not [value for value in others if said not in refusal(registry, entry, name, value)]
