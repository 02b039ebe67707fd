"""Counts that are part of a module's state and are also known on the host."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HostCount:
    """An int64 scalar buffer of a module whose value the host knows, so that reading it does not wait for a GPU.

    The value on the host is that of the buffer as long as only `add` changes it. Any other change, such as loading a checkpoint
    or moving the module to a device, shows in the buffer's version or identity, and the buffer is read again.

    Args:
        module: the module that gets the buffer, which starts at 0.
        name: name of the buffer.

    Example:
        >>> module = torch.nn.Module()
        >>> count = HostCount(module, "step")
        >>> count.add(3)
        >>> int(count), module.step
        (3, tensor(3))
    """

    def __init__(self, module: nn.Module, name: str):
        module.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self._module, self._name = module, name
        self._remember(0)

    def __int__(self) -> int:
        if self._known is not self._buffer or self._version != self._known._version:
            self._remember(int(self._buffer))
        return self._value

    @torch.no_grad()
    def add(self, number: int) -> None:
        """Add a number to the count."""
        value = int(self) + number
        self._buffer.add_(number)
        self._remember(value)

    @property
    def _buffer(self) -> Tensor:
        buffer: Tensor = getattr(self._module, self._name)
        return buffer

    def _remember(self, value: int) -> None:
        self._value, self._known, self._version = value, self._buffer, self._buffer._version
