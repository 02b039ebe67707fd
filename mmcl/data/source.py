"""The interface of a data source: samples by number, in a fixed order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from mmcl.data.usage import Usage
from mmcl.errors import UserError
from mmcl.files.byte_range import FilePart

ImageLike = Path | str | bytes | FilePart | Image.Image | np.ndarray | Tensor
"""An image that may still have to be read: a path, an encoded file or its place in another, a PIL image, or uint8 [H, W] or
[H, W, C]. A tensor [C, H, W] has been read and brought to a model's size already, and is taken as it is."""

OWN_TEXTS = {"positive": "positives", "negative": "negatives"}
"""Text views that show other texts than the captions, and the field of `Sample` that holds these."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One item, not yet decoded.

    Attributes:
        name: what an error message calls it: a path, or a key within its file.
        image: the image, or None for a text-only source.
        captions: every text that describes it; may be empty.
        label: class number, or None.
        positives: texts that mean the same as the captions, as in an entailment.
        negatives: texts that only look as if they did, as in a contradiction: hard negatives.
        problem: why it cannot be used, where the source knows that already.
    """

    name: str
    image: ImageLike | None
    captions: tuple[str, ...] = ()
    label: int | None = None
    positives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    problem: str | None = None

    def check(self) -> Sample:
        """Itself. Raises UserError when it cannot be used."""
        if self.problem is not None:
            raise UserError(f"{self.name}: {self.problem}")
        return self


class Source(ABC):
    """A random-access dataset. `source[i]` is cheap and the same in every process; nothing is decoded.

    A registered source is built as `Source(path, root, **args)`: `path` is the user's file or folder, `root` the folder with
    downloaded datasets, both or either None.

    Attributes:
        class_names: names of the labels, or None without labels.
        templates: the sentences into which zero-shot classification puts a class name, each with one "{}".
        ids: int64 [N], or None. Rows with equal ids are positives of each other; None lets equal captions be positives.
        places: what names of samples may begin with that a copy of the data has otherwise, such as the folder of its files.
        scores: float64 [N], how alike people find a row's caption and its positive; None where nobody was asked.
        usage: how much of its files, rows or members it uses, one for each unit; () where it always uses all.
        notes: what a user may not expect of the data as a whole, a line each, such as captions that are not read.
        warnings: what is not used, and the notes; said when a run starts.

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
    places: Sequence[str] = ()

    @property
    def usage(self) -> Sequence[Usage]:
        """By default (): all of it is used."""
        return ()

    @property
    def notes(self) -> Sequence[str]:
        """By default ()."""
        return ()

    @property
    def warnings(self) -> Sequence[str]:
        """By default what is not used, and the notes; a source that adds to it begins with these."""
        return [*(usage.to_text() for usage in self.usage if usage.unused), *self.notes]

    def broken_files(self) -> Iterator[str]:
        """What is wrong with its files beyond single samples, a line each; reads them anew."""
        return iter(())

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest that changes when the number of samples, their order or their texts change.

        It is cheap, reads no image where these are files, and is therefore not the identity of the images: see `identity`.
        """

    @cached_property
    def identity(self) -> str:
        """Hex digest of all that the samples show, see `identity_of`: what results are kept under. Reads every image once."""
        from mmcl.data.identity import identity_of  # which reads sources

        return identity_of(self)

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Class numbers, int64 [N], -1 where a sample has none; None where none has one.

        A source whose samples are slow to make overrides this.
        """
        return label_array(self[index].label for index in range(len(self)))

    def peers(self, index: int) -> range:
        """The rows from which an unusable one's replacement is drawn."""
        return range(len(self))

    def caption(self, index: int, draw: float) -> str:
        """The caption of one epoch: `draw`, uniform in [0, 1), picks one; "" where there is none."""
        return _drawn(self[index].captions, draw)

    def view_text(self, view: str, index: int, draw: float) -> str:
        """What a text view shows in one epoch: views "positive" and "negative" have texts of their own, others the captions."""
        return _drawn(getattr(self[index], OWN_TEXTS[view]), draw) if view in OWN_TEXTS else self.caption(index, draw)


class SampleList(Source):
    """A source that holds its samples in memory, as the list `_samples`."""

    _samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]


class DerivedSource(Source):
    """Shows the samples of another source otherwise; what it does not say itself is as in the other."""

    def __init__(self, source: Source):
        self.source = source
        self.class_names, self.templates = source.class_names, source.templates
        self.ids, self.scores, self.places = source.ids, source.scores, source.places

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        return self.source[index]

    @property
    def usage(self) -> Sequence[Usage]:
        """That of what it is derived from."""
        return self.source.usage

    @property
    def notes(self) -> Sequence[str]:
        """Those of what it is derived from."""
        return self.source.notes

    @property
    def warnings(self) -> Sequence[str]:
        return self.source.warnings

    def broken_files(self) -> Iterator[str]:
        return self.source.broken_files()

    @cached_property
    def labels(self) -> np.ndarray | None:
        return self.source.labels


def _drawn(texts: Sequence[str], draw: float) -> str:
    return texts[int(draw * len(texts))] if texts else ""


def label_array(labels: Iterable[int | None]) -> np.ndarray | None:
    """`Source.labels` from the labels of the samples."""
    array = np.array([-1 if label is None else label for label in labels], np.int64)
    return None if (array < 0).all() else array


def given_path(path: str | None, source: str) -> str:
    """The path or URL of a source that reads one. Raises UserError when there is none; "" is not the folder at hand."""
    if not path:
        raise UserError(f"data source {source!r} needs a path: set `path`")
    return path


def required_path(path: str | None, source: str) -> Path:
    """The path of a source that reads local files. Raises UserError when there is none, or nothing at it."""
    place = Path(given_path(path, source))
    if not place.exists():
        raise UserError(f"{path}: no such file or folder")
    return place


def refuse_path(path: str | None, source: str) -> None:
    """Raises UserError when a path is given to a source that reads none."""
    if path is not None:
        raise UserError(f"data source {source!r} reads no path: remove `path: {path}`, or choose another source")
