"""The device that a model runs on, and the cores of a processor that it takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmcl.errors import UserError

_SMALL_WORK = 2**30
"""Bound on the multiplications of one image. A network within it needs a small part of them, as most weights see a smaller
image, and takes a core a few milliseconds, about as long as reading the image."""


def find_device(device: str | torch.device | None = None) -> torch.device:
    """Returns a device of this machine; by default the GPU if there is one, else the CPU.

    Raises:
        UserError: there is no such device here; lists those that there are.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
    """
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "xpu": torch.xpu.device_count(),
    }
    if device is None:
        return torch.device("cuda" if counts["cuda"] else "cpu")
    numbered = (f"{kind}:{number}" for kind, count in counts.items() for number in range(count) if count > 1)
    here = ", ".join([*(kind for kind, count in counts.items() if count), *numbered])
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise UserError(f"device {str(device)!r} is unknown; this machine has {here}") from None
    if (found.index or 0) >= counts.get(found.type, 2**63):
        raise UserError(f"device {str(device)!r} is not available; this machine has {here}")
    return found


@contextmanager
def beside_reading(device: torch.device, multiplications: int) -> Iterator[None]:
    """Leaves a core to the threads that read images, while a small network encodes others within the block.

    Otherwise its threads, which wait for each other actively, and those that read would keep each other from the cores. The
    number of threads, and with it the rounding of sums, depends on the machine and the model but not on the images. It is that
    of the process, so only the main thread changes it: several that set it back would leave each other's number.

    Args:
        device: of the network.
        multiplications: bound on those of the network for one image.
    """
    threads, is_main = torch.get_num_threads(), threading.current_thread() is threading.main_thread()
    if device.type != "cpu" or multiplications > _SMALL_WORK or threads == 1 or not is_main:
        yield
        return
    torch.set_num_threads(threads - 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
