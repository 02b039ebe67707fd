"""Decoding of all images of a source: into memory for training, or in batches for evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmcl.data.images.bands import decode_to_show
from mmcl.data.images.tensors import pixel_dtype, read_pixels
from mmcl.data.sample import Sample
from mmcl.data.source import DerivedSource, Source
from mmcl.data.threads import in_batches, in_threads
from mmcl.errors import UserError
from mmcl.preprocess import Preprocess
from mmcl.progress import progress_bar
from mmcl.types import BadSample


def decode_sample(sample: Sample, preprocess: Preprocess | None = None) -> Image.Image:
    """Decodes a sample's image at its own size, for display. Raises UserError with its name if it cannot be read.

    Args:
        sample: the sample.
        preprocess: preprocessing of the model whose levels and bands are shown, if any.
    """
    channels, intensity = (3, None) if preprocess is None else (preprocess.channels, preprocess.intensity)
    return decode_to_show(sample.required_image(), name=sample.name, channels=channels, intensity=intensity)


def read_sample(sample: Sample, preprocess: Preprocess) -> Tensor:
    """Reads a sample's image, [C, H, W] as from `to_tensor`. Raises UserError as `decode_sample` does."""
    return read_pixels(sample.required_image(), preprocess, name=sample.name)


def unreadable(samples: Sequence[Sample] | Source, preprocess: Preprocess | None) -> list[BadSample]:
    """Finds the samples whose image is missing or unreadable, with the reason; decodes all in parallel threads.

    Args:
        samples: the samples.
        preprocess: preprocessing of the model that will receive them, if any.
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
    """Yields all images of a source in order, in batches [b, C, H, W] as from `to_tensor`; the last may be smaller.

    Raises:
        UserError: an image cannot be read; names it. Skipping it would evaluate on different data.
    """
    batches = in_batches(lambda index: read_sample(source[index], preprocess), len(source), batch_size)
    return map(torch.stack, batches)


class ReadableImages(DerivedSource):
    """A source with a black image in place of each unreadable one, so that the other images can still be processed.

    Args:
        source: the images.
        preprocess: preprocessing of the model, if known: images are then returned at its size.

    Attributes:
        unreadable: index of an unreadable image -> reason; complete after all images have been read.
    """

    def __init__(self, source: Source, preprocess: Preprocess | None = None):
        super().__init__(source)
        self._preprocess = preprocess
        self.unreadable: dict[int, str] = {}

    def __getitem__(self, index: int) -> Sample:
        try:
            return self.read(index)
        except UserError as error:
            self.unreadable[index] = str(error)
            return dataclasses.replace(self.source[index], image=np.zeros((32, 32, 3), np.uint8), problem=None)

    def read(self, index: int) -> Sample:
        """Returns a sample with its image read, if no stored row stands for it. Raises UserError if it cannot be read."""
        sample = self.source[index]
        if sample.row is not None:
            return sample
        if self._preprocess is None:
            return dataclasses.replace(sample, image=decode_sample(sample))
        return dataclasses.replace(sample, image=read_sample(sample, self._preprocess))

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint


class ImageCache:
    """All images of a source in memory, at the model's size.

    Args:
        source: the images, which are decoded once, in parallel threads.
        preprocess: size and channels.
        progress: whether to show a progress bar.
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
        for _ in progress_bar(done, total=len(source), shown=progress, desc="decode", unit="image"):
            pass

    def __getitem__(self, index: int) -> Tensor:
        """Returns an image, [C, H, W]. Raises UserError if it could not be decoded."""
        if index in self._unreadable:
            raise UserError(self._unreadable[index])
        return self._images[index]

    @staticmethod
    def nbytes(source: Source, preprocess: Preprocess) -> int:
        """Memory in bytes for all images of a source."""
        numbers = len(source) * preprocess.channels * preprocess.height * preprocess.width
        return numbers * pixel_dtype(preprocess).itemsize
