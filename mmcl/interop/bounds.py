"""Memory limits for building a model from an untrusted folder.

A few bytes of config.json can request a context of ten million tokens. Allocations and registrations are therefore counted
while a model is built, and the first tensor that the weights file could not fill stops the build before memory is allocated.
Nothing is requested from the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from mmcl.errors import UserError

SLACK = 2**26
"""Elements allowed regardless of the weights: masks, position tables, the unused half of a dual model."""
MODULES = 50_000
"""Maximum number of modules and parameters of a model; the largest public models have a few thousand."""

CALLS = 50_000
"""Maximum number of operations in a build; the largest public models take about five thousand."""


@contextmanager
def bounded_build(weights: Sequence[Path], where: str) -> Iterator[None]:
    """Limits a build to the size of the weights: four elements per byte of their files, plus `SLACK`.

    Args:
        weights: the files with the weights of the model.
        where: location named in error messages, such as the folder.

    Raises:
        UserError: the build exceeds a limit.
    """
    limit = 4 * sum(file.stat().st_size for file in weights) + SLACK
    registered = {"parameters": 0, "modules": 0}

    def refuse(what: str) -> UserError:
        return UserError(f"{where}: describes {what}, which its weights cannot fill")

    def count(module: nn.Module, name: str, child: Any) -> None:
        registered["modules"] += 1
        registered["parameters"] += child.numel() if isinstance(child, Tensor) else 0
        if registered["modules"] > MODULES or registered["parameters"] > limit:
            raise refuse(f"{registered['modules']:,} modules of {registered['parameters']:,} parameters")

    hooks = [register_module_parameter_registration_hook(count), register_module_module_registration_hook(count)]
    try:
        with _Allocations(limit, refuse):
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _Allocations(TorchDispatchMode):
    """Computes the shape of every new tensor before the tensor."""

    def __init__(self, limit: int, refuse: Any):
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it without types
        self.limit, self.refuse, self.calls = limit, refuse, 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing is compiled here, and torch would import its compiler, for seconds, to keep this out of graphs."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.calls += 1
        if self.calls > CALLS:
            raise self.refuse(f"{CALLS:,} operations")
        if func is torch.ops.aten.unbind.int and args[0].shape[0] > CALLS:  # a loop over its rows
            raise self.refuse(f"{args[0].shape[0]:,} tensors in a list")
        if not func.is_view and not func._schema.is_mutable:
            for size in _new_sizes(func, args, kwargs):
                if math.prod(size) > self.limit:
                    raise self.refuse(f"a tensor of {' x '.join(map(str, size))} elements")
        return func(*args, **kwargs)


def _new_sizes(func: Any, args: Any, kwargs: dict[str, Any]) -> Sequence[Sequence[int]]:
    """The shapes of the tensors that an operation would allocate."""
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    device = kwargs.get("device") or (given[0].device if given else "cpu")
    if torch.device(device).type == "meta":
        return []
    names = [argument.name for argument in func._schema.arguments]
    # Of these two kinds the shape is plain, and torch would import its compiler, for seconds, to compute it on `meta`.
    if "size" in names and not given:
        return [kwargs["size"] if "size" in kwargs else args[names.index("size")]]
    if torch.Tag.pointwise in func.tags and given:
        return [torch.broadcast_shapes(*(tensor.shape for tensor in given))]
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
    try:
        made = func(*args, **(kwargs | {"device": "meta"} if "device" in names else kwargs))
    except (NotImplementedError, RuntimeError):  # without a shape of its own on that device, or the real call fails alike
        return []
    return [leaf.shape for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
