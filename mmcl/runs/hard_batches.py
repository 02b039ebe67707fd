"""Hard batches of a run: clusters of its training data by stored rows, computed once by the first process.

The clusters are in a file in the run directory, which all processes map into memory and resumed runs use again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmcl.config import Config, HardBatchesConfig
from mmcl.data.batches.clusters import cluster_rows
from mmcl.data.sample import Sample
from mmcl.data.source import Source
from mmcl.data.stored_rows import read_rows, rows_of_texts
from mmcl.engine.guards import run_on_first_process
from mmcl.errors import UserError
from mmcl.files.atomic import staged
from mmcl.files.digest import digest
from mmcl.files.mapped import reserve_array
from mmcl.logging import get_logger
from mmcl.methods.method import Method
from mmcl.runs.stored_inputs import stored_inputs
from mmcl.runs.stored_shards import Shards, open_stored_shards, rows_of_samples
from mmcl.terminal import counted

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = get_logger(__name__)

_WHERE = "data.hard_batches"
_BLOCK = 4096
"""Samples that are read at a time where stored rows are the training data themselves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HardBatches:
    """Clusters of the samples of a run.

    Attributes:
        config: side, size and what is skipped.
        file: where they are, see `ClusterOrder`; written by `store_clusters`.
        shards: folder of the rows; None where stored rows are the training data themselves.
        width: numbers of each row.
        key: digest of the rows.
    """

    config: HardBatchesConfig
    file: Path
    shards: Shards | None
    width: int
    key: str


def open_hard_batches(config: Config, method: Method, source: Source) -> HardBatches | None:
    """Return the hard batches of a run, or None if it has none. Reads no rows but one.

    Raises:
        UserError: the folder is not complete, was made from other data or has no rows of captions; there are too few samples;
            or the method has no negatives.
    """
    asked = config.data.hard_batches
    if asked is None:
        return None
    if method.describe(config.train.batch_size).negatives is None:
        raise UserError(f"{_WHERE} has no use: method {config.method.name} has no negatives; remove it")
    if asked.skip + asked.cluster > len(source):
        raise UserError(
            f"{_WHERE}: cluster {asked.cluster} and skip {asked.skip} are more than the {counted(len(source), 'sample')}; "
            "lower them"
        )
    shards, width = _rows_of(asked, source)
    key = digest(source.fingerprint, asked.side, None if shards is None else shards.digest)
    file = Path(config.run_dir or "") / "features" / f"clusters-{digest(key, asked.cluster, asked.skip)[:16]}.npy"
    return HardBatches(config=asked, file=file, shards=shards, width=width, key=key)


def _rows_of(asked: HardBatchesConfig, source: Source) -> tuple[Shards | None, int]:
    """Return the folder of the rows, or None if they are the training data themselves; and their width."""
    if asked.embeddings is None:
        own = stored_inputs(source).get(asked.side)
        if own is None:
            raise UserError(f"{_WHERE}.embeddings is missing: name the folder that `mmcl embed` wrote of the training data")
        return None, read_rows(own).shape[1]
    shards = open_stored_shards(Path(asked.embeddings).expanduser(), source.origins.sources, f"{_WHERE}.embeddings")
    if asked.side == "text" and not shards.texts:
        raise UserError(f"{_WHERE}.side is text, and {shards.path} has no rows of captions: set it to image")
    return shards, shards.width


def store_clusters(batches: HardBatches, source: Source, accelerator: Accelerator) -> None:
    """Compute the clusters in the first process, unless they are there. All processes call this.

    Raises:
        UserError: a sample has no row, a shard is damaged, or the file cannot be written.
    """
    run_on_first_process(accelerator, partial(_write, batches, source))


def _write(batches: HardBatches, source: Source) -> None:
    if batches.file.exists():
        return
    size, skip = batches.config.cluster, batches.config.skip
    with staged(batches.file) as stage:
        row_NE = reserve_array(stage.with_name("rows.npy"), (len(source), batches.width), "float32")
        for chosen, row_nE in _rows_by_sample(batches, source):
            row_NE[chosen] = row_nE
        found = cluster_rows(row_NE, size, skip)
        np.save(stage, found.order_N)
    crowded = f", and {counted(found.crowded, 'sample')} with one of its {skip} nearest, for want of others"
    logger.info(
        f"hard batches: clusters of {size} samples with a mean cosine of {found.cosine:.3f}, where that of any two is "
        f"{found.random:.3f}{crowded if found.crowded else ''}"
    )


def _rows_by_sample(batches: HardBatches, source: Source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield samples, int64 [n], and their rows [n, E]; of several captions, the mean."""
    is_image = batches.config.side == "image"
    if batches.shards is None:
        for start in range(0, len(source), _BLOCK):
            chosen = np.arange(start, min(start + _BLOCK, len(source)))
            yield chosen, np.stack([_own_row(source[index], is_image) for index in chosen.tolist()])
        return
    for shard, chosen, row_n in rows_of_samples([batches.shards], source):
        rows = []
        for index, row in zip(chosen.tolist(), row_n.tolist(), strict=True):
            sample = source[index]
            names = [sample.name] if is_image else _captions(sample)
            rows.append(np.mean([shard.row(batches.config.side, row, name) for name in names], axis=0, dtype=np.float32))
        yield chosen, np.stack(rows)


def _own_row(sample: Sample, is_image: bool) -> np.ndarray:
    rows = [sample.row] if is_image and sample.row else rows_of_texts(() if is_image else _captions(sample))
    if not rows:
        raise _without_row(sample)
    row: np.ndarray = read_rows(rows).mean(axis=0)
    return row


def _captions(sample: Sample) -> tuple[str, ...]:
    if not sample.captions:
        raise _without_row(sample)
    return sample.distinct_captions


def _without_row(sample: Sample) -> UserError:
    return UserError(f"{_WHERE}: {sample.name} has no row of this side: set the other side, or leave it out by data.keep")
