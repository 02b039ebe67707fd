"""`mmcl data curate`: pairs of an image and a caption that do not fit, by stored rows."""

from __future__ import annotations

import json as json_module
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from mmcl.cli.options import Json, Root
from mmcl.cli.output import say, show
from mmcl.cli.sources import parse_source
from mmcl.errors import UserError
from mmcl.files.atomic import check_file
from mmcl.terminal import counted, shortened, terminal_width

if TYPE_CHECKING:
    from mmcl.runs.curation import CuratedData, Doubt

_SHOWN = 5


def curate(
    data: str,
    /,
    *,
    rows: Path,
    out: Path,
    list: Path | None = None,
    nearest: float = 0.1,
    min_score: float | None = None,
    args: str = "{}",
    root: Root = None,
    json: Json = False,
) -> None:
    """List pairs whose image and caption do not fit, the worst first.

    Examples:
        mmcl data curate photos/ --rows rows/ --out doubtful.parquet
        mmcl data curate photos/ --rows rows/ --out doubtful.jsonl --nearest 0.5

    The table has the columns sample, image, caption, similarity (the cosine), caption_rank of captions, and image_rank of
    images. Nothing is deleted. The list of what to keep is read by training: --data.keep kept.txt.

    Args:
        data: A path, or the name of a source. `mmcl list sources` lists them.
        rows: The folder of shards that `mmcl embed` wrote of these data. A model that was not trained on them judges best.
        out: The table, a .parquet or .jsonl file.
        list: Write the names to keep into this file, one a line. A sample stays if one of its captions is not doubtful.
        nearest: Share of the captions, and of the images, that are near enough. Both must be met, and 1 is no limit.
        min_score: Lowest cosine of a pair, such as 0.3 for a large released model.
        args: Arguments of the source, such as "{split: train}".
        json: Print JSON instead of text. It is {"samples": ..., "pairs": ..., "doubtful": ..., "dropped": ..., ...}.
    """
    from mmcl.runs.records import RECORD_SUFFIXES

    check_file(out, flag="--out", suffixes=RECORD_SUFFIXES, inputs=(data,))
    if list is not None:
        check_file(list, flag="--list", inputs=(data,))
        if list.absolute() == out.absolute():
            raise UserError(f"--list {list}: this is the table of --out; give another file")
    given = parse_source(data, args, flag="--args")
    from mmcl.runs.build_data import build_source
    from mmcl.runs.curation import Doubt
    from mmcl.runs.curation import curate as curate_data

    doubt = Doubt(nearest=nearest, min_score=min_score)
    found = curate_data(build_source(given, root, "data"), rows, out, doubt, kept=list)
    if json:
        show(json_module.dumps(_facts(found, out, list)))
        return
    _print(found, doubt, data, out, list)


def _facts(found: CuratedData, out: Path, kept: Path | None) -> dict[str, object]:
    return {
        "file": str(out),
        "list": None if kept is None else str(kept),
        "samples": found.samples,
        "pairs": found.pairs,
        "doubtful": len(found.records),
        "dropped": found.dropped,
        "kept_in_part": found.kept_in_part,
        "uncaptioned": found.uncaptioned,
        "without_rows": found.without_rows,
    }


def _print(found: CuratedData, doubt: Doubt, data: str, out: Path, kept: Path | None) -> None:
    doubtful = len(found.records)
    are = "is" if doubtful == 1 else "are"
    say(f"{doubtful:,} of {counted(found.pairs, 'pair')} {are} doubtful:")
    say(f"  {doubt.in_words()}")
    if 2 * doubtful > found.pairs:
        say("  more than half: the model of the rows may not know such images and texts; embed them with another one")
    if doubtful and found.typical is not None:
        median = statistics.median(record["similarity"] for record in found.records)
        say(f"  median cosine {median:.3f}, that of the other pairs {found.typical:.3f}")
    for record in found.records[:_SHOWN]:
        ranks = f"caption {record['caption_rank']:,g}, image {record['image_rank']:,g}"
        say(shortened(f"  {record['similarity']:.3f}  {ranks}  {record['sample']}: {record['caption']!r}", terminal_width()))
    if found.uncaptioned:
        say(f"  {counted(found.uncaptioned, 'sample')} without a caption, not judged")
    if found.without_rows:
        say(f"  {counted(found.without_rows, 'sample')} without rows, not judged: `mmcl data verify {data}` says why")
    say(f"{counted(doubtful, 'pair')} in {out}")
    if kept is not None:
        in_part = f"; {counted(found.kept_in_part, 'sample')} with another caption stay" if found.kept_in_part else ""
        say(f"{counted(found.samples - found.dropped, 'name')} in {kept}, without {counted(found.dropped, 'sample')}{in_part}")
    if doubtful:
        say(f"next: look at {out}, then train on the others:")
        say(f"  --data.keep {kept}" if kept else "  --list kept.txt here, and --data.keep kept.txt in training")
