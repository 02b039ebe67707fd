"""Roles of parameters in their modules, which determine weight decay and the use of Muon.

The number of dimensions does not determine the role: the layer scale of a ConvNeXt has shape [C, 1, 1], a class token
[1, 1, D] and an attention temperature [H, 1, 1], but none of them maps features to features.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from torch import nn

from mmcl.encoders.blocks import PROJECTION

Role = Literal["matrix", "table", "adapter", "other"]
"""matrix: maps features to features. table: rows that are selected or mixed, one per token or expert. adapter: part of a
trained change of another parameter. other: biases, norms, scales, temperatures, and embeddings of positions, classes and
registers."""

_LINEAR = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNBase)
_ADAPTER = re.compile(r"(^|[.])parametrizations[.][^.]+[.]\d+([.]|$)")
"""Places of the modules that compute a parameter from another one."""
_POSITIONS = re.compile(r"position|pos_emb|(^|_)pos($|_)|wpe|bias", re.IGNORECASE)


def parameter_roles(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, Role]]:
    """Yield a module's parameters in the order of `named_parameters`, each with its role in the submodule that owns it."""
    owners = dict(module.named_modules())
    for name, parameter in module.named_parameters():
        path, _, own_name = name.rpartition(".")
        if _ADAPTER.search(path):
            yield name, parameter, "adapter"
        else:
            yield name, parameter, _role(owners[path], path.rpartition(".")[2], own_name, parameter)


def _role(owner: nn.Module, owner_name: str, name: str, parameter: nn.Parameter) -> Role:
    kind = type(owner).__name__
    if isinstance(owner, nn.Embedding):
        return "other" if _POSITIONS.search(owner_name) or _POSITIONS.search(kind) else "table"
    if isinstance(owner, _LINEAR) or kind.endswith("Conv1D"):  # Conv1D: GPT-2's linear layer, stored transposed
        return "matrix" if "weight" in name and name != "weight_g" else "other"  # weight_g: the norms of a weight norm
    if "norm" in kind.lower() or sum(size > 1 for size in parameter.shape) < 2:
        return "other"
    if name != "weight" and not PROJECTION.search(name):
        return "other"
    return "matrix" if parameter.ndim == 2 and not kind.startswith("CondConv") else "table"  # CondConv: a kernel in each row
