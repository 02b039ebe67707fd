"""The `webdataset` source: random access to tar shards written by img2dataset, CLIP_benchmark or webdataset."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from filelock import FileLock

from mmcl.data.sample import Sample
from mmcl.data.source import Source, given_path
from mmcl.data.sources.shards.index import Shard, index_shard, open_shard, scan_shard
from mmcl.data.sources.shards.paths import NUMBER_OF_SHARDS, find_shards, side_file
from mmcl.data.usage import Usage, count_unused, incomplete, merge_unused
from mmcl.errors import UserError
from mmcl.files.byte_range import LocalFile, find_file
from mmcl.files.digest import digest
from mmcl.files.listing import list_files, reason_unused
from mmcl.files.remote import Copies, RemoteFile
from mmcl.files.root import data_root
from mmcl.files.text_file import find_encoding, text_lines
from mmcl.progress import progress_bar
from mmcl.terminal import counted

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
MAX_CLASSES = 2**20
"""Upper limit of class indices, above any common dataset; each class gets a name."""
_QUERIES = 16
"""Maximum number of concurrent queries for remote files."""


class WebDatasetSource(Source):
    """Images in tar shards, with captions in a .txt or .caption (one per line) or .json with the same key, and class indices in
    a .cls. A key ends at the first dot of a name, so `photo.v1.jpg` is not the image of the key `photo`; `usage` counts such
    members. Further texts of a key may be called `key.0.txt`, `key.caption.txt` or `key.jpg.txt`.

    Shards are indexed when they are first opened, and then read by offset, so order, resume and the number of workers behave as
    for every source. An incomplete sample (no image, two images, a text that is not UTF-8) keeps its index, and is replaced in
    training like any other bad sample. A truncated shard gives the samples before the cut, with a warning. `mmcl data verify`
    lists both.

    With `classnames.txt` and `zeroshot_classification_templates.txt` beside the shards or one folder above, as CLIP_benchmark
    writes them, labels have names and zero-shot classification uses these templates.

    Args:
        path: a .tar file, a folder of them, a glob, braces such as "data/{00000..00099}.tar", or several of these joined
            by "::". May also be URLs (http, https, s3, gs, hf): shards are copied when they are indexed, and those evicted from
            the cache are read by range requests.
        root: indices are stored in its subfolder "index", copies of remote shards in "remote".
        split: subfolder to use, if several contain shards.
        fields: caption fields of the .json, with a text or a list of texts; default: the .txt or, without one, the field
            "caption" or another usual one.
        cache_gb: size limit of the copies; the least recently used are deleted.

    Raises:
        UserError: a shard is missing, there are no samples, or a label has no name.
    """

    def __init__(
        self,
        path: str | None,
        root: str | None,
        *,
        split: str | None = None,
        fields: Sequence[str] | None = None,
        cache_gb: float = 100.0,
    ):
        path = given_path(path, "webdataset")
        self._fields = fields
        copies, cache = Copies.below(root, cache_gb), data_root(root) / "index"
        with ThreadPoolExecutor(_QUERIES) as pool:
            files = list(pool.map(lambda shard: find_file(shard, copies), find_shards(path, split)))
        self.shards = open_shards(files, cache, fields)
        self.places = sorted({f"{shard.path.rpartition('/')[0]}/" for shard in self.shards})
        self._starts = np.cumsum([0, *map(len, self.shards)])
        if len(self) == 0:
            reason = next((f": {shard.path} {shard.facts.broken}" for shard in self.shards if shard.facts.broken), "")
            raise UserError(f"{path}: no image or text in it{reason or f', {self._members.to_text()}'}")
        folder = Path(path) / (split or "")
        self._files = _files_used(folder, files, cache) if folder.is_dir() else None
        self.class_names = self._names_of_classes(_side_file(files[0], CLASS_NAMES))
        templates = _side_file(files[0], TEMPLATES)
        if templates:
            self.templates = [line.replace("{c}", "{}") for line in templates]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.shards[shard][index - int(self._starts[shard])]

    @cached_property
    def labels(self) -> np.ndarray | None:
        labels = np.concatenate([shard.label for shard in self.shards])
        return None if (labels < 0).all() else labels

    @property
    def fingerprint(self) -> str:
        """Digest of all members' names, sizes and times, and of all texts; does not read pixels."""
        return digest([shard.facts.fingerprint for shard in self.shards])

    @property
    def usage(self) -> Sequence[Usage]:
        """Usage of the files in the folder, if it is one, and of the members of the shards."""
        return [self._members] if self._files is None else [self._files, self._members]

    @property
    def warnings(self) -> Sequence[str]:
        found = []
        broken = [shard for shard in self.shards if shard.facts.broken]
        if broken:
            found.append(
                f"{len(broken)} of {counted(len(self.shards), 'shard')} broken, of which only a part can be read; the first: "
                f"{broken[0].path} {broken[0].facts.broken}"
            )
        images, captions, problems = np.sum([_counts(shard) for shard in self.shards], axis=0).tolist()
        missing = {"no image": len(self) - images, "no caption": len(self) - captions}
        return [*found, *incomplete(len(self), "samples in shards", missing, problems), *super().warnings]

    @property
    def _members(self) -> Usage:
        unused = merge_unused(shard.facts.other for shard in self.shards)
        return Usage(unit="members", used=sum(shard.facts.members for shard in self.shards), unused=unused)

    def broken_files(self) -> Iterator[str]:
        for shard in self.shards:
            facts = scan_shard(shard.file, self._fields)[1]
            if facts.broken:
                yield f"{shard.path}: {facts.broken}"
            elif facts.fingerprint != shard.facts.fingerprint:
                yield f"{shard.path}: its members differ from its index, though its size and time do not; copy it again"

    def _names_of_classes(self, names: list[str] | None) -> list[str] | None:
        if self.labels is None:
            return None
        largest = int(self.labels.max())
        if largest >= MAX_CLASSES:
            raise UserError(f"a sample has the class number {largest}; number the classes from 0, up to {MAX_CLASSES - 1:,}")
        if names is None:
            return [str(number) for number in range(largest + 1)]
        if largest >= len(names):
            raise UserError(f"{CLASS_NAMES} has {counted(len(names), 'name')}, and a sample the class number {largest}")
        return names


def open_shards(files: Sequence[LocalFile | RemoteFile], cache: Path, fields: Sequence[str] | None) -> list[Shard]:
    """Opens shards through their indices; builds missing indices, one process at a time.

    Indices that were built before an interruption are reused.
    """
    shards = [open_shard(file, cache, fields) for file in files]
    if None in shards:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".lock"):  # Other processes wait and then find the indices.
            for number, file in enumerate(progress_bar(files, total=len(files), desc="index", unit="shard")):
                shards[number] = shards[number] or open_shard(file, cache, fields) or index_shard(file, cache, fields)
    return [shard for shard in shards if shard is not None]


def _files_used(folder: Path, shards: Sequence[LocalFile | RemoteFile], cache: Path) -> Usage:
    """Usage of the files in a folder of shards: the shards and the files that describe them."""
    paths = {os.path.relpath(shard.path, folder) for shard in shards}
    known = {CLASS_NAMES, TEMPLATES, NUMBER_OF_SHARDS, *(side_file(path) for path in paths)}
    own = f"{os.path.relpath(cache, folder)}/"
    names = [name for name in list_files(folder).names if not name.startswith(own)]
    unused = [(reason_unused(name), name) for name in names if name not in paths and name.rpartition("/")[2] not in known]
    return Usage(unit="files", used=len(names) - len(unused), unused=count_unused(unused))


def _counts(shard: Shard) -> tuple[int, int, int]:
    """Numbers of samples with an image, with a caption, and with a problem."""
    captions = pc.list_value_length(shard.columns["captions"]).to_numpy()
    return int((shard.offset >= 0).sum()), int((captions > 0).sum()), len(shard) - shard.columns["problem"].null_count


def _side_file(shard: LocalFile | RemoteFile, name: str) -> list[str] | None:
    """Lines of a file in the folder of a shard or its parent; None if it is in neither."""
    place = shard.nearby(name)
    if place is None:
        return None
    return [line.strip() for _, line in text_lines(place, find_encoding(place, None)) if line.strip()]
