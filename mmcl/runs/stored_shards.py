"""Rows that `mmcl embed` has stored of the training data, in folders of shards, found by sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmcl.config import from_dict
from mmcl.data.source import Source
from mmcl.errors import UserError
from mmcl.evaluate.embedding_file import FileMetadata
from mmcl.files.digest import digest
from mmcl.progress import progress_bar
from mmcl.search.shards.files import complete_shards, read_shard, shard_metadata
from mmcl.search.shards.plan import ShardPlan
from mmcl.terminal import listed

EMBED_AGAIN = "run `mmcl embed` on the training data, with the same arguments"


@dataclass(frozen=True, slots=True)
class Shards:
    """A complete folder.

    Attributes:
        path: the folder.
        plan: its plan.
        about: what it says of model and data.
        width: numbers of each row.
        texts: number of rows of captions.
        digest: of all its files.
        where: setting that names the folder, for messages.
    """

    path: Path
    plan: ShardPlan
    about: FileMetadata
    width: int
    texts: int
    digest: str
    where: str


def open_stored_shards(path: Path, origins: Sequence[Source], where: str) -> Shards:
    """Open the folder that a setting names, for data that come from some sources. Reads no shard.

    Raises:
        UserError: it is no complete folder of shards, or was made from none of the sources; names the setting.
    """
    try:
        plan, done = complete_shards(path)
        about, width = shard_metadata(path, plan)
        metadata = from_dict(FileMetadata, about, str(path))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if not any(plan.data == source.fingerprint for source in origins):
        sizes = [f"{len(source):,}" for source in origins]
        is_same = f"{plan.rows:,}" in sizes
        what = "another list of samples" if is_same else f"{plan.rows:,} samples, not {listed(sizes)}"
        raise UserError(f"{where}: {path} was made from {what}; {EMBED_AGAIN}")
    return Shards(path, plan, metadata, width, done.texts, digest(plan.key, *done.files.values()), where)


def rows_of_samples(folders: Sequence[Shards], source: Source) -> Iterator[tuple[ShardRows, np.ndarray, np.ndarray]]:
    """Yield each shard that has rows of the samples, once, with these samples and their rows in the data that it is of.

    Args:
        folders: one for every source that the samples come from, in the order of `Source.origins`.
        source: the samples.
    """
    _, part_N, row_N = source.origins
    for part, folder in enumerate(folders):
        plan = folder.plan
        samples = np.flatnonzero(part_N == part)
        samples = samples[np.argsort(row_N[samples], kind="stable")]
        numbers = progress_bar(range(plan.shards), total=plan.shards, shown=plan.shards > 20, desc="stored rows", unit="shard")
        for number in numbers:
            span = plan.samples(number)
            chosen = samples[slice(*np.searchsorted(row_N[samples], (span.start, span.stop)))]
            if len(chosen):
                yield ShardRows(folder, number), chosen, row_N[chosen]


class ShardRows:
    """The rows of a shard, by kind, row of the sample and, of texts, caption.

    Raises:
        UserError: the shard is damaged, or its rows have another width than the first shard.
    """

    def __init__(self, folder: Shards, number: int):
        self.folder, width = folder, folder.width
        table = read_shard(folder.path, folder.plan, number)
        column = table["embedding"].combine_chunks()
        if column.type.list_size != width:
            raise UserError(
                f"{folder.where}: {folder.path / folder.plan.file(number)} has rows of {column.type.list_size} numbers, and "
                f"the first shard of {width}; delete it, and write it again by the same `mmcl embed`"
            )
        self.values = column.drop_null().flatten().to_numpy().reshape(-1, width)
        has_values = column.is_valid().to_numpy(zero_copy_only=False)
        slots = np.where(has_values, np.cumsum(has_values) - 1, -1).tolist()
        keys = zip(*(table[name].to_pylist() for name in ("kind", "row", "name")), strict=True)
        self.slots = {_key(*key): slot for key, slot in zip(keys, slots, strict=True)}

    def row(self, kind: str, row: int, name: str) -> np.ndarray:
        """Return the row of an image, by any name, or of a caption. Raises UserError if there is none."""
        found = self.get(kind, row, name)
        if found is None:
            what = f"the image {name}" if kind == "image" else f"the caption {name!r}"
            fix = "embed the training data again, or leave the sample out by data.keep"
            raise UserError(f"{self.folder.where}: {self.folder.path} has no row of {what}: {fix}")
        return found

    def get(self, kind: str, row: int, name: str) -> np.ndarray | None:
        """Return the row of an image, by any name, or of a caption; None if there is none."""
        slot = self.slots.get(_key(kind, row, name), -1)
        return None if slot < 0 else self.values[slot]


def _key(kind: str, row: int, name: str) -> tuple[str, int, str]:
    return kind, row, "" if kind == "image" else name
