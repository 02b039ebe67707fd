"""Inspection of all samples of a source: unusable samples, duplicates, caption lengths and image sizes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmcl.data.captions import checked_caption
from mmcl.data.images.bands import read_bands
from mmcl.data.images.decode import decode, measure
from mmcl.data.sample import ImageLike, Sample
from mmcl.data.source import Source
from mmcl.data.threads import in_threads
from mmcl.data.usage import Usage
from mmcl.errors import UserError
from mmcl.files.byte_range import FilePart
from mmcl.preprocess import Intensity
from mmcl.progress import progress_bar

BINS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """Result of the inspection of a source.

    Attributes:
        samples: number of samples.
        findings: problems, one line each: broken files first, then samples.
        caption_lengths: int64 [captions], in characters.
        captions_per_sample: int64 [samples].
        sides: int64 [images, 2], width and height of the readable images.
        classes: number of samples of every non-empty class, by name.
        repeated_captions, repeated_images: number of duplicates of earlier ones; images are compared byte by byte.
        usage: used files, rows or members, see `Source`.
    """

    samples: int
    findings: list[str]
    caption_lengths: np.ndarray
    captions_per_sample: np.ndarray
    sides: np.ndarray
    classes: dict[str, int]
    repeated_captions: int
    repeated_images: int
    usage: Sequence[Usage]

    def to_dict(self) -> dict[str, Any]:
        """Returns counts, and quantiles and histograms of lengths and sides, as JSON values."""
        return {
            "samples": self.samples,
            "images": len(self.sides),
            "captions": len(self.caption_lengths),
            "repeated_captions": self.repeated_captions,
            "repeated_images": self.repeated_images,
            "unusable": len(self.findings),
            "captions_per_sample": _summary(self.captions_per_sample),
            "caption_characters": _summary(self.caption_lengths),
            "width": _summary(self.sides[:, 0]),
            "height": _summary(self.sides[:, 1]),
            "classes": self.classes,
            "usage": [usage.to_dict() for usage in self.usage],
        }

    def to_text(self) -> str:
        """Formats usage, counts, and one line per distribution."""
        facts = self.to_dict()
        lines = [usage.to_text() for usage in self.usage]
        lines += [f"{name.replace('_', ' '):<20}{facts[name]:>10,}" for name, value in facts.items() if isinstance(value, int)]
        if self.classes:
            least, most = min(self.classes.values()), max(self.classes.values())
            lines.append(f"{'classes':<20}{len(self.classes):>10,}   {least:,} to {most:,} each")
        lines.append(f"{'':<20}{'least':>10}{'median':>9}{'95 %':>9}{'most':>9}")
        for name, value in facts.items():
            if isinstance(value, dict) and value.get("histogram"):
                numbers = "".join(f"{value[key]:>9,.0f}" for key in ("median", "95 %", "most"))
                lines.append(
                    f"{name.replace('_', ' '):<20}{value['least']:>10,.0f}{numbers}  {_bars(value['histogram']['counts'])}"
                )
        return "\n".join(lines)


def inspect_source(
    source: Source,
    *,
    decoded: bool = False,
    channels: int = 3,
    intensity: Intensity = None,
    progress: bool = False,
) -> Inspection:
    """Reads every sample, in parallel threads.

    Args:
        source: the data.
        decoded: whether images are fully decoded; else their bytes are read and only their headers parsed.
        channels, intensity: settings of the model, see `Preprocess`; images with channels other than 1 and 3 are always
            decoded.
        progress: whether a progress bar is shown.
    """

    def size(image: ImageLike, name: str) -> tuple[int, int]:
        if channels not in (1, 3):
            return read_bands(image, channels, intensity, name=name).shape[1::-1]
        return decode(image, name=name, intensity=intensity).size if decoded else measure(image, name=name, intensity=intensity)

    inspected = in_threads(lambda index: _facts_of(source[index], size), range(len(source)))
    findings, bare, blind = list(source.broken_files()), [], []
    lengths, counts, sides, texts, image_hashes = [], [], [], [], []
    for sample in progress_bar(inspected, total=len(source), shown=progress, desc="read", unit="sample"):
        findings += sample.findings
        counts.append(len(sample.lengths))
        lengths += sample.lengths
        texts += sample.texts
        if not sample.lengths and not sample.findings:
            bare.append(sample.name)
        if sample.image_hash is None and not sample.findings:
            blind.append(sample.name)
        if sample.image_hash is not None:
            sides.append(sample.sides)
            image_hashes.append(sample.image_hash)
    # An incomplete pair is an error only if other pairs are complete.
    findings += [f"{name}: has no caption" for name in bare if lengths]
    findings += [f"{name}: has no image" for name in blind if sides]
    names, labels = source.class_names or [], source.labels
    return Inspection(
        samples=len(source),
        findings=findings,
        caption_lengths=np.array(lengths, np.int64),
        captions_per_sample=np.array(counts, np.int64),
        sides=np.array(sides, np.int64).reshape(-1, 2),
        classes={} if labels is None else dict(Counter(names[label] for label in labels.tolist() if label >= 0)),
        repeated_captions=len(texts) - len(set(texts)),
        repeated_images=len(image_hashes) - len(set(image_hashes)),
        usage=source.usage,
    )


@dataclass(frozen=True, slots=True)
class _SampleFacts:
    """Facts about one sample: lengths and hashes of its captions, sides and hash of its image."""

    name: str
    findings: list[str]
    lengths: list[int]
    texts: list[bytes]
    sides: tuple[int, int] | None
    image_hash: bytes | None


def _facts_of(sample: Sample, size: Callable[[ImageLike, str], tuple[int, int]]) -> _SampleFacts:
    findings, captions, sides, image_hash = [], [], None, None
    try:
        sample.check()
        captions = [checked_caption(caption, sample.name) for caption in sample.captions]
        if sample.image is not None:
            image = sample.required_image()
            image = image.read() if isinstance(image, FilePart) else image
            # First, because it refuses what must not be read completely: a pipe, or an oversized file.
            sides = size(image, sample.name)
            image_hash = _hash(_content(image, sample.name))
    except UserError as error:
        findings.append(str(error))
    return _SampleFacts(
        sample.name, findings, [len(text) for text in captions], [_hash(text.encode()) for text in captions], sides, image_hash
    )


def _content(image: ImageLike, name: str) -> bytes:
    """Returns the bytes of an encoded image as stored, or the pixels of a decoded one."""
    if isinstance(image, str | Path):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise UserError(f"{name}: cannot be read: {error.strerror}") from None
    return image if isinstance(image, bytes) else np.asarray(image).tobytes()


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()


def _summary(values: np.ndarray) -> dict[str, Any]:
    if len(values) == 0:
        return {}
    counts, edges = np.histogram(values, bins=BINS)
    least, median, high, most = np.quantile(values, [0, 0.5, 0.95, 1]).tolist()
    histogram = {"counts": counts.tolist(), "edges": edges.tolist()}
    return {"least": least, "median": median, "95 %": high, "most": most, "histogram": histogram}


def _bars(counts: list[int]) -> str:
    return "".join(" ▁▂▃▄▅▆▇█"[-(-8 * count // max(counts))] for count in counts)
