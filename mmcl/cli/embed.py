"""`mmcl embed`: computation of a file of embeddings from images, captions and classes."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING

from mmcl.cli.evaluate import load_cached
from mmcl.cli.exit import end_partly, refuse_all_bad
from mmcl.cli.options import Device, Json, NoCache, Root
from mmcl.cli.output import say
from mmcl.cli.sources import parse_source
from mmcl.errors import UserError
from mmcl.files.atomic import check_file
from mmcl.interop.available import check_available
from mmcl.terminal import counted

if TYPE_CHECKING:
    from mmcl.data.source import Source
    from mmcl.evaluate import CachedModel
    from mmcl.types import BadSample


def embed(
    data: str,
    /,
    *,
    model: str = "runs/clip_emoji",
    out: Path,
    features: bool = False,
    data_args: str = "{}",
    root: Root = None,
    device: Device = None,
    json: Json = False,
    no_cache: NoCache = False,
) -> None:
    """Embed images, their captions and their classes into a file.

    Examples:
        mmcl embed photos/ --out photos.parquet
        mmcl eval retrieval --embeddings photos.parquet

    `mmcl eval` reads the file, and so does anything that reads parquet. Its columns: id, kind (image, text, class), label,
    name, embedding. A .csv has columns e0, e1, ... for the embedding; beside a .npy, photos.rows.csv has the columns but the
    embedding, in the order of its rows. Samples whose image cannot be read are listed, and the exit code is then 1.

    Args:
        data: A path, or the name of a source. `mmcl list sources` lists them.
        model: A run directory, open_clip:ARCH/TAG or hf:ID. `mmcl list models` shows what can be loaded.
        out: The .parquet, .csv or .npy to write.
        features: Write what the encoder gives before the head. At its own length, and of the images alone.
        data_args: Arguments of the source, such as "{fold: test}".
        json: Print JSON instead of text. It is {"file": ..., "rows": ...}.
    """
    check_file(out, flag="--out", suffixes=(".parquet", ".csv", ".npy"), inputs=(data,))
    check_available(model)
    from mmcl.runs.build_data import build_source

    source = build_source(parse_source(data, data_args, flag="--data_args"), root, "data")
    rows, bad = _written(out, source, load_cached(model, no_cache, device), features)
    say(json_module.dumps({"file": str(out), "rows": rows}) if json else f"{counted(rows, 'row')} in {out}")
    end_partly(bad)


def _written(out: Path, source: Source, model: CachedModel, features: bool) -> tuple[int, list[BadSample]]:
    """Returns the number of rows, and the unreadable samples. Raises UserError if no sample is readable."""
    import numpy as np

    from mmcl.data.derived.subset import Subset
    from mmcl.data.images.image_cache import unreadable
    from mmcl.evaluate.embedding_file import write_embeddings

    try:
        return write_embeddings(out, source, model, features=features), []
    except UserError:
        bad = unreadable(source, getattr(model.model, "preprocess", None))
        refuse_all_bad(bad, len(source))
        if not bad:
            raise
        good = np.setdiff1d(np.arange(len(source)), [one.index for one in bad])
        return write_embeddings(out, Subset(source, good), model, features=features), bad
