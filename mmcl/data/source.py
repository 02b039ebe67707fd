"""Interface of data sources: random access to samples in a fixed order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmcl.data.identity import identity_of
from mmcl.data.sample import OWN_TEXTS, Sample
from mmcl.data.stored_rows import StoredRow
from mmcl.data.usage import Usage
from mmcl.errors import UserError


class Origins(NamedTuple):
    """Where the samples of a source come from.

    Attributes:
        sources: the sources that are not derived from others.
        part_N: int64 [N], the number of each sample's source.
        row_N: int64 [N], its row there.
    """

    sources: Sequence[Source]
    part_N: np.ndarray
    row_N: np.ndarray


class Source(ABC):
    """A random-access dataset. `source[i]` is cheap and the same in every process; nothing is decoded.

    A registered source is built as `Source(path, root, **args)`: `path` is the user's file or folder, `root` the folder of
    downloaded datasets; either may be None.

    Attributes:
        class_names: names of the labels, or None without labels.
        templates: prompt templates for zero-shot classification, each with one "{}" for the class name.
        ids: int64 [N], or None. Rows with equal ids are positives of each other; if None, equal captions are positives.
        groups: int64 [N], equal for samples that are not independent of each other, such as the images of one patient; None if
            all are. Splits keep groups whole, and intervals treat a group as one draw. Hashes of names (`group_of`), so that
            groups of different sources can be compared; `fingerprint` covers them.
        targets: int8 [N, Q], answers to yes/no questions about the samples: 1 yes, 0 no, -1 unknown; None without any.
        target_names: Q names of the questions.
        places: prefixes of sample names that differ between copies of the data, such as the folder of its files.
        scores: float64 [N], human similarity ratings of each row's caption and its positive; None without ratings.
        draws_as_listed: whether `caption` returns one of the sample's `captions` as it is, without prompts or keywords.
        usage: how much of its files, rows or members are used, one entry per unit; () if all are always used.
        notes: properties of the whole dataset that may surprise a user, such as captions that are not read; one line each.
        warnings: unused data and the notes; printed when a run starts.

    Example:
        >>> class Numbers(Source):
        ...     fingerprint = "numbers"
        ...     def __len__(self):
        ...         return 3
        ...     def __getitem__(self, index):
        ...         return Sample(str(index), None, captions=(f"the number {index}",))
        >>> [sample.captions[0] for sample in map(Numbers().__getitem__, range(2))]
        ['the number 0', 'the number 1']
    """

    class_names: Sequence[str] | None = None
    templates: Sequence[str] = ("{}",)
    ids: np.ndarray | None = None
    scores: np.ndarray | None = None
    groups: np.ndarray | None = None
    targets: np.ndarray | None = None
    target_names: Sequence[str] = ()
    places: Sequence[str] = ()
    draws_as_listed: bool = True

    @property
    def usage(self) -> Sequence[Usage]:
        """Default: (), all data are used."""
        return ()

    @property
    def notes(self) -> Sequence[str]:
        """Default: ()."""
        return ()

    @property
    def warnings(self) -> Sequence[str]:
        """Default: unused data and the notes; an override appends to these."""
        return [*(usage.to_text() for usage in self.usage if usage.unused), *self.notes]

    def broken_files(self) -> Iterator[str]:
        """Yields one line per problem of its files that is not specific to a sample; reads the files again."""
        return iter(())

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest that changes with the number, order or texts of the samples.

        It is cheap because it does not read image files, so it does not identify the images: see `identity`.
        """

    @cached_property
    def identity(self) -> str:
        """Hex digest of all sample contents, used as the cache key of results; reads every image once. See `identity_of`."""
        return identity_of(self)

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Class indices, int64 [N], -1 for unlabeled samples; None if no sample has a label.

        A source whose samples are slow to build should override this.
        """
        return label_array(self[index].label for index in range(len(self)))

    @property
    def origins(self) -> Origins:
        """The source itself, and every row of it."""
        return Origins((self,), np.zeros(len(self), np.int64), np.arange(len(self)))

    def peers(self, index: int) -> range:
        """Returns the rows from which a replacement for an unusable sample is drawn."""
        return range(len(self))

    def caption(self, index: int, draw: float) -> str:
        """Returns the caption for one epoch, chosen by `draw`, uniform in [0, 1); "" if the sample has none."""
        return _drawn(self[index].captions, draw)

    def view_text(self, view: str, index: int, draw: float) -> str:
        """Returns a text view's text for one epoch: its own texts for "positive" and "negative", else a caption."""
        return _drawn(getattr(self[index], OWN_TEXTS[view]), draw) if view in OWN_TEXTS else self.caption(index, draw)


class SampleList(Source):
    """A source that holds its samples in memory, as the list `_samples`."""

    _samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]


class DerivedSource(Source):
    """Base class of sources derived from another source; delegates to it unless overridden."""

    def __init__(self, source: Source):
        self.source = source
        self.class_names, self.templates = source.class_names, source.templates
        self.ids, self.scores, self.groups, self.places = source.ids, source.scores, source.groups, source.places
        self.targets, self.target_names = source.targets, source.target_names
        self.draws_as_listed = source.draws_as_listed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        return self.source[index]

    @property
    def usage(self) -> Sequence[Usage]:
        """Usage of the underlying source."""
        return self.source.usage

    @property
    def notes(self) -> Sequence[str]:
        """Notes of the underlying source."""
        return self.source.notes

    @property
    def warnings(self) -> Sequence[str]:
        return self.source.warnings

    @property
    def origins(self) -> Origins:
        """Those of the underlying source."""
        return self.source.origins

    def broken_files(self) -> Iterator[str]:
        return self.source.broken_files()

    @cached_property
    def labels(self) -> np.ndarray | None:
        return self.source.labels


def _drawn(texts: Sequence[str], draw: float) -> str:
    return texts[int(draw * len(texts))] if texts else ""


def label_array(labels: Iterable[int | None]) -> np.ndarray | None:
    """Builds `Source.labels` from the labels of the samples."""
    array = np.array([-1 if label is None else label for label in labels], np.int64)
    return None if (array < 0).all() else array


def has_rows(source: Source) -> bool:
    """Returns True if stored rows stand for the images of a source."""
    return len(source) > 0 and source[0].row is not None


def required_rows(source: Source) -> list[StoredRow]:
    """Returns the stored rows that stand for the images. Raises UserError if a sample has none."""
    rows = []
    for sample in map(source.__getitem__, range(len(source))):
        if sample.check().row is None:
            raise UserError(f"{sample.name}: has no stored row, and others have one")
        rows.append(sample.row)
    return rows  # type: ignore[return-value]


def given_path(path: str | None, source: str) -> str:
    """Returns the path or URL given to a source. Raises UserError if it is missing or ""."""
    if not path:
        raise UserError(f"data source {source!r} needs a path: set `path`, or --data.train.path photos/ to train on it")
    return path


def required_path(path: str | None, source: str) -> Path:
    """Returns the path given to a source that reads local files. Raises UserError if it is missing or does not exist."""
    place = Path(given_path(path, source))
    if not place.exists():
        raise UserError(f"{path}: no such file or folder")
    return place


def refuse_path(path: str | None, source: str) -> None:
    """Raises UserError if a path is given to a source that does not take one."""
    if path is not None:
        raise UserError(
            f"data source {source!r} reads no path, and {path!r} is given: add --data.train.name auto to train on it (or start "
            "from clip_finetune), or remove it"
        )
