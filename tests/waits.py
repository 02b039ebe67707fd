"""Counting, on a CPU, the operations for which a program on a GPU would wait: those whose result the host needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
# The values of a tensor, and shapes that depend on them.
_WAITING = {
    _aten._local_scalar_dense,
    _aten.is_nonzero,
    _aten.equal,
    _aten.nonzero,
    _aten.masked_select,
    _aten.bincount,
    _aten._unique2,
    _aten.unique_dim,
    _aten.unique_consecutive,
}
_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_}


class Waits(TorchDispatchMode):
    """Counts waits and operations within the context.

    Attributes:
        waits: names of the operations that would wait, in order.
        launches: number of operations that compute or copy something.
    """

    _is_paused = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: list[str] = []
        self.launches = 0

    def __enter__(self) -> Waits:
        self._stack = ExitStack()
        for name in ("tolist", "numpy"):  # on a CPU these are no operation
            self._stack.enter_context(mock.patch.object(Tensor, name, self._noted(getattr(Tensor, name), name)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._stack.close()

    @classmethod
    @contextmanager
    def paused(cls) -> Iterator[None]:
        """Context in which nothing is counted, for what only on a CPU looks like a wait."""
        cls._is_paused = True
        try:
            yield
        finally:
            cls._is_paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._is_paused:
            return func(*args, **(kwargs or {}))
        self.launches += not _is_view(func)
        packet = func.overloadpacket
        if packet in _WAITING or (packet in _INDEXING and any(_is_mask(index) for index in args[1])):
            self.waits.append(str(packet))
        if packet is _aten.repeat_interleave and (kwargs or {}).get("output_size") is None:
            self.waits.append(str(packet))
        return func(*args, **(kwargs or {}))

    def _noted(self, method: Any, name: str) -> Any:
        def noted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self._is_paused:
                self.waits.append(name)
            return method(tensor, *args, **kwargs)

        return noted


def _is_view(func: Any) -> bool:
    return any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns)


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)
