"""Location of downloaded datasets."""

from __future__ import annotations

import os
from pathlib import Path


def data_root(root: str | None) -> Path:
    """Returns the given folder, else the environment variable MMCL_DATA_ROOT, else ~/.cache/mmcl."""
    return Path(root or os.environ.get("MMCL_DATA_ROOT") or "~/.cache/mmcl").expanduser()
