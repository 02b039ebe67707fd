"""An index in memory as a folder of two files, index.json and the embeddings; it needs nothing beyond the base installation."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl.config import from_dict
from mmcl.data.sample import Sample
from mmcl.errors import DamagedIndexError
from mmcl.files.atomic import staged, write_file
from mmcl.files.listing import file_named
from mmcl.files.untrusted import read_json, read_tensors
from mmcl.preprocess import Preprocess
from mmcl.search.memory_store import MemoryStore
from mmcl.types import BadSample

_LISTING, _TENSORS = "index.json", "embeddings-*.safetensors"
_MAX_JSON_BYTES = 2**30


def is_saved(directory: str | Path) -> bool:
    """True if the folder holds an index written by `save`: other programs also write files named index.json."""
    return (Path(directory) / _LISTING).is_file() and any(Path(directory).glob(_TENSORS))


def save(store: MemoryStore, directory: Path) -> None:
    """Writes index.json and one safetensors file. A crash at any moment leaves either the old index or the new one."""
    from safetensors.numpy import save_file

    tensors = {"image": np.ascontiguousarray(store.image_emb), "text": np.ascontiguousarray(store.text_emb)}
    digest = _digest(tensors)
    content = {
        "model": store.model,
        "model_name": store.model_name,
        "places": store.places,
        "digest": digest,
        "samples": [{"name": sample.name, "captions": sample.captions} for sample in store.samples],
        "bad": [{"index": bad.index, "name": bad.name, "reason": bad.reason} for bad in store.bad()],
    }
    file, listing = directory / _tensor_file(digest), directory / _LISTING
    with staged(file) as stage:
        save_file(tensors, stage)
    write_file(listing, json.dumps(content, ensure_ascii=False, indent=1) + "\n")  # From here on the new index counts.
    for stale in set(directory.glob(_TENSORS)) - {file}:
        stale.unlink()


def load(directory: Path, preprocess: Preprocess | None = None) -> MemoryStore:
    """Loads what `save` has written.

    Raises:
        UserError: there is no index, or it is damaged.
    """
    content = read_json(directory / _LISTING, max_bytes=_MAX_JSON_BYTES)
    try:
        samples = [_sample(row) for row in content["samples"]]
        bad = [
            from_dict(BadSample, row, f"{directory / _LISTING} is damaged, build the index again: bad")
            for row in content["bad"]
        ]
        model, name, places = str(content["model"]), content.get("model_name", ""), content.get("places", [])
        if not isinstance(name, str) or not isinstance(places, list) or not all(isinstance(place, str) for place in places):
            raise TypeError("model_name is a text, places are texts")
        image_emb, text_emb = _embeddings(read_tensors(directory / _tensor_file(content["digest"])))
        if _digest({"image": image_emb, "text": text_emb}) != content["digest"]:
            raise DamagedIndexError(f"{directory}: the embeddings are damaged (their checksum differs); build the index again")
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedIndexError(f"{directory}: index.json is damaged ({error!r}); build the index again") from None
    texts = sum(len(sample.captions) for sample in samples)
    if not samples or len(image_emb) != len(samples) or len(text_emb) not in (0, texts):
        raise DamagedIndexError(f"{directory}: embeddings and index.json do not belong together; build the index again")
    return MemoryStore(
        samples, image_emb, text_emb, bad=bad, model=model, model_name=name, preprocess=preprocess, places=places
    )


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
