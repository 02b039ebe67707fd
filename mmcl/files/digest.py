"""Digest of values and files that is the same on every machine."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest(*parts: object) -> str:
    """Hex digest of values with a portable `repr`, of bytes, or of the files at paths."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            state.update(part.stat().st_size.to_bytes(8, "little"))
            with part.open("rb") as file:
                while block := file.read(2**20):
                    state.update(block)
            continue
        encoded = part if isinstance(part, bytes) else repr(part).encode("utf-8", "surrogatepass")
        state.update(len(encoded).to_bytes(8, "little") + encoded)
    return state.hexdigest()
