"""The verbs of `mmcl index` that look after an index that is there."""

from __future__ import annotations

import json as json_module
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from mmcl.cli.exit import PART
from mmcl.cli.options import RARE, Json
from mmcl.cli.output import say, show
from mmcl.errors import UserError
from mmcl.terminal import counted

if TYPE_CHECKING:
    from mmcl.search import Index

SHOWN = 20
"""Findings and unreadable images that are listed."""


def verify(index: str, /) -> None:
    """Read every row of an index, list what is wrong, and exit with 1 if there is anything.

    Examples:
        mmcl index verify photos.mmcl

    Args:
        index: A folder made by `mmcl index build`.
    """
    from mmcl.search import maintenance

    opened = open_index(index)
    found = maintenance.verify(opened.store)  # type: ignore[arg-type]
    for line in found[:SHOWN]:
        say(line)
    if len(found) > SHOWN:
        say(f"... and {len(found) - SHOWN:,} more")
    say(f"{index}: {counted(len(opened), 'image')}, {counted(len(found), 'finding')}")
    if found:
        sys.exit(PART)


def optimize(index: str, /, *, ann: Literal["ivf_flat", "ivf_rq", "none"] | None = None) -> None:
    """Join the pieces that commits leave, and remove versions older than an hour.

    Examples:
        mmcl index optimize photos.mmcl
        mmcl index optimize photos.mmcl --ann ivf_flat

    `sync` does so itself. A process that is killed leaves files that nothing needs; they are removed here too.

    A search compares every image until --ann makes an approximate index. That is for more than a million: it reads a part
    of the vectors, and may miss some of the nearest images; `mmcl index recall` measures how many.

    Args:
        index: A folder made by `mmcl index build`.
        ann: The approximate index to make. ivf_flat keeps vectors as they are, ivf_rq a bit of each number; none removes it.
    """
    before = _megabytes(index)
    with open_index(index, mode="w") as opened:
        if ann is None:
            opened.optimize()
        elif ann == "none":
            opened.drop_ann()
        else:
            opened.build_ann(ann)
    say(f"{index}: {_megabytes(index):.1f} MB, {before:.1f} before")
    if ann not in (None, "none"):
        say(f"answers are approximate now; measure what they miss: mmcl index recall {index}")


def recall(
    index: str,
    /,
    *,
    queries: int = 200,
    top_k: int = 10,
    rescore: Annotated[int | None, RARE] = None,
    json: Json = False,
) -> None:
    """Measure which share of the nearest images narrow rows or an approximate index find.

    Examples:
        mmcl index recall photos.mmcl

    Queries are captions of the collection, or images of it if there are none. The exact answers are found by reading every
    vector once.

    Args:
        index: A folder made by `mmcl index build`.
        queries: How many, drawn at random.
        top_k: How many images to look for.
        rescore: Times as many images whose vectors are compared, 10 by default. Of an index with narrow rows.
        json: Print JSON instead of text. It is {"recall": ..., "low": ..., "high": ..., "queries": ..., "of": ...}.
    """
    from mmcl.evaluate.measures.statistics import mean

    opened = open_index(index)
    measured = opened.recall(queries, top_k, rescore=rescore)
    found = mean(measured.found, within=(0, 1))
    if json:
        facts = {"recall": found.value, "low": found.low, "high": found.high, "queries": found.n, "of": measured.queries}
        show(json_module.dumps(facts | {"top_k": top_k, "exact": opened.store.exact}))
        return
    interval = "" if found.low is None or found.high is None else f" (95 %: {found.low:.3f} to {found.high:.3f})"
    asked = f"{found.n:,} {measured.queries}"
    kind = "exact" if opened.store.exact else "approximate"
    say(f"{index}: {kind}, finds {found.value:.3f} of the {top_k} nearest images{interval}, over {asked}")


def calibrate(index: str, /, *, json: Json = False) -> None:
    """Fit how likely a hit is a match, to the captions of the collection.

    Examples:
        mmcl index calibrate photos.mmcl

    `mmcl search` then prints it beside each score, and --min_match leaves out what is less likely. It is a weak signal. It
    needs 200 different captions, and is fitted again by `sync` when the number of images has changed by a fifth.

    Args:
        index: A folder made by `mmcl index build`.
        json: Print JSON instead of text. It is {"a": ..., "b": ..., "auroc": ..., "ece": ..., "captions": ..., "images": ...}.
    """
    with open_index(index, mode="w") as opened:
        found = opened.calibrate()
    if json:
        show(json_module.dumps(asdict(found)))
        return
    say(
        f"{index}: fitted to {counted(found.captions, 'caption')}; on those held out a match scores above no match "
        f"{100 * found.auroc:.0f} times of 100 (50 is chance), and the mean error of the likelihood is {found.ece:.2f}"
    )


def versions(index: str, /, *, json: Json = False) -> None:
    """List the versions of an index that can be restored.

    Examples:
        mmcl index versions photos.mmcl

    Args:
        index: A folder made by `mmcl index build`.
    """
    found = open_index(index).versions()
    if json:
        show(json_module.dumps([asdict(one) | {"written": one.written.isoformat()} for one in found]))
        return
    for one in found:
        rows = "?" if one.rows is None else f"{one.rows:,}"
        say(f"{one.number:6}  {one.written:%Y-%m-%d %H:%M:%S}  {rows:>10} images")
    say(f"go back: mmcl index restore {index} --version {found[0].number}")


def restore(index: str, /, *, version: int) -> None:
    """Make an older version of an index the newest; nothing is lost, the versions between stay.

    Examples:
        mmcl index restore photos.mmcl --version 3

    Args:
        index: A folder made by `mmcl index build`.
        version: One that `mmcl index versions` lists.
    """
    with open_index(index, mode="w") as opened:
        opened.restore(version)
        say(f"{index}: as in version {version}, {counted(len(opened), 'image')}")


def export(index: str, /, *, out: Path) -> None:
    """Write the rows of an index into one file.

    Examples:
        mmcl index export photos.mmcl --out photos_rows.parquet

    Args:
        index: A folder made by `mmcl index build`.
        out: The .parquet, with the vectors, or .csv, without.
    """
    say(f"{counted(open_index(index).export(out), 'row')} in {out}")


def import_(
    old: str,
    /,
    *,
    out: str,
    model: str = "",
    dtype: Literal["float32", "float16", "none"] = "float32",
    narrow: Annotated[Literal["int8", "binary"] | None, RARE] = None,
) -> None:
    """Turn an index of two files, index.json and embeddings, into one that keeps up.

    Examples:
        mmcl index import old.mmcl --out new.mmcl

    Nothing is encoded again, so images must not have changed since the index was made.

    Args:
        old: A folder with index.json, as `mmcl search --save` writes it.
        out: The folder of the new index.
        model: What loads its model. Older ones do not name it.
        dtype: Type of the vectors on disk. float16 halves them and changes some scores by 1e-3; none keeps only narrow rows.
        narrow: Compare a byte (int8) or a bit (binary) of each number, as in `mmcl index build`.
    """
    need_lancedb(out)
    from mmcl.search import Index
    from mmcl.search.building import lasting

    made = Index.import_old(old, out, model_name=lasting(model) if model else "", dtype=dtype, narrow=narrow)
    say(f"{counted(len(made), 'image')} in {out}; bring it up to date: mmcl index sync {out}")


def open_index(index: str, *, mode: Literal["r", "w"] = "r", device: str | None = None) -> Index:
    """Opens an index on disk."""
    from mmcl.search import Index
    from mmcl.search.lance_store import LanceStore

    opened = Index.open(index, mode=mode, device=device)
    if not isinstance(opened.store, LanceStore):
        raise UserError(f"{index}: is of an earlier format; mmcl index import {index} --out NEW makes one that keeps up")
    return opened


def need_lancedb(place: str) -> None:
    """Raises UserError if lancedb is not installed."""
    from mmcl.errors import how_to_install
    from mmcl.search.lance_table import is_available

    if not is_available():
        raise UserError(f"{place}: an index on disk needs lancedb; {how_to_install('index')}")


def _megabytes(folder: str) -> float:
    total = 0
    for file in Path(folder).rglob("*"):
        with suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total / 1e6
