"""Contents of images as an index stores them, and their computation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmcl.data.captions import checked_caption
from mmcl.data.images.image_cache import ReadableImages, decode_sample
from mmcl.data.sample import ImageLike, Sample
from mmcl.data.source import SampleList
from mmcl.errors import UserError
from mmcl.files.byte_range import FilePart
from mmcl.files.listing import valid_name
from mmcl.preprocess import Preprocess
from mmcl.search.collection import NOWHERE, Entry
from mmcl.search.image_facts import ImageFacts, read_facts, read_with_facts
from mmcl.search.lance_table import About
from mmcl.search.narrow import narrowed, widened
from mmcl.types import EmbeddingModel

_OF_CONTENT = ("id", "width", "height", "taken", "thumb", "captions", "caption_vectors")


@dataclass(frozen=True, slots=True)
class Content:
    """What follows from the bytes of an image.

    Attributes:
        width, height, taken, thumb: as in `ImageFacts`.
        vector: float32 [D], unit length.
        texts: captions of the row that it was read from, with their vectors.
    """

    width: int
    height: int
    taken: datetime | None
    thumb: bytes | None
    vector: np.ndarray
    texts: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of_row(cls, row: Mapping[str, Any], about: About) -> Content:
        """Returns the content of a row of the table, with the columns `content_columns`."""
        captions = row["captions"] or []
        stored = np.frombuffer(row["caption_vectors"] or b"", np.float32).reshape(-1, about.dim)
        texts = dict(zip(captions, stored, strict=True)) if len(stored) else {}
        vector = np.zeros(0, np.float32) if row[about.stored] is None else _vector_of(row[about.stored], about)
        return cls(row["width"], row["height"], row["taken"], row["thumb"], vector, texts)


class Read(NamedTuple):
    """An image as the model takes it, and its facts."""

    image: ImageLike
    facts: ImageFacts


def content_columns(about: About) -> list[str]:
    """Returns the columns that `Content.of_row` reads."""
    return [*_OF_CONTENT, about.stored]


def as_stored(rows: list[dict[str, Any]], about: About) -> list[dict[str, Any]]:
    """Returns rows of the table with vectors of its type, and the narrow rows that follow from these."""
    found = [row for row in rows if row.get("vector") is not None]
    for row in found if about.dtype == "float16" else ():
        row["vector"] = row["vector"].astype(np.float16)
    if about.narrow is not None and found:
        vectors = np.stack([row["vector"] for row in found]).astype(np.float32)
        for row, code in zip(found, narrowed(vectors, about.narrow), strict=True):
            row["code"] = code.tobytes()
    return rows


def _vector_of(stored: Any, about: About) -> np.ndarray:
    if about.stored == "vector":
        return np.asarray(stored, np.float32)
    assert about.narrow is not None
    vector: np.ndarray = widened(np.frombuffer(stored, np.uint8)[None], about.narrow, about.dim)[0]
    return vector


class Encoder:
    """Makes rows of entries.

    Args:
        model: embeds images and captions.
        batch_size: images per forward pass; by default the model chooses.
        thumbs: whether rows have a small picture.
    """

    def __init__(self, model: EmbeddingModel, *, batch_size: int | None = None, thumbs: bool = True):
        self.model, self.batch_size, self.thumbs = model, batch_size, thumbs
        self._preprocess: Preprocess | None = getattr(model, "preprocess", None)

    def read(self, entry: Entry) -> Read | str | None:
        """Reads an image as the model takes it, and its facts; returns the reason if it cannot be read.

        None for a model that does not say how it takes images: whole ones are read only when it asks, or they would fill the
        memory.
        """
        if self._preprocess is None:
            return None
        sample = entry.sample
        try:
            image = sample.required_image() if entry.file is None else entry.file
            return Read(*read_with_facts(image, sample.name, self._preprocess, thumb=self.thumbs))
        except UserError as error:
            return str(error)

    def contents(self, entries: Sequence[Entry], read: Mapping[str, Read | str]) -> list[Content | str]:
        """Embeds images; returns the reason in place of each that cannot be read.

        Args:
            entries: the images.
            read: what `read` has returned for some of them, by id; the others are read here.
        """
        if not entries:
            return []
        images = _Reading(self, entries, [read.get(entry.id) for entry in entries])
        vectors = self.model.encode_image(images, batch_size=self.batch_size)
        if not np.isfinite(vectors).all():
            raise UserError("the model's vectors are not finite; its weights are damaged, or its training diverged")
        return [
            images.unreadable.get(number) or _content(images.facts[number], vector) for number, vector in enumerate(vectors)
        ]

    def rows(
        self,
        found: Sequence[tuple[Entry, Content | str]],
        shas: Mapping[str, bytes | None],
        texts: Mapping[str, np.ndarray],
        looked_ns: int,
        root: str,
    ) -> list[dict[str, Any]]:
        """Returns rows of the table.

        Args:
            found: entries with their contents, or the reason why there is none.
            shas: hash of each entry's file, by id.
            texts: vectors of captions that are known already; the others are embedded.
            looked_ns: when the files were looked at.
            root: of the collection.
        """
        usable = [_usable(entry.sample) for entry, _ in found]
        wanted = dict.fromkeys(text for (_, content), (captions, _) in zip(found, usable, strict=True) for text in captions)
        vectors = dict(texts)
        missing = [text for text in wanted if text not in vectors] if self.model.has_text else []
        if missing:
            vectors |= dict(zip(missing, self.model.encode_text(missing), strict=True))
        return [
            self._row(entry, content, captions, vectors)
            | {"sha": shas[entry.id], "reason": _reason(content, problems)}
            | _state(entry, looked_ns, root)
            for (entry, content), (captions, problems) in zip(found, usable, strict=True)
        ]

    def _row(
        self, entry: Entry, content: Content | str, captions: Sequence[str], vectors: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        row = {**entry.meta, "label": entry.label, "captions": list(captions), "digest": entry.digest}
        if isinstance(content, str):
            return row | {"status": "bad"}
        embedded = b"".join(vectors[text].astype(np.float32).tobytes() for text in captions) if self.model.has_text else b""
        facts = {name: getattr(content, name) for name in ("width", "height", "taken", "thumb", "vector")}
        return row | facts | {"status": "ok", "caption_vectors": embedded}


def _state(entry: Entry, looked_ns: int, root: str) -> dict[str, Any]:
    """Returns the columns of an image's place and file."""
    size, mtime_ns, ctime_ns = entry.look or NOWHERE
    file, offset = _place(entry, root)
    return {
        **{"id": entry.id, "path": entry.path, "file": file, "offset": offset, "size": None if size < 0 else size},
        **{"mtime_ns": mtime_ns, "ctime_ns": ctime_ns, "looked_ns": looked_ns if entry.look else 0},
    }


def _reason(content: Content | str, problems: Sequence[str]) -> str | None:
    return "; ".join([*([content] if isinstance(content, str) else []), *problems]) or None


class _Reading(ReadableImages):
    """Images that are read for the model and for their facts at once, if they have not been read before."""

    def __init__(self, encoder: Encoder, entries: Sequence[Entry], read: Sequence[Read | str | None]):
        super().__init__(_Entries(entries))
        self.facts: dict[int, ImageFacts] = {}
        self._encoder, self._entries, self._read = encoder, entries, read

    def read(self, index: int) -> Sample:
        read = self._read[index] or self._encoder.read(self._entries[index]) or self._as_it_is(index)
        if isinstance(read, str):
            raise UserError(read)
        self.facts[index] = read.facts
        return Sample(self.source[index].name, read.image)

    def _as_it_is(self, index: int) -> Read:
        sample = self.source[index]
        return Read(decode_sample(sample), read_facts(sample.required_image(), sample.name, None, thumb=self._encoder.thumbs))


class _Entries(SampleList):
    def __init__(self, entries: Sequence[Entry]):
        self._samples = [
            entry.sample if entry.file is None else Sample(entry.sample.name, entry.file, problem=entry.sample.problem)
            for entry in entries
        ]

    @property
    def fingerprint(self) -> str:
        return ""


def _content(facts: ImageFacts, vector: np.ndarray) -> Content:
    return Content(facts.width, facts.height, facts.taken, facts.thumb, vector)


def _usable(sample: Sample) -> tuple[list[str], list[str]]:
    """Returns the captions that a tokenizer can process, and why the others are left out."""
    captions, problems = list[str](), list[str]()
    for caption in sample.captions:
        try:
            captions.append(checked_caption(caption, sample.name))
        except UserError as error:
            problems.append(str(error))
    return captions, problems


def with_usable_captions(sample: Sample) -> tuple[Sample, list[str]]:
    """Returns a sample with only its usable captions, and the problem of each other."""
    captions, problems = _usable(sample)
    return replace(sample, captions=tuple(captions)), problems


def _place(entry: Entry, root: str) -> tuple[str | None, int | None]:
    """Returns the file of an image and where it begins in it; None for a file that is at its path below the root."""
    image = entry.sample.image
    if isinstance(image, FilePart):
        return valid_name(Path(image.file.path).absolute()), image.offset
    if not isinstance(image, str | Path):
        return None, None
    place = valid_name(Path(image).absolute())
    return (None if root and place == root + entry.path else place), None
