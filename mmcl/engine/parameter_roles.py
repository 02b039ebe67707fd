"""Role of a parameter in its module: decides about weight decay and Muon.

The number of dimensions does not tell: the layer scale of a ConvNeXt is stored as [C, 1, 1], a class token as [1, 1, D], the
temperature of an attention as [H, 1, 1], and none of them maps features to features.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from torch import nn

Role = Literal["matrix", "table", "other"]
"""matrix: maps features to features. table: rows that are chosen, or mixed, one for a token or an expert. other: biases, norms,
scales, temperatures, and embeddings of positions, classes and registers."""

_LINEAR = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNBase)
_POSITIONS = re.compile(r"position|pos_emb|(^|_)pos($|_)|wpe|bias", re.IGNORECASE)
_PROJECTION = re.compile(r"(^|_)proj(ection)?$")


def parameter_roles(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, Role]]:
    """The parameters of a module in the order of `named_parameters`, each with its role in the submodule that owns it."""
    owners = dict(module.named_modules())
    for name, parameter in module.named_parameters():
        path, _, own_name = name.rpartition(".")
        yield name, parameter, _role(owners[path], path.rpartition(".")[2], own_name, parameter)


def _role(owner: nn.Module, owner_name: str, name: str, parameter: nn.Parameter) -> Role:
    kind = type(owner).__name__
    if isinstance(owner, nn.Embedding):
        return "other" if _POSITIONS.search(owner_name) or _POSITIONS.search(kind) else "table"
    if isinstance(owner, _LINEAR) or kind.endswith("Conv1D"):  # Conv1D: GPT-2's linear layer, stored transposed
        return "matrix" if "weight" in name and name != "weight_g" else "other"  # weight_g: the norms of a weight norm
    if "norm" in kind.lower() or sum(size > 1 for size in parameter.shape) < 2:
        return "other"
    if name != "weight" and not _PROJECTION.search(name):
        return "other"
    return "matrix" if parameter.ndim == 2 and not kind.startswith("CondConv") else "table"  # CondConv: a kernel in each row
