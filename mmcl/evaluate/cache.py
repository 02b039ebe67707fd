"""On-disk cache of embeddings, keyed by everything that they depend on.

An entry consists of `KEY.safetensors` and `KEY.json`, which records the content, its size in bytes and its SHA-256. Both are
written to temporary files and renamed, the JSON last, so that an entry is complete or absent. The least recently used entries
are evicted.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmcl.errors import UserError
from mmcl.files.atomic import write_file
from mmcl.files.digest import digest
from mmcl.files.untrusted import read_json
from mmcl.logging import get_logger

logger = get_logger(__name__)

MAX_BYTES = 4 * 2**30


def library_versions() -> dict[str, str]:
    """Versions of the libraries that influence an embedding besides its model and data."""
    return {name: str(sys.modules[name].__version__) for name in ("mmcl", "torch", "numpy", "PIL")}


class EmbeddingCache:
    """A folder of cached embeddings.

    Args:
        folder: created at the first write.
        max_bytes: maximum size of all entries together; a larger array is not stored.
    """

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES):
        self.folder = folder
        self.max_bytes = max_bytes

    def load(self, depends_on: Mapping[str, str]) -> np.ndarray | None:
        """Returns the rows that `save` stored with the same key, or None. Removes damaged entries with a warning."""
        from safetensors.numpy import load

        entry, data = self._paths(depends_on)
        if not entry.is_file():
            return None
        try:
            content = data.read_bytes()
            facts = read_json(entry)
            if (facts["bytes"], facts["sha256"]) != (len(content), hashlib.sha256(content).hexdigest()):
                raise UserError("its bytes are not those that were written")
            os.utime(entry)
            return load(content)["rows"]
        except (UserError, OSError, KeyError) as error:
            logger.warning(f"{data}: a cached embedding is damaged ({error}) and is computed again")
            self._remove(entry)
            return None

    def save(self, depends_on: Mapping[str, str], rows: np.ndarray) -> None:
        """Stores float32 [N, D] and evicts entries above the limit. Logs a warning if the disk is full or read-only."""
        from safetensors.numpy import save

        entry, data = self._paths(depends_on)
        content = save({"rows": np.ascontiguousarray(rows)})
        if len(content) > self.max_bytes:
            return
        facts = {"depends_on": dict(depends_on), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        try:
            write_file(data, content)
            write_file(entry, json.dumps(facts, indent=1))
            self._make_room()
        except (UserError, OSError) as error:
            logger.warning(f"{self.folder}: embeddings are not cached: {error}")

    def _paths(self, depends_on: Mapping[str, str]) -> tuple[Path, Path]:
        key = digest(sorted(depends_on.items()))[:32]
        return self.folder / f"{key}.json", self.folder / f"{key}.safetensors"

    def _make_room(self) -> None:
        sizes = {file: file.stat() for file in self.folder.glob("*.safetensors")}
        total = sum(size.st_size for size in sizes.values())
        entries = sorted(self.folder.glob("*.json"), key=lambda entry: entry.stat().st_mtime_ns)
        for entry in entries:
            if total <= self.max_bytes:
                return
            data = entry.with_suffix(".safetensors")
            total -= sizes[data].st_size if data in sizes else 0
            self._remove(entry)

    @staticmethod
    def _remove(entry: Path) -> None:
        # The JSON first, so that an interruption never leaves an entry without its data.
        entry.unlink(missing_ok=True)
        entry.with_suffix(".safetensors").unlink(missing_ok=True)


def default_cache() -> EmbeddingCache | None:
    """The cache in the folder of the environment variable MMCL_CACHE, else ~/.cache/mmcl/embeddings; None if it is "off"."""
    place = os.environ.get("MMCL_CACHE") or "~/.cache/mmcl/embeddings"
    return None if place == "off" else EmbeddingCache(Path(place).expanduser())
