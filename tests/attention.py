"""In which types of numbers attention is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional


@contextmanager
def recorded_attention() -> Iterator[set[torch.dtype]]:
    """Context with the set of the types in which torch has computed attention in it, on a CPU without AMX."""
    found: set[torch.dtype] = set()
    compute = functional.scaled_dot_product_attention

    def record(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        casts = torch.is_autocast_enabled("cpu") and query.dtype != torch.float64  # which autocast leaves as it is
        found.add(torch.get_autocast_dtype("cpu") if casts else query.dtype)
        return compute(query, *args, **kwargs)

    with (
        mock.patch.object(torch.cpu, "_is_amx_tile_supported", return_value=False),
        mock.patch.object(functional, "scaled_dot_product_attention", record),
    ):
        yield found
