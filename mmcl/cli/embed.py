"""`mmcl embed`: pictures, captions and classes to a parquet file of embeddings."""

from __future__ import annotations

import json as json_module
from pathlib import Path

from tyro.conf import Positional

from mmcl.cli.evaluate import Json, NoCache, Root, load_cached
from mmcl.cli.sources import parse_source
from mmcl.errors import UserError


def embed(
    data: Positional[str],
    /,
    *,
    model: str = "runs/clip_emoji",
    out: Path,
    data_args: str = "{}",
    root: Root = None,
    json: Json = False,
    no_cache: NoCache = False,
) -> None:
    """Embed pictures, their captions and their classes: mmcl embed photos/ --out photos.parquet

    `mmcl eval knn --embeddings photos.parquet ...` reads the file, and so does anything that reads parquet. Its columns: id,
    kind (image, text, class), label, name, embedding.

    Args:
        data: A path, or the name of a source (`mmcl list sources`).
        model: A run directory, open_clip:ARCH/PRETRAINED, hf:ID, timm:NAME or torchvision:NAME.
        out: The .parquet to write.
        data_args: The source's arguments as YAML, e.g. "{fold: test}".
    """
    if out.suffix != ".parquet":
        raise UserError(f"--out {out}: give a file that ends in .parquet")
    from mmcl.engine.build import build_source
    from mmcl.evaluate.stored import write_embeddings

    source = build_source(parse_source(data, data_args, flag="--data-args"), root, "data")
    rows = write_embeddings(out, source, load_cached(model, no_cache))
    print(json_module.dumps({"file": str(out), "rows": rows}) if json else f"{rows:,} rows in {out}")
