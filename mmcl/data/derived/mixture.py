"""Concatenation of several sources, with their classes merged by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mmcl.data.derived.subset import text_groups
from mmcl.data.random_streams import Stream
from mmcl.data.sample import Sample
from mmcl.data.source import Origins, Source
from mmcl.data.usage import Usage
from mmcl.files.digest import digest
from mmcl.rng import hash_integers


class Mixture(Source):
    """The samples of all parts, in the order of the parts; `MixedOrder` determines how often each part is shown.

    Equal captions (see `caption_key`) are positives across parts, as within one part. If a part has its own ids, an id that is
    equivalent to a caption (all its rows share one first caption, and no other row of the part has it) matches that caption in
    the other parts; other ids never match across parts. If any part has ids, the other parts are matched by their first
    captions. Classes with the same name are merged, and so are groups; a sample of a part without groups is its own. There are
    scores if all parts have them, and targets if all have those of the same names.

    Args:
        parts: name -> source; at least one.

    Attributes:
        sizes: name -> number of samples.
    """

    def __init__(self, parts: Mapping[str, Source]):
        self.parts = dict(parts)
        self.sizes = {name: len(source) for name, source in parts.items()}
        self._sources = list(parts.values())
        self._starts = np.cumsum([0, *self.sizes.values()])
        classes = dict.fromkeys(name for source in self._sources for name in source.class_names or ())
        number = {name: label for label, name in enumerate(classes)}
        self.class_names = list(classes) or None
        self._label_of = [[number[name] for name in source.class_names or ()] for source in self._sources]
        self.templates = next((source.templates for source in self._sources if source.class_names), ("{}",))
        self.draws_as_listed = all(source.draws_as_listed for source in self._sources)
        if any(source.ids is not None for source in self._sources):
            self.ids = np.concatenate([_ids(part, source) for part, source in enumerate(self._sources)])
        if any(source.groups is not None for source in self._sources):
            self.groups = np.concatenate([_groups(part, source) for part, source in enumerate(self._sources)])
        scores = [source.scores for source in self._sources if source.scores is not None]
        if len(scores) == len(self._sources):
            self.scores = np.concatenate(scores)
        if all(source.targets is not None for source in self._sources):
            self.target_names = self._sources[0].target_names
            if all(set(source.target_names) == set(self.target_names) for source in self._sources):
                self.targets = np.concatenate([_targets(source, self.target_names) for source in self._sources])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sample:
        part, row = self._place(index)
        sample = self._sources[part][row]
        return sample if sample.label is None else dataclasses.replace(sample, label=self._label_of[part][sample.label])

    @property
    def labels(self) -> np.ndarray | None:
        if all(source.labels is None for source in self._sources):
            return None
        return np.concatenate([self._labels(part) for part in range(len(self._sources))])

    @property
    def fingerprint(self) -> str:
        return digest([source.fingerprint for source in self._sources])

    @property
    def usage(self) -> Sequence[Usage]:
        """Usage of every part, with the part's name in the unit."""
        return [
            dataclasses.replace(usage, unit=f"{usage.unit} of {name}")
            for name, source in self.parts.items()
            for usage in source.usage
        ]

    @property
    def warnings(self) -> Sequence[str]:
        return [f"{name}: {warning}" for name, source in self.parts.items() for warning in source.warnings]

    @property
    def origins(self) -> Origins:
        """Those of all parts."""
        found = [source.origins for source in self._sources]
        starts = np.cumsum([0, *(len(one.sources) for one in found)])
        return Origins(
            [source for one in found for source in one.sources],
            np.concatenate([one.part_N + start for one, start in zip(found, starts[:-1], strict=True)]),
            np.concatenate([one.row_N for one in found]),
        )

    def broken_files(self) -> Iterator[str]:
        for source in self._sources:
            yield from source.broken_files()

    def peers(self, index: int) -> range:
        """Rows of the same part, so that replacements do not change the proportions."""
        part = self._place(index)[0]
        return range(int(self._starts[part]), int(self._starts[part + 1]))

    def caption(self, index: int, draw: float) -> str:
        part, row = self._place(index)
        return self._sources[part].caption(row, draw)

    def view_text(self, view: str, index: int, draw: float) -> str:
        part, row = self._place(index)
        return self._sources[part].view_text(view, row, draw)

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return part, index - int(self._starts[part])

    def _labels(self, part: int) -> np.ndarray:
        source, label_of = self._sources[part], np.array([*self._label_of[part], -1], np.int64)
        return np.full(len(source), -1, np.int64) if source.labels is None else label_of[source.labels]


def _groups(part: int, source: Source) -> np.ndarray:
    return _own(part, np.arange(len(source))) if source.groups is None else source.groups


def _targets(source: Source, names: Sequence[str]) -> np.ndarray:
    """The answers of a part, int8 [N, Q], in the order of the names."""
    assert source.targets is not None
    answers: np.ndarray = source.targets[:, [list(source.target_names).index(name) for name in names]]
    return answers


def _own(part: int, number_N: np.ndarray) -> np.ndarray:
    """Numbers that no other part has: int64 [N], equal for equal numbers."""
    hashes: np.ndarray = (hash_integers(Stream.PART, part, number_N) >> np.uint64(1)).astype(np.int64)
    return hashes


def _ids(part: int, source: Source) -> np.ndarray:
    """Hashes of first captions, or ids unique to the part where the source's ids are not equivalent to captions."""
    captions_N = text_groups(source)
    if source.ids is None:
        return captions_N
    own_N = _own(part, source.ids)
    id_N, caption_N = (np.unique(values, return_inverse=True)[1] for values in (source.ids, captions_N))
    id_P, caption_P = np.unique(np.stack([id_N, caption_N]), axis=1)  # the pairs that occur
    is_caption_N = (np.bincount(id_P)[id_N] == 1) & (np.bincount(caption_P)[caption_N] == 1)
    return np.where(is_caption_N, captions_N, own_N)
