"""Decoded images of a whole source: kept in memory for training, or batch by batch for evaluation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mmcl.data.images.bands import decode_to_show
from mmcl.data.images.resize import pixel_dtype, read_pixels
from mmcl.data.source import DerivedSource, ImageLike, Sample, Source
from mmcl.errors import UserError
from mmcl.preprocess import Preprocess
from mmcl.types import BadSample

T = TypeVar("T")

_QUEUED = 4096
"""Calls that wait for a thread at a time."""


def decode_sample(sample: Sample, preprocess: Preprocess | None = None) -> Image.Image:
    """The image of a sample, at its own size, to be looked at. Raises UserError with its name when it cannot be read.

    Args:
        sample: with the image.
        preprocess: of the model whose levels and bands are shown, where there is one.
    """
    channels, intensity = (3, None) if preprocess is None else (preprocess.channels, preprocess.intensity)
    return decode_to_show(required_image(sample), name=sample.name, channels=channels, intensity=intensity)


def read_sample(sample: Sample, preprocess: Preprocess) -> Tensor:
    """The image of a sample, [C, H, W] as `to_tensor` gives it. Raises UserError as `decode_sample` does."""
    return read_pixels(required_image(sample), preprocess, name=sample.name)


def required_image(sample: Sample) -> ImageLike:
    """The image of a sample, as it is stored. Raises UserError with its name when it has none, or cannot be used."""
    image = sample.check().image
    if image is None:
        raise UserError(f"{sample.name}: has no image")
    return image


def unreadable(samples: Sequence[Sample] | Source, preprocess: Preprocess | None) -> list[BadSample]:
    """Those whose image is not there or cannot be read, and why; each is decoded, in parallel threads.

    Args:
        samples: with the images.
        preprocess: of the model that is to see them, where it has one.
    """

    def reason(index: int) -> str | None:
        try:
            if preprocess is None:
                decode_sample(samples[index])
            else:
                read_sample(samples[index], preprocess)
        except UserError as error:
            return str(error)
        return None

    reasons = in_threads(reason, range(len(samples)))
    return [BadSample(index, samples[index].name, why) for index, why in enumerate(reasons) if why is not None]


def decoded_batches(source: Source, preprocess: Preprocess, batch_size: int) -> Iterator[Tensor]:
    """All images of a source, in its order: [b, C, H, W] as `to_tensor` gives them, each, the last batch shorter.

    Raises:
        UserError: an image cannot be read; names it. An evaluation that left it out would be of other data.
    """
    return in_batches(lambda index: read_sample(source[index], preprocess), len(source), batch_size)


def in_batches(read: Callable[[int], Tensor], total: int, batch_size: int) -> Iterator[Tensor]:
    """`read(0)` to `read(total - 1)`, stacked in batches; threads read the next batch while one is in use.

    Pillow decodes without the interpreter's lock. Every thread reads a run of items: for small ones, handing out each by itself
    would cost more than to read it.
    """
    workers = min(8, os.cpu_count() or 1)

    def ahead(start: int) -> list[Future[list[Tensor]]]:
        items = range(start, min(start + batch_size, total))
        run = max(1, len(items) // (2 * workers))
        return [pool.submit(lambda part: [read(i) for i in part], items[at : at + run]) for at in range(0, len(items), run)]

    with ThreadPoolExecutor(workers) as pool:
        runs = ahead(0)
        for start in range(0, total, batch_size):
            batch = [item for run in runs for item in run.result()]
            runs = ahead(start + batch_size)
            yield torch.stack(batch)


class ReadableImages(DerivedSource):
    """A source with a black image in place of each one that cannot be read, so that it costs the others nothing.

    Args:
        source: the images.
        preprocess: of the model that will look at them, if it is known: they are then given at its size.

    Attributes:
        unreadable: why an image cannot be read, by number; complete when all have been asked for.
    """

    def __init__(self, source: Source, preprocess: Preprocess | None = None):
        super().__init__(source)
        self._preprocess = preprocess
        self.unreadable: dict[int, str] = {}

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        try:
            if self._preprocess is None:
                return dataclasses.replace(sample, image=decode_sample(sample))
            return dataclasses.replace(sample, image=read_sample(sample, self._preprocess))
        except UserError as error:
            self.unreadable[index] = str(error)
            return dataclasses.replace(sample, image=np.zeros((32, 32, 3), np.uint8), problem=None)

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint


class ImageCache:
    """All images of a source in memory, at the model's size.

    Args:
        source: what is decoded, once, in parallel threads.
        preprocess: size and channels.
        progress: whether a progress bar is shown.
    """

    def __init__(self, source: Source, preprocess: Preprocess, *, progress: bool = False):
        shape = (len(source), preprocess.channels, preprocess.height, preprocess.width)
        self._images = torch.empty(shape, dtype=pixel_dtype(preprocess))
        self._unreadable: dict[int, str] = {}

        def store(index: int) -> None:
            try:
                self._images[index] = read_sample(source[index], preprocess)
            except UserError as error:
                self._unreadable[index] = str(error)

        done = in_threads(store, range(len(source)))
        for _ in tqdm(done, total=len(source), desc="decode", unit="image", disable=not progress, leave=False):
            pass

    def __getitem__(self, index: int) -> Tensor:
        """[C, H, W]. Raises UserError as decoding did."""
        if index in self._unreadable:
            raise UserError(self._unreadable[index])
        return self._images[index]

    @staticmethod
    def nbytes(source: Source, preprocess: Preprocess) -> int:
        """The memory that the images of a source take."""
        numbers = len(source) * preprocess.channels * preprocess.height * preprocess.width
        return numbers * pixel_dtype(preprocess).itemsize


def in_threads(function: Callable[[int], T], indices: Sequence[int]) -> Iterator[T]:
    """`map` in threads, in order; Pillow works without the interpreter's lock."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for start in range(0, len(indices), _QUEUED):  # A million calls at once would be a million objects.
            yield from pool.map(function, indices[start : start + _QUEUED])
