"""The device that a model runs on."""

from __future__ import annotations

import torch

from mmcl.errors import UserError


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
