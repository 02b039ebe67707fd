"""Hard negatives of a dataset: captions that are near to the image or the caption of a sample, and are none of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from mmcl.data.captions import caption_key
from mmcl.data.sample import Sample
from mmcl.data.source import Source
from mmcl.errors import UserError
from mmcl.files.atomic import staged
from mmcl.files.mapped import reserve_array
from mmcl.runs.records import write_records
from mmcl.runs.stored_shards import Shards, open_stored_shards, rows_of_samples
from mmcl.search.mining import Mined, MiningLimits, mine
from mmcl.terminal import counted

Query = Literal["image", "text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MinedTable:
    """What was written.

    Attributes:
        samples: number of samples in the data.
        rows: samples in the table, which are those with a negative.
        captions: number of different captions.
        mined: negatives of each sample among the captions.
        examples: some rows of the table, those with the highest scores first.
    """

    samples: int
    rows: int
    captions: int
    mined: Mined
    examples: Sequence[dict[str, Any]]


def mine_table(source: Source, folder: Path, out: Path, query: Query, limits: MiningLimits, *, examples: int = 3) -> MinedTable:
    """Find captions of other samples that are near to each sample, by rows that `mmcl embed` stored, and write them to a table.

    Captions that are equal but for case and white space are one. Those of the sample itself, and of samples with equal `ids`
    or in its group, are never its negatives. The table has the columns image (a path; not without images), caption and
    negative (lists of texts), and a row for each sample that has a negative.

    Args:
        source: the data.
        folder: shards of `mmcl embed`.
        out: a .parquet or .jsonl file.
        query: what is compared with the captions: images, or the samples' own captions, of several their mean.
        limits: what a negative is.
        examples: number of rows to return.

    Raises:
        UserError: the folder is of other data, incomplete or damaged; or a sample has no caption, no row, or an image without
            a path; or no sample has a negative.
    """
    shards = open_stored_shards(folder, source.origins.sources, "--rows")
    if not shards.texts:
        raise UserError(f"--rows {folder}: has no rows of captions; run `mmcl embed` again, after the data have captions")
    with staged(out) as stage:
        captions = _Captions(source, shards, query, stage.parent)
        mined = captions.mined(limits)
        chosen = np.flatnonzero(mined.row_NK[:, 0] >= 0)
        if not len(chosen):
            refused = ", ".join(f"{name} refused {count:,}" for name, count in mined.refused.items() if count)
            raise UserError(
                f"no sample has a negative, and nothing was written: of {counted(mined.candidates, 'candidate')}, "
                f"{refused or 'all are before --range_min'}; widen the guards"
            )
        table = [captions.row(index, mined.row_NK[index]) for index in chosen.tolist()]
        texts = pa.list_(pa.string())
        write_records(stage, table, pa.schema([(name, pa.string() if name == "image" else texts) for name in table[0]]))
    best = np.argsort(-mined.score_NK[chosen, 0], kind="stable")[:examples].tolist()
    return MinedTable(
        samples=len(source),
        rows=len(table),
        captions=len(captions.texts),
        mined=mined,
        examples=[table[place] for place in best],
    )


class _Captions:
    """The different captions of a source, and the rows of its samples in files below a folder."""

    def __init__(self, source: Source, shards: Shards, query: Query, room: Path):
        self.source = source
        self.texts: list[str] = []
        self.own: list[list[int]] = [[] for _ in range(len(source))]
        self._key_ME = reserve_array(room / "captions.npy", (shards.texts, shards.width), "float32")
        self._query_NE = reserve_array(room / "queries.npy", (len(source), shards.width), "float32")
        self._positive_N = np.empty(len(source), np.float32)
        numbers: dict[str, int] = {}
        for shard, chosen, row_n in rows_of_samples([shards], source):
            for index, row in zip(chosen.tolist(), row_n.tolist(), strict=True):
                sample = _checked(source[index])
                for text in sample.captions:
                    number = numbers.setdefault(caption_key(text), len(numbers))
                    if number == len(self.texts):
                        self.texts.append(text)
                        self._key_ME[number] = _unit(shard.row("text", row, text))
                    self.own[index].append(number)
                own = self._key_ME[self.own[index]]
                self._query_NE[index] = _unit(shard.row("image", row, sample.name) if query == "image" else own.mean(axis=0))
                self._positive_N[index] = (own @ self._query_NE[index]).min()

    def mined(self, limits: MiningLimits) -> Mined:
        """Return the negatives of all samples."""
        members = self.source.groups if self.source.groups is not None else self.source.ids
        family_N = np.arange(len(self.own)) if members is None else np.unique(members, return_inverse=True)[1]
        family_P = np.repeat(family_N, [len(own) for own in self.own])
        return mine(
            torch.from_numpy(self._query_NE),
            torch.from_numpy(self._key_ME[: len(self.texts)]),
            positive_N=self._positive_N,
            family_N=family_N,
            family_P=family_P,
            key_P=np.concatenate([np.array(own, np.int64) for own in self.own]),
            limits=limits,
        )

    def row(self, index: int, negative_K: np.ndarray) -> dict[str, Any]:
        """Return the row of a sample in the table."""
        sample = self.source[index]
        image = {} if sample.image is None else {"image": str(Path(sample.image).absolute())}  # type: ignore[arg-type]
        texts = [self.texts[number] for number in negative_K.tolist() if number >= 0]
        return {**image, "caption": list(sample.distinct_captions), "negative": texts}


def _checked(sample: Sample) -> Sample:
    """Return a sample that a table can name. Raises UserError if it has no caption, or an image without a path."""
    if not sample.check().captions:
        raise UserError(f"{sample.name}: has no caption; leave it out, or give it one")
    if sample.image is not None and not isinstance(sample.image, str | Path):
        raise UserError(
            f"{sample.name}: a table cannot name its image, which is no file of its own; unpack the images into a folder"
        )
    return sample


def _unit(row_E: np.ndarray) -> np.ndarray:
    wide = row_E.astype(np.float32)
    unit: np.ndarray = wide / max(float(np.linalg.norm(wide)), 1e-12)
    return unit
