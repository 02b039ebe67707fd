"""Subsets of a source: selected rows, random splits, and stratified few-label subsets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from mmcl.data.captions import caption_key, text_hash
from mmcl.data.random_streams import Stream
from mmcl.data.sample import Sample
from mmcl.data.source import DerivedSource, Origins, Source
from mmcl.errors import UserError
from mmcl.files.digest import digest
from mmcl.files.disk_cache import cached_array
from mmcl.progress import progress_bar
from mmcl.rng import hash_integers, uniform
from mmcl.terminal import counted


class Subset(DerivedSource):
    """Selected rows of another source.

    Args:
        source: the full source.
        indices: int64, row indices in `source`.
    """

    warnings: Sequence[str] = ()

    def __init__(self, source: Source, indices: np.ndarray):
        super().__init__(source)
        self.warnings = source.warnings
        self.indices = indices
        self.ids = None if source.ids is None else source.ids[indices]
        self.scores = None if source.scores is None else source.scores[indices]
        self.groups = None if source.groups is None else source.groups[indices]
        self.targets = None if source.targets is None else source.targets[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[int(self.indices[index])]

    @cached_property
    def fingerprint(self) -> str:
        return digest(self.source.fingerprint, self.indices.tobytes())

    @cached_property
    def labels(self) -> np.ndarray | None:
        return None if self.source.labels is None else self.source.labels[self.indices]

    @property
    def origins(self) -> Origins:
        """Those of the selected rows."""
        sources, part_N, row_N = self.source.origins
        return Origins(sources, part_N[self.indices], row_N[self.indices])

    def caption(self, index: int, draw: float) -> str:
        return self.source.caption(int(self.indices[index]), draw)

    def view_text(self, view: str, index: int, draw: float) -> str:
        return self.source.view_text(view, int(self.indices[index]), draw)


MANY = 100_000


def split_source(
    source: Source, share: float, seed: int, *, cache: Path | None = None, beside: Sequence[np.ndarray] = ()
) -> tuple[Subset, Subset]:
    """Splits a source at random into (rest, held out).

    Groups are not split: rows with equal `groups`; without these, with equal ids; without either, with the same first caption
    (see `caption_key`). Groups are ordered by a hash of the seed and the group, and held out in this order until the share is
    reached; a group that would exceed it is skipped. So the share is exact if groups are small, and otherwise the nearest
    possible, which the `warnings` of the rest report. Adding data moves few groups between the parts, and the order of the rows
    has no influence.

    Args:
        share: share of rows to hold out, above 0 and below 1; rounded to at least one row.
        cache: folder in which the groups of more than 100,000 samples are cached, since reading all captions is slow, and the
            rows held out.
        beside: `groups` of sources that are split with the same share and seed; a group of several sources is held out of all
            of them or of none, and the share is that of all together.

    Raises:
        UserError: one of the parts would be empty; beside others, only the held-out part may be.
    """
    if cache is None or len(source) < MANY:
        held = _held_out(source, share, seed, cache, beside)
    else:
        name = f"held-out-{digest(source.fingerprint, share, seed, *(one.tobytes() for one in beside))[:32]}.npy"
        held = np.asarray(cached_array(cache / name, lambda: _held_out(source, share, seed, cache, beside)))
    is_held = np.zeros(len(source), bool)
    is_held[held] = True
    rest = Subset(source, np.flatnonzero(~is_held))
    together = "with equal captions or ids" if source.groups is None else "of one group"
    if len(rest) == 0:
        raise UserError(
            f"data.holdout {share}: of a dataset of the mixture, all {counted(len(source), 'sample')} would be held out, as "
            "their groups are; lower the share, or set another train.seed"
        )
    if len(held) != (wanted := _wanted(share, len(source))):
        why = f"data.holdout {share} of {len(source)} samples is {wanted}, and {len(held)} are held out"
        rest.warnings = (*source.warnings, f"{why}: samples {together} stay together")
    return rest, Subset(source, held)


def _wanted(share: float, rows: int) -> int:
    return min(max(int(share * rows + 0.5), 1), rows - 1)


def _held_out(source: Source, share: float, seed: int, cache: Path | None, beside: Sequence[np.ndarray]) -> np.ndarray:
    """Rows to hold out, ascending: int64. Raises UserError if one of the parts would be empty."""
    own = groups_to_keep(source, cache)
    group, place, size = np.unique(np.concatenate([own, *beside]), return_inverse=True, return_counts=True)
    if len(group) < 2 or not 0 < share < 1:
        of = counted(len(group), "different caption" if source.groups is None else "group")
        raise UserError(
            f"data.holdout {share} of {len(source)} samples with {of} leaves an empty part; give more data, or test data of "
            "its own"
        )
    order = np.argsort(uniform(seed, Stream.HOLDOUT, group), kind="stable")
    is_chosen = np.zeros(len(group), bool)
    is_chosen[order[_first_that_fit(size[order], _wanted(share, len(place)))]] = True
    return np.flatnonzero(is_chosen[place[: len(own)]])


def _first_that_fit(sizes: np.ndarray, wanted: int) -> list[int]:
    """Chooses indices of sizes greedily, in order, so that their sum is near `wanted`; at least one, never all."""
    left, taken = wanted, list[int]()
    for place, size in enumerate(sizes.tolist()):
        if size <= left:
            taken.append(place)
            left -= size
        if left == 0:
            break
    is_spare = np.ones(len(sizes), bool)
    is_spare[taken] = False
    spare = np.flatnonzero(is_spare)
    smallest = int(spare[sizes[spare].argmin()])
    is_nearer = sizes[smallest] - left < left and len(spare) > 1
    return [*taken, smallest] if is_nearer or not taken else taken


def label_subset(labels_N: np.ndarray, *, share: float | None = None, per_class: int | None = None, seed: int) -> np.ndarray:
    """Draws a stratified random subset of labeled rows, as for learning from few labels; give `share` or `per_class`.

    A class keeps its first rows in an order determined by the seed and the row indices. So with one seed, a smaller subset is
    contained in a larger one: 1 % in 10 %, and 10 % in 25 per class where that is more.

    Args:
        labels_N: int64 [N]; rows with a negative label are unlabeled and never chosen.
        share: share of every class, above 0 and up to 1; rounded to at least one row per class.
        per_class: rows of every class, 1 or more; a class with fewer keeps all.
        seed: determines the subset.

    Returns:
        int64 [n], the row indices, ascending.

    Raises:
        ValueError: neither or both sizes are given, or one is out of range.
    """
    if (share is None) == (per_class is None):
        raise ValueError("give either share or per_class")
    if share is not None and not 0 < share <= 1:
        raise ValueError(f"share is {share}: give a share above 0 up to 1")
    if per_class is not None and per_class < 1:
        raise ValueError(f"per_class is {per_class}: give 1 or more")
    labels_N = np.asarray(labels_N)
    by_hash = np.argsort(hash_integers(seed, Stream.LABELS, np.arange(len(labels_N))), kind="stable")
    kept = [np.empty(0, np.int64)]
    for label in np.unique(labels_N[labels_N >= 0]):
        rows = by_hash[labels_N[by_hash] == label]
        kept.append(rows[: per_class if share is None else max(1, round(share * len(rows)))])
    return np.sort(np.concatenate(kept))


def groups_to_keep(source: Source, cache: Path | None = None) -> np.ndarray:
    """Which rows no split divides, int64 [N]: those of equal `groups`, else equal ids, else equal `text_group`.

    Args:
        cache: folder in which the groups of more than 100,000 samples are cached.
    """
    if source.groups is not None:
        return source.groups
    if source.ids is not None:
        return source.ids
    if cache is None or len(source) < MANY:
        return text_groups(source)
    return cached_array(cache / f"caption-groups-{source.fingerprint[:32]}.npy", lambda: text_groups(source))


def text_groups(source: Source) -> np.ndarray:
    """`text_group` of every row, int64 [N]; slow for large sources."""
    rows = progress_bar(range(len(source)), total=len(source), shown=len(source) >= MANY, desc="captions", unit="row")
    return np.fromiter((text_group(source[row], source.places) for row in rows), np.int64, len(source))


def text_group(sample: Sample, places: Sequence[str] = ()) -> int:
    """Hash of the `caption_key` of a sample's first caption, or of its name if it has no caption; from 0 to 2^63 - 1.

    Args:
        places: see `Source`; these prefixes are removed from the name, so that a copy of the data is split equally.
    """
    if sample.captions:
        return text_hash(caption_key(sample.captions[0]))
    place = max((place for place in places if sample.name.startswith(place)), key=len, default="")
    return text_hash(sample.name.removeprefix(place))
