"""Copies of tensors to the host that are read later, so that the host does not wait for the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class HostCopy:
    """Start to copy tensors to the host. A GPU fills page-locked memory while it works on; other devices are waited for.

    Args:
        tensors: by name, on one device; they may be changed afterwards.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._event: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._copies = {name: _pinned_copy(tensor) for name, tensor in tensors.items()}
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def read(self) -> dict[str, Tensor]:
        """Return the copies; wait until they are complete."""
        if self._event is not None:
            self._event.synchronize()
        return self._copies


def _pinned_copy(tensor: Tensor) -> Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor.detach(), non_blocking=True)


def to_device(numbers: list[float], device: torch.device) -> Tensor:
    """Return numbers of the host as a float32 vector on a device, without waiting for the device."""
    vector = torch.tensor(numbers, dtype=torch.float32, pin_memory=device.type == "cuda")
    return vector.to(device, non_blocking=True)
