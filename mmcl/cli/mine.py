"""`mmcl mine`: a table of hard negatives, by stored rows."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from mmcl.cli.options import RARE, Json, Root
from mmcl.cli.output import say, show
from mmcl.cli.sources import parse_source
from mmcl.errors import UserError
from mmcl.files.atomic import check_file
from mmcl.terminal import counted, shortened, terminal_width

if TYPE_CHECKING:
    from mmcl.runs.mining import MinedTable


def mine(
    data: str,
    /,
    *,
    rows: Path,
    out: Path,
    query: Annotated[Literal["auto", "image", "text"], RARE] = "auto",
    number: int = 3,
    range_min: Annotated[int, RARE] = 0,
    range_max: Annotated[int, RARE] = 100,
    max_score: float | None = None,
    min_score: Annotated[float | None, RARE] = None,
    absolute_margin: Annotated[float | None, RARE] = None,
    relative_margin: float = 0.05,
    strategy: Annotated[Literal["top", "random"], RARE] = "top",
    seed: Annotated[int, RARE] = 0,
    data_args: Annotated[str, RARE] = "{}",
    root: Root = None,
    json: Json = False,
) -> None:
    """Find hard negative captions, and write a table to train on.

    Examples:
        mmcl mine photos/ --rows rows/ --out negatives.parquet
        mmcl mine photos/ --rows rows/ --out negatives.jsonl --max_score 0.4

    The table has the columns image, caption and negative, as clip with hard_negatives reads it. Captions of the sample, of
    samples in its group and of those with its id are never among its negatives. Near ones may be true of it all the same: the
    guards refuse those that score almost as high as its own caption.

    Args:
        data: A path, or the name of a source. `mmcl list sources` lists them.
        rows: The folder of shards that `mmcl embed` wrote of these data.
        out: A .parquet or .jsonl file.
        query: What is compared with the captions. By default the images, and the captions of data without images.
        number: Negatives of each sample, at most. Training draws one of them in every epoch.
        range_min: Candidates left out, of those that pass the guards. The nearest come first.
        range_max: Candidates looked at. After those left out, they must be enough for the number.
        max_score: Highest cosine of a negative.
        min_score: Lowest cosine of a negative.
        absolute_margin: Least difference to the cosine of the sample's own caption. Of several captions, the lowest counts.
        relative_margin: Share below the cosine of the sample's own caption. 0.05 allows 95 % of it, -1 twice as much.
        strategy: top takes the nearest that pass, random any of them.
        seed: Seed of the random ones.
        data_args: Arguments of the source, such as "{fold: test}".
        json: Print JSON instead of text. It is {"samples": ..., "rows": ..., "refused": {...}, ...}.
    """
    from mmcl.runs.records import RECORD_SUFFIXES

    check_file(out, flag="--out", suffixes=RECORD_SUFFIXES, inputs=(data,))
    given = parse_source(data, data_args, flag="--data_args")
    from mmcl.runs.build_data import build_source
    from mmcl.runs.mining import mine_table
    from mmcl.search.mining import MiningLimits

    limits = MiningLimits(
        number=number,
        range_min=range_min,
        range_max=range_max,
        max_score=max_score,
        min_score=min_score,
        absolute_margin=absolute_margin,
        relative_margin=relative_margin,
        strategy=strategy,
        seed=seed,
    )
    source = build_source(given, root, "data")
    has_images = len(source) > 0 and source[0].image is not None
    if query == "image" and not has_images:
        raise UserError(f"--query image: {data} has no images; leave it out")
    compared: Literal["image", "text"] = "image" if query == "image" or (query == "auto" and has_images) else "text"
    found = mine_table(source, rows, out, compared, limits)
    if json:
        show(json_module.dumps({"file": str(out), **_facts(found)}))
        return
    _print(found, out, number)


def _facts(found: MinedTable) -> dict[str, object]:
    counts = (found.mined.row_NK >= 0).sum(axis=1)
    return {
        "samples": found.samples,
        "rows": found.rows,
        "captions": found.captions,
        "negatives": int(counts.sum()),
        "candidates": found.mined.candidates,
        "refused": found.mined.refused,
    }


def _print(found: MinedTable, out: Path, number: int) -> None:
    mined = found.mined
    counts = (mined.row_NK >= 0).sum(axis=1)
    say(f"{counted(int(counts.sum()), 'negative')} for {found.rows:,} of {counted(found.samples, 'sample')} in {out}")
    for guard, refused in mined.refused.items():
        if refused:
            say(f"  {guard} refused {refused:,} of {counted(mined.candidates, 'candidate')}")
    fewer = int(((counts > 0) & (counts < number)).sum())
    if fewer:
        say(f"  {counted(fewer, 'sample')} with fewer than {number}")
    if without := found.samples - found.rows:
        say(f"  {counted(without, 'sample')} without any, left out of the table: raise --range_max, or widen the guards")
    for row in found.examples:
        say(shortened(f"  such as {row['caption'][0]!r}: {row['negative'][0]!r}", terminal_width()))
    say(f'next: mmcl train clip_finetune --data.train.path {out} --method "{{name: clip, args: {{hard_negatives: true}}}}"')
