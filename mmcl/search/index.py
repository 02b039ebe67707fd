"""An exact in-memory index: every query is compared with every row, which is fast for up to about half a million rows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mmcl.config import from_dict
from mmcl.core.nearest import nearest
from mmcl.data.captions import checked_caption
from mmcl.data.images.image_cache import ReadableImages
from mmcl.data.open import open_source
from mmcl.data.sample import ImageLike, Sample
from mmcl.data.source import SampleList, Source
from mmcl.errors import UserError, unknown_name
from mmcl.files.atomic import check_folder, staged, write_file
from mmcl.files.digest import digest
from mmcl.files.listing import file_named, valid_name
from mmcl.files.untrusted import read_json, read_tensors
from mmcl.search.hits import Hit, Hits
from mmcl.terminal import counted
from mmcl.types import BadSample, EmbeddingModel

Target = Literal["images", "texts"]

_LISTING, _TENSORS = "index.json", "embeddings-*.safetensors"
_MAX_JSON_BYTES = 2**30


class Index:
    """A search index of images and their captions. Created by `build` or `load`.

    Args:
        model: embeds the queries; it must be the model that embedded the rows.
        samples: the N images, with T captions in all.
        image_emb: float32 [N, D], unit length.
        text_emb: float32 [T, D], unit length, in the order of the samples; T = 0 if the model has no text tower.
        bad: unreadable images, which are not in the index, and unusable captions.

    Example:
        >>> from PIL import Image
        >>> from mmcl import load_model
        >>> for level in (0, 255):
        ...     Image.new("L", (32, 32), level).save(f"{level}.png")
        >>> index = Index.build(["0.png", "255.png"], load_model("runs/clip_emoji"))
        >>> [hit.name for hit in index.search(image="255.png", top_k=1)]
        ['255.png']
    """

    def __init__(
        self,
        model: EmbeddingModel,
        samples: Sequence[Sample],
        image_emb: np.ndarray,
        text_emb: np.ndarray,
        *,
        bad: Sequence[BadSample] = (),
    ):
        self.model = model
        self.samples = list(samples)
        self.image_emb = image_emb
        self.text_emb = text_emb
        self.bad = tuple(bad)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.samples)

    @classmethod
    def build(
        cls,
        collection: str | Path | Sequence[str | Path] | Source,
        model: EmbeddingModel,
        *,
        out: str | Path | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Index:
        """Embeds a collection, and its captions if it has any and the model has a text tower.

        Args:
            collection: a folder or table of images, a list of image files, or a data source.
            model: embeds the images.
            out: a directory to save the index in; None does not save it.
            batch_size: images per batch; by default the model chooses.
            progress: whether to show a progress bar.

        Returns:
            The index. Images that cannot be read are left out and listed in `bad`.

        Raises:
            UserError: the collection is empty, none of its images can be read, or `out` cannot be written.
        """
        if out is not None:
            check_folder(Path(out), flag="out")
        source, name = _source(collection)
        images = ReadableImages(source, getattr(model, "preprocess", None))
        image_emb = model.encode_image(images, batch_size=batch_size, progress=progress)
        samples = [source[number] for number in range(len(source))]
        bad = [BadSample(number, samples[number].name, reason) for number, reason in sorted(images.unreadable.items())]
        if len(bad) == len(samples):
            raise UserError(f"{name}: none of {counted(len(samples), 'image')} can be read; the first: {bad[0].reason}")
        good = [number for number in range(len(samples)) if number not in images.unreadable]
        samples, image_emb = [_with_usable_captions(samples[number], number, bad) for number in good], image_emb[good]
        texts = [caption for sample in samples for caption in sample.captions]
        text_emb = model.encode_text(texts) if texts and model.has_text else image_emb[:0]
        index = cls(model, samples, image_emb, text_emb, bad=bad)
        if out is not None:
            index.save(out)
        return index

    def search(
        self, text: str | None = None, *, image: ImageLike | None = None, top_k: int = 20, target: Target = "images"
    ) -> Hits:
        """Finds the nearest neighbors of a text, an image, or both together (the mean of their embeddings).

        Args:
            text: the query text.
            image: the query image; a string is a path.
            top_k: maximum number of hits.
            target: what to find: "images", or "texts", the captions in the collection.

        Returns:
            Hits, best first; equal scores in the order of the collection.

        Raises:
            UserError: neither text nor image is given, the model has no text tower for the text, the image cannot be read,
                or the index has no texts to find.
        """
        if target not in get_args(Target):
            raise unknown_name("target", target, get_args(Target))
        if top_k < 1:
            raise UserError(f"top_k must be at least 1, not {top_k}")
        if text is not None and not text.strip():
            raise UserError("the text to search for is empty; say what is to be found")
        rows, key = (self._images(), self.image_emb) if target == "images" else (self._texts(), self.text_emb)
        if not len(key):
            raise UserError("no texts to find: the collection has no captions, or the model no text tower; search for images")
        query = torch.from_numpy(self._query(text, image))
        if query.shape[1] != key.shape[1]:
            raise UserError(
                f"the index holds rows of {key.shape[1]} numbers, and the model makes {query.shape[1]}; build it again"
            )
        score, row = nearest(query, torch.from_numpy(key), min(top_k, len(key)))
        found = [(*rows[number], value) for number, value in zip(row[0].tolist(), score[0].tolist(), strict=True)]
        hits = (Hit(sample.name, value, caption, sample.image) for sample, caption, value in found)
        return Hits(hits, preprocess=getattr(self.model, "preprocess", None), text=text, image=image)

    @staticmethod
    def is_saved(directory: str | Path) -> bool:
        """True if the folder holds an index written by `save`: other programs also write files named index.json."""
        return (Path(directory) / _LISTING).is_file() and any(Path(directory).glob(_TENSORS))

    @classmethod
    def check_place(cls, directory: str | Path) -> None:
        """Raises UserError if the folder holds anything but a search index, such as a run or images."""
        others = Path(directory).is_dir() and not cls.is_saved(directory) and sorted(Path(directory).iterdir())
        if others:
            raise UserError(f"{directory}: holds {others[0].name}, and no index of mmcl; give a new folder")

    def save(self, directory: str | Path) -> None:
        """Writes index.json and one safetensors file. A crash at any moment leaves either the old index or the new one.

        Names are stored unchanged, so relative paths stay relative to the working directory.

        Raises:
            UserError: the folder holds anything but a search index.
        """
        self.check_place(directory)
        from safetensors.numpy import save_file

        directory = Path(directory)
        tensors = {"image": np.ascontiguousarray(self.image_emb), "text": np.ascontiguousarray(self.text_emb)}
        digest = _digest(tensors)
        content = {
            "model": self.model.fingerprint,
            "digest": digest,
            "samples": [{"name": sample.name, "captions": sample.captions} for sample in self.samples],
            "bad": [{"index": bad.index, "name": bad.name, "reason": bad.reason} for bad in self.bad],
        }
        file, listing = directory / _tensor_file(digest), directory / _LISTING
        with staged(file) as stage:
            save_file(tensors, stage)
        write_file(listing, json.dumps(content, ensure_ascii=False, indent=1) + "\n")  # From here on the new index counts.
        for stale in set(directory.glob(_TENSORS)) - {file}:
            stale.unlink()

    @classmethod
    def load(cls, directory: str | Path, model: EmbeddingModel) -> Index:
        """Loads an index written by `save`.

        Raises:
            UserError: there is no index, it is damaged, or it was built with another model.
        """
        directory = Path(directory)
        content = read_json(directory / _LISTING, max_bytes=_MAX_JSON_BYTES)
        if content.get("model") != model.fingerprint:
            made, given = str(content.get("model"))[:12], model.fingerprint[:12]
            raise UserError(
                f"{directory}: made with another model ({made}, not {given}); load that one, or build the index again"
            )
        try:
            samples = [_sample(row) for row in content["samples"]]
            bad = [
                from_dict(BadSample, row, f"{directory / _LISTING} is damaged, build the index again: bad")
                for row in content["bad"]
            ]
            image_emb, text_emb = _embeddings(read_tensors(directory / _tensor_file(content["digest"])))
            if _digest({"image": image_emb, "text": text_emb}) != content["digest"]:
                raise UserError(f"{directory}: the embeddings are damaged (their checksum differs); build the index again")
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{directory}: index.json is damaged ({error!r}); build the index again") from None
        texts = sum(len(sample.captions) for sample in samples)
        if not samples or len(image_emb) != len(samples) or len(text_emb) not in (0, texts):
            raise UserError(f"{directory}: embeddings and index.json do not belong together; build the index again")
        return cls(model, samples, image_emb, text_emb, bad=bad)

    def _images(self) -> list[tuple[Sample, str]]:
        return [(sample, sample.captions[0] if sample.captions else "") for sample in self.samples]

    def _texts(self) -> list[tuple[Sample, str]]:
        return [(sample, caption) for sample in self.samples for caption in sample.captions]

    def _query(self, text: str | None, image: ImageLike | None) -> np.ndarray:
        """Unit length, float32 [1, D]."""
        if text is None and image is None:
            raise UserError("nothing to search for: give a text, an image, or both")
        if text is not None and not self.model.has_text:
            raise UserError("search by text needs a model with a text tower; this one embeds only images: give an image")
        parts = [] if image is None else [self.model.encode_image([image])]
        parts += [] if text is None else [self.model.encode_text([text])]
        query = np.sum(parts, axis=0)
        unit: np.ndarray = query / np.linalg.norm(query)
        return unit


def _with_usable_captions(sample: Sample, number: int, bad: list[BadSample]) -> Sample:
    """The sample with only its usable captions; appends the reason for each removed caption to `bad`."""
    captions = []
    for caption in sample.captions:
        try:
            captions.append(checked_caption(caption, sample.name))
        except UserError as error:
            bad.append(BadSample(number, sample.name, str(error)))
    return dataclasses.replace(sample, captions=tuple(captions))


def _source(collection: str | Path | Sequence[str | Path] | Source) -> tuple[Source, str]:
    """The collection as a source, and its name. Raises UserError if it is empty."""
    name = "the collection"
    if isinstance(collection, str | Path):
        name = str(collection)
        collection = open_source("auto", name)
    source = collection if isinstance(collection, Source) else _Files(collection)
    if not len(source):
        raise UserError(f"{name} is empty; give it at least one image")
    return source, name


class _Files(SampleList):
    """A list of image files."""

    def __init__(self, paths: Sequence[str | Path]):
        self._samples = [Sample(valid_name(path), Path(path)) for path in paths]

    @property
    def fingerprint(self) -> str:
        return digest([sample.name for sample in self._samples])


def _sample(row: Any) -> Sample:
    """Sample of a row of index.json. Raises KeyError or TypeError for a row that `save` would not write."""
    name, captions = row["name"], row["captions"]
    if not isinstance(name, str) or not isinstance(captions, list) or not all(isinstance(each, str) for each in captions):
        raise TypeError("samples have a name and a list of captions")
    return Sample(name, file_named(name), tuple(captions))


def _embeddings(tensors: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of images and texts. Raises KeyError or TypeError for tensors that `save` would not write."""
    image, text = tensors["image"], tensors["text"]
    if any(part.dtype != torch.float32 or part.ndim != 2 or not part.isfinite().all() for part in (image, text)):
        raise TypeError("embeddings are finite float32 [N, D]")
    if image.shape[1] != text.shape[1]:
        raise TypeError("embeddings of images and texts have one width")
    return image.numpy(), text.numpy()


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    state = hashlib.sha256()
    for name in ("image", "text"):
        state.update(tensors[name].tobytes())
    return state.hexdigest()[:16]


def _tensor_file(digest: Any) -> str:
    """File name of the embeddings. The digest comes from a file, so it must not form a path to another place."""
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{16}", digest):
        raise KeyError("digest")
    return _TENSORS.replace("*", digest)
