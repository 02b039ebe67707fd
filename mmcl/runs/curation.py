"""Doubtful pairs of a dataset: captions that do not fit their image, by rows that a model has stored of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mmcl.data.names import names_of
from mmcl.data.source import Source
from mmcl.errors import UserError
from mmcl.evaluate.captions import Captions, captions_of
from mmcl.evaluate.measures.pair_ranks import PairRanks, pair_ranks
from mmcl.files.atomic import staged, write_file
from mmcl.files.mapped import reserve_array
from mmcl.runs.records import write_records
from mmcl.runs.stored_shards import Shards, open_stored_shards, rows_of_samples

SCHEMA = pa.schema(
    [
        ("sample", pa.string()),
        ("image", pa.string()),
        ("caption", pa.string()),
        ("similarity", pa.float32()),
        ("caption_rank", pa.float64()),
        ("captions", pa.int64()),
        ("image_rank", pa.float64()),
        ("images", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Doubt:
    """What makes a pair doubtful.

    Attributes:
        nearest: share of the captions among which a pair's caption must be for its image, and of the images among which its
            image must be for its caption; the first of them always is. 1 for no such limit.
        min_score: least cosine, as in CLIP score filtering (Schuhmann et al., "LAION-400M: Open dataset of CLIP-filtered 400
            million image-text pairs", 2021); None for any.

    Raises:
        UserError: a limit is out of range, or there is none.

    Example:
        >>> Doubt(nearest=0.05, min_score=0.2).in_words()
        "image and caption are not among each other's nearest 5 %, or their cosine is below 0.2"
    """

    nearest: float = 0.1
    min_score: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.nearest <= 1:
            raise UserError(f"--nearest is {self.nearest}: give a share above 0 up to 1")
        if self.min_score is not None and not -1 <= self.min_score <= 1:
            raise UserError(f"--min_score is {self.min_score}: give a cosine from -1 to 1")
        if self.nearest == 1 and self.min_score is None:
            raise UserError("--nearest 1 doubts no pair: lower it, or set --min_score")

    def of(self, ranks: PairRanks) -> np.ndarray:
        """Returns which pairs are doubtful: bool [P]."""
        text_limit, image_limit = (np.maximum(self.nearest * size, 1) for size in (ranks.texts, ranks.images))
        is_far = (ranks.text_rank > text_limit) | (ranks.image_rank > image_limit)
        return is_far if self.min_score is None else is_far | (ranks.similarity < self.min_score)

    def in_words(self) -> str:
        """Returns what is true of a doubtful pair."""
        rank = f"image and caption are not among each other's nearest {100 * self.nearest:g} %"
        score = f"their cosine is below {self.min_score:g}" if self.min_score is not None else ""
        return score if self.nearest == 1 else ", or ".join(filter(None, (rank, score)))


@dataclass(frozen=True, kw_only=True, slots=True)
class CuratedData:
    """What was found.

    Attributes:
        samples: number of samples in the data.
        pairs: number of pairs of an image and a caption.
        records: the doubtful ones, the worst first, as in the table.
        typical: median cosine of the others; None if there is none.
        dropped: samples all of whose captions are doubtful, which the list leaves out.
        kept_in_part: samples with a doubtful caption and another one, which the list keeps.
        uncaptioned: samples without a caption.
        without_rows: samples with captions, but without a row of the image or of any caption.
    """

    samples: int
    pairs: int
    records: Sequence[dict[str, Any]]
    typical: float | None
    dropped: int
    kept_in_part: int
    uncaptioned: int
    without_rows: int


def curate(source: Source, folder: Path, out: Path, doubt: Doubt, *, kept: Path | None = None) -> CuratedData:
    """Find the pairs whose image and caption do not fit, by rows that `mmcl embed` stored, and write them to a table.

    The ranks are those of `retrieval`: captions and images with equal ids, and images with equal captions, are no rivals.

    Args:
        source: the data.
        folder: shards of `mmcl embed`.
        out: a .parquet or .jsonl file.
        doubt: what makes a pair doubtful.
        kept: file for the names of the samples that are not dropped, as `data.keep` reads it; None for none.

    Raises:
        UserError: the folder is of other data, incomplete or damaged; or there are no pairs; or no sample would be kept, or one
            that the list cannot name.
    """
    shards = open_stored_shards(folder, source.origins.sources, "--rows")
    if not shards.texts:
        raise UserError(f"--rows {folder}: has no rows of captions; run `mmcl embed` without --features, on data with captions")
    with staged(out) as stage:
        pairs = _Pairs(source, shards, stage.parent)
        ranks = pairs.ranks()
        is_doubtful_P = doubt.of(ranks)
        names = list(names_of(source))
        worst = np.flatnonzero(is_doubtful_P)
        worst = worst[np.lexsort((pairs.sample_P[worst], ranks.similarity[worst]))]
        records = [pairs.record(number, ranks, names) for number in worst.tolist()]
        counts = np.bincount(pairs.sample_P, minlength=len(source))
        doubtful = np.bincount(pairs.sample_P[is_doubtful_P], minlength=len(source))
        is_dropped = (doubtful > 0) & (doubtful == counts)
        if kept is not None:
            _write_list(kept, [name for name, dropped in zip(names, is_dropped.tolist(), strict=True) if not dropped])
        write_records(stage, records, SCHEMA)
    others = ranks.similarity[~is_doubtful_P]
    uncaptioned = sum(not source[index].captions for index in range(len(source)))
    return CuratedData(
        samples=len(source),
        pairs=len(is_doubtful_P),
        records=records,
        typical=float(np.median(others)) if len(others) else None,
        dropped=int(is_dropped.sum()),
        kept_in_part=int(((doubtful > 0) & ~is_dropped).sum()),
        uncaptioned=uncaptioned,
        without_rows=len(source) - uncaptioned - int((counts > 0).sum()),
    )


class _Pairs:
    """The pairs of a source that have rows, and these rows, in files below a folder.

    Attributes:
        sample_P: int64, the sample of each pair.
    """

    def __init__(self, source: Source, shards: Shards, room: Path):
        self._source, self._captions = source, captions_of(source)
        self._image_NE = reserve_array(room / "images.npy", (len(source), shards.width), "float32")
        self._text_ME = reserve_array(room / "texts.npy", (len(self._captions.texts), shards.width), "float32")
        self._sample_of_image: list[int] = []
        self._caption_of_text: list[int] = []
        pairs = self._read(shards)
        if not pairs:
            raise UserError(f"{shards.where} {shards.path}: has no rows of an image and its caption; embed such data")
        self.sample_P, self._image_P, self._text_P = np.array(pairs, np.int64).T

    def _read(self, shards: Shards) -> list[tuple[int, int, int]]:
        """Copies the rows, without gaps. Returns the pairs: sample, row of the image, row of the text."""
        number = _numbers(self._captions)
        place: dict[int, int] = {}
        pairs = []
        for shard, chosen, row_n in rows_of_samples([shards], self._source):
            for index, row in zip(chosen.tolist(), row_n.tolist(), strict=True):
                values = shard.get("image", row, "")
                if values is not None:
                    self._image_NE[len(self._sample_of_image)] = values
                    self._sample_of_image.append(index)
                for text in self._source[index].distinct_captions:
                    caption = number[text, int(self._captions.image_ids[index])]
                    own = shard.get("text", row, text)
                    if own is not None and caption not in place:
                        place[caption] = len(self._caption_of_text)
                        self._text_ME[place[caption]] = own
                        self._caption_of_text.append(caption)
                    if own is not None and values is not None:
                        pairs.append((index, len(self._sample_of_image) - 1, place[caption]))
        return pairs

    def ranks(self) -> PairRanks:
        """Returns the ranks of all pairs."""
        images, texts = len(self._sample_of_image), len(self._caption_of_text)
        return pair_ranks(
            torch.from_numpy(self._image_NE[:images]),
            torch.from_numpy(self._text_ME[:texts]),
            torch.from_numpy(self._captions.image_ids[self._sample_of_image]),
            torch.from_numpy(self._captions.text_ids[self._caption_of_text]),
            self._image_P,
            self._text_P,
        )

    def record(self, pair: int, ranks: PairRanks, names: Sequence[str]) -> dict[str, Any]:
        """Returns the record of a pair in the table."""
        index = int(self.sample_P[pair])
        image = self._source[index].image
        return {
            "sample": names[index],
            "image": str(Path(image).absolute()) if isinstance(image, str | Path) else None,
            "caption": self._captions.texts[self._caption_of_text[self._text_P[pair]]],
            "similarity": float(ranks.similarity[pair]),
            "caption_rank": float(ranks.text_rank[pair]),
            "captions": int(ranks.texts[pair]),
            "image_rank": float(ranks.image_rank[pair]),
            "images": int(ranks.images[pair]),
        }


def _numbers(captions: Captions) -> dict[tuple[str, int], int]:
    """Returns the number of each caption by its text and the id of its images."""
    return {key: number for number, key in enumerate(zip(captions.texts, captions.text_ids.tolist(), strict=True))}


def _write_list(file: Path, names: Sequence[str]) -> None:
    """Writes names, one a line. Raises UserError if there is none, or one that would be two lines."""
    if not names:
        raise UserError(f"--list {file}: all samples are doubtful, and nothing would be left to train on; lower the limits")
    broken = next((name for name in names if "\n" in name or "\r" in name), None)
    if broken is not None:
        raise UserError(f"--list {file}: the name {broken!r} has a line break, and a list has a name on each line; rename it")
    write_file(file, "".join(f"{name}\n" for name in names))
