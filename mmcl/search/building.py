"""First steps of an index: its model, its folder, and the embedding of a whole collection in memory."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import get_args

import numpy as np

from mmcl.data.images.image_cache import ReadableImages
from mmcl.errors import UserError, how_to_install, unknown_name
from mmcl.search import lance_table
from mmcl.search.collection import Collection
from mmcl.search.content import with_usable_captions
from mmcl.search.lance_table import FORMAT, About, Dtype, LanceTable
from mmcl.search.memory_store import MemoryStore
from mmcl.search.narrow import Narrow
from mmcl.terminal import counted
from mmcl.types import BadSample, EmbeddingModel


def loaded_model(model: EmbeddingModel | str, *, device: str | None = None) -> tuple[EmbeddingModel, str]:
    """Returns the model and what loads it again, "" if that is not known."""
    if isinstance(model, str):
        # `interop` stands beside `search`, so only a name that the user gave leads there.
        return importlib.import_module("mmcl.interop.load").load_model(model, device=device), lasting(model)
    provenance = getattr(model, "provenance", {})
    source = provenance.get("source", "") if isinstance(provenance, dict) else ""
    return model, source if isinstance(source, str) else ""


def lasting(name: str) -> str:
    """Returns a model's name that also loads it from another working directory."""
    folder = Path(name).expanduser()
    return str(folder.absolute()) if folder.is_dir() else name


def check_stored(dtype: Dtype, narrow: Narrow | None, *, on_disk: bool) -> None:
    """Raises UserError for rows that an index cannot keep."""
    for name, given, known in (("dtype", dtype, get_args(Dtype)), ("narrow", narrow, (*get_args(Narrow), None))):
        if given not in known:
            raise unknown_name(name, str(given), [one for one in known if one is not None])
    if dtype == "none" and narrow is None:
        raise UserError("dtype none keeps no vectors: give narrow, int8 or binary, or another dtype")
    if not on_disk and (dtype != "float32" or narrow is not None):
        what = f"dtype {dtype}" if narrow is None else f"narrow {narrow}"
        raise UserError(f"{what} is of an index on disk: give `out` ({how_to_install('index')}), or leave it out")


def at_dim(model: EmbeddingModel, dim: int | None) -> EmbeddingModel:
    """Returns a model at its own width, for None, or at a smaller one. Raises UserError if it has no such prefix."""
    # `interop` stands beside `search`, so only a width that the user gave leads there.
    return model if dim is None else importlib.import_module("mmcl.interop.truncated").at_dim(model, dim)


def model_of(name: str, expected: str, dim: int, model: EmbeddingModel) -> EmbeddingModel:
    """Returns the model of an index: the given one, or its prefix if that has made the rows.

    Args:
        name: of the index, for messages.
        expected: fingerprint of the model that made the rows.
        dim: their width.
        model: the model.

    Raises:
        UserError: it is another one, or of another width; names both and the way out.
    """
    if dim < getattr(model, "embed_dim", dim) and (narrower := at_dim(model, dim)).fingerprint == expected:
        return narrower
    check_model(name, expected, dim, model)
    return model


def check_model(name: str, expected: str, dim: int, model: EmbeddingModel) -> None:
    """Raises UserError as `model_of` does, also for a model whose prefix has made the rows."""
    if model.fingerprint == expected:
        return
    width = getattr(model, "embed_dim", dim)
    here, there = expected[:12], model.fingerprint[:12]
    if width != dim:
        here, there = f"{here} at a width of {dim}", f"{there} at {width}"
    raise UserError(
        f"{name}: made with another model ({here}, not {there}); load that one, or build the index again "
        "(mmcl index build --replace)"
    )


def opened_or_created(
    place: str,
    found: Collection,
    model: EmbeddingModel,
    name: str,
    columns: str | Path | None,
    dtype: Dtype,
    narrow: Narrow | None,
    *,
    replace: bool,
) -> LanceTable:
    """Opens the index of a build that goes on, or creates an empty one."""
    if lance_table.exists(place) and not replace:
        table = LanceTable.open(place)
        check_model(place, table.about.model, table.about.dim, model)
        if table.about.root != found.root or dict(table.about.column_kinds) != dict(found.column_kinds):
            raise UserError(
                f"{place}: is an index of {table.about.collection or 'other images'}; give a new folder, or replace it"
            )
        if (table.about.dtype, table.about.narrow) != (dtype, narrow):
            raise UserError(
                f"{place}: was begun with dtype {table.about.dtype} and narrow {table.about.narrow}, not {dtype} and {narrow}; "
                "give these, a new folder, or replace it"
            )
        return table
    about = About(
        format=1 if narrow is None else FORMAT,
        model=model.fingerprint,
        model_name=name,
        dim=_width(model),
        dtype=dtype,
        narrow=narrow,
        root=found.root,
        collection=os.path.abspath(os.path.expanduser(found.name)) if found.kind else found.root,
        kind=found.kind,
        columns="" if columns is None else str(Path(columns).absolute()),
        column_kinds=found.column_kinds,
    )
    return LanceTable.create(place, about)


def embedded(found: Collection, model: EmbeddingModel, name: str, batch_size: int | None, progress: bool) -> MemoryStore:
    """Embeds a collection in one pass."""
    source = found.source
    assert source is not None
    preprocess = getattr(model, "preprocess", None)
    images = ReadableImages(source, preprocess)
    image_emb = model.encode_image(images, batch_size=batch_size, progress=progress)
    bad = [BadSample(number, source[number].name, reason) for number, reason in sorted(images.unreadable.items())]
    if len(bad) == len(source):
        raise UserError(f"{found.name}: none of {counted(len(source), 'image')} can be read; the first: {bad[0].reason}")
    good = [number for number in range(len(source)) if number not in images.unreadable]
    samples = []
    for number in good:
        sample, problems = with_usable_captions(source[number])
        samples.append(sample)
        bad += [BadSample(number, sample.name, problem) for problem in problems]
    texts = [caption for sample in samples for caption in sample.captions]
    text_emb = model.encode_text(texts) if texts and model.has_text else image_emb[:0]
    return MemoryStore(
        samples,
        image_emb[good],
        text_emb,
        bad=bad,
        model=model.fingerprint,
        model_name=name,
        preprocess=preprocess,
        places=source.places,
        class_names=source.class_names,
    )


def _width(model: EmbeddingModel) -> int:
    """Width of a model's vectors."""
    if (
        isinstance(width := getattr(model, "embed_dim", None), int)
        and getattr(model, "embedding", "projection") == "projection"
    ):
        return width
    channels = getattr(getattr(model, "preprocess", None), "channels", 3)
    blank = np.zeros((32, 32) if channels == 1 else (32, 32, channels), np.uint8)
    return int(model.encode_image([blank]).shape[1])
