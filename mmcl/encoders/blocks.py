"""Repeated blocks of a network, such as the layers of a transformer, and the depth of everything else between them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

PROJECTION = re.compile(r"(^|_)proj(ection)?$")
"""Names of parameters that are projections, and stand on a module that is not a linear layer."""


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a network, in order: the outermost sequences of modules of one class.

    These are the layers of a transformer, the residual blocks of a ResNet, or the stages of a network that has stages. A
    single layer, such as a convolution, is not a block. Where such sequences hold less than half as many parameters as those of
    modules of several classes, as in MobileNet, these are the blocks.
    """
    repeated, mixed = (_sequences(network, of_one_class=of_one_class) for of_one_class in (True, False))
    return mixed if _size(mixed) > 2 * _size(repeated) else repeated


def _size(modules: list[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _sequences(module: nn.Module, *, of_one_class: bool) -> list[nn.Module]:
    children = [child for child in _parts(module) if any(True for _ in child.parameters())]
    is_list = isinstance(module, nn.ModuleList)
    if (isinstance(module, nn.Sequential) and len(children) > 1) or (is_list and of_one_class):
        kinds = {type_before_parametrizations(child) for child in children}
        are_composite = all(map(_parts, children))
        if are_composite and (len(kinds) == 1 or not of_one_class):
            return children
    return [block for child in children for block in _sequences(child, of_one_class=of_one_class)]


def _parts(module: nn.Module) -> list[nn.Module]:
    """Return the submodules of a module, without what computes its parameters, such as adapters."""
    return [child for name, child in module.named_children() if name != "parametrizations"]


def module_depths(network: nn.Module) -> dict[nn.Module, int]:
    """Return the depths of a network's modules, except those that contain blocks.

    With n blocks, everything before the first one has depth 0, such as embeddings and the patch convolution; block i and
    everything in it has depth i; what lies between it and the next one has the depth of the next one; and everything after
    the last one has depth n + 1. Embedding tables outside of the blocks have depth 0, wherever they are registered. All modules
    of a network without blocks have depth 0.
    """
    numbers = {block: number for number, block in enumerate(blocks(network), 1)}
    around = {part for part in network.modules() if part not in numbers and any(inner in numbers for inner in part.modules())}
    depths: dict[nn.Module, int] = {}
    passed = 0

    def visit(part: nn.Module) -> None:
        nonlocal passed
        if part in around:
            for child in part.children():
                visit(child)
            return
        passed = numbers.get(part, passed)
        is_after = passed > 0 and part not in numbers
        for inner in part.modules():
            depth = 0 if is_after and isinstance(inner, nn.Embedding) else passed + is_after
            depths.setdefault(inner, depth)

    visit(network)
    return depths


def parameter_depths(network: nn.Module) -> Iterator[tuple[str, nn.Parameter, int]]:
    """Yield a network's parameters in the order of `named_parameters`, each with its depth as in `module_depths`.

    Parameters on a module that contains blocks, such as position embeddings, have depth 0; projections have depth n + 1.
    """
    depths, last = module_depths(network), len(blocks(network)) + 1
    owners = dict(network.named_modules())
    for name, parameter in network.named_parameters():
        path, _, own_name = name.rpartition(".")
        yield name, parameter, depths.get(owners[path], last if PROJECTION.search(own_name) else 0)
