"""`mmcl data`: indexing, validation, statistics and inspection of data before training."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from mmcl.cli.output import say, show
from mmcl.cli.parse import parse_call
from mmcl.cli.sources import parse_source
from mmcl.config import parse_value
from mmcl.errors import UserError
from mmcl.files.atomic import check_file, write_file
from mmcl.preprocess import MAX_SIDE, Intensity, as_intensity
from mmcl.terminal import counted

if TYPE_CHECKING:
    from mmcl.data.source import Source

SHOWN = 50
MOST_DRAWN = 1_000


@dataclass(frozen=True)
class Data:
    """Index, verify, count or show a dataset: mmcl data verify photos/

    Attributes:
        verb: `mmcl data VERB --help` explains each.
        data: A path, or the name of a source (`mmcl list sources`).
    """

    verb: Positional[Literal["index", "verify", "stats", "preview"]]
    data: Positional[str]


def data(words: Sequence[str]) -> None:
    """Runs the verb that the words name. Raises UserError as the verb does."""
    verbs: dict[str, Callable[..., object]] = {"index": index, "verify": verify, "stats": stats, "preview": preview}
    summary = (Data.__doc__ or "").partition("\n\n")[0]
    parse_call(verbs, words, prog="mmcl data", description=summary)()


def index(data: Positional[str], /, *, args: str = "{}", root: str | None = None) -> None:
    """Open a dataset once, so that its indices are there when a run starts: mmcl data index "shards/{00000..00099}.tar"

    Args:
        data: A path, or the name of a source (`mmcl list sources`).
        args: The source's arguments as YAML, e.g. "{split: train}".
        root: Folder with downloaded datasets and indices; default: MMCL_DATA_ROOT, else ~/.cache/mmcl.
    """
    source = _open(data, args, root)
    say(f"{counted(len(source), 'sample')}, fingerprint {source.fingerprint[:16]}")
    for warning in source.warnings:
        say(f"warning: {warning}", error=True)


def verify(
    data: Positional[str],
    /,
    *,
    args: str = "{}",
    root: str | None = None,
    decode: bool = True,
    channels: int = 3,
    intensity: str = "null",
    json: bool = False,
) -> None:
    """Read everything, list what cannot be used, and exit with 1 if there is any: mmcl data verify photos/

    Args:
        data: A path, or the name of a source (`mmcl list sources`).
        args: The source's arguments as YAML, e.g. "{split: train}".
        root: Folder with downloaded datasets and indices; default: MMCL_DATA_ROOT, else ~/.cache/mmcl.
        decode: Decode every image to its last pixel; with --no-decode only its header is read, which misses what is cut off.
        channels: Of the model that is to see the images, such as 4 for red, green, blue and infrared.
        intensity: As `image.preprocess.intensity` of the run, e.g. "[0, 4095]" or "{percentiles: [1, 99]}".
        json: Print JSON with all findings: {"samples": ..., "findings": [...], "usage": [...]}.
    """
    from mmcl.data.inspection import inspect_source

    source = _open(data, args, root)
    found = inspect_source(source, decoded=decode, progress=True, **_seen(channels, intensity)).findings
    if json:
        facts = {"samples": len(source), "findings": found, "usage": [usage.to_dict() for usage in source.usage]}
        show(json_module.dumps(facts, ensure_ascii=False, indent=1))
    else:
        more = [f"... and {len(found) - SHOWN:,} more (--json lists all)"] if len(found) > SHOWN else []
        used = [usage.to_text() for usage in source.usage]
        for line in (*found[:SHOWN], *more, *used, f"{counted(len(source), 'sample')}, {counted(len(found), 'finding')}"):
            say(line)
    for note in source.notes:
        say(f"warning: {note}", error=True)
    if found:
        sys.exit(1)


def stats(
    data: Positional[str],
    /,
    *,
    args: str = "{}",
    root: str | None = None,
    picture: Path | None = None,
    channels: int = 3,
    intensity: str = "null",
    json: bool = False,
) -> None:
    """Count samples, captions, sizes and repetitions: mmcl data stats photos/ --picture stats.png

    Args:
        data: A path, or the name of a source (`mmcl list sources`).
        args: The source's arguments as YAML, e.g. "{split: train}".
        root: Folder with downloaded datasets and indices; default: MMCL_DATA_ROOT, else ~/.cache/mmcl.
        picture: Draw the histograms into this PNG file.
        channels: Of the model that is to see the images, such as 4 for red, green, blue and infrared.
        intensity: As `image.preprocess.intensity` of the run, e.g. "[0, 4095]" or "{percentiles: [1, 99]}".
        json: Print JSON instead of text.
    """
    if picture is not None:
        check_file(picture, flag="--picture", suffixes=(".png",), inputs=(data,))
    from mmcl.data.inspection import inspect_source
    from mmcl.evaluate.reporting.data_figures import histograms

    source = _open(data, args, root)
    found = inspect_source(source, progress=True, **_seen(channels, intensity))
    if picture is not None:
        write_file(picture, histograms(found))
    show(json_module.dumps(found.to_dict(), ensure_ascii=False, indent=1) if json else found.to_text())
    used = [usage.to_text() for usage in source.usage]
    for warning in [line for line in source.warnings if line not in used]:
        say(f"warning: {warning}", error=True)


def preview(
    data: Positional[str],
    out: Positional[Path],
    /,
    *,
    args: str = "{}",
    root: str | None = None,
    count: int = 24,
    seed: int = 0,
    channels: int = 3,
    intensity: str = "null",
) -> None:
    """Draw some images with their captions: mmcl data preview photos/ sheet.png

    Args:
        data: A path, or the name of a source (`mmcl list sources`).
        out: The PNG file.
        args: The source's arguments as YAML, e.g. "{split: train}".
        root: Folder with downloaded datasets and indices; default: MMCL_DATA_ROOT, else ~/.cache/mmcl.
        count: How many, at most 1,000.
        seed: Decides which.
        channels: Of the model that is to see the images; of many bands, the first three are drawn as colours.
        intensity: As `image.preprocess.intensity` of the run, e.g. "[0, 4095]" or "{percentiles: [1, 99]}".
    """
    if not 1 <= count <= MOST_DRAWN:
        raise UserError(f"--count is {count}: give 1 to {MOST_DRAWN:,}")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed is {seed}: give a whole number from 0 to below 2^63")
    check_file(out, flag="OUT", suffixes=(".png",), inputs=(data,))
    from mmcl.evaluate.reporting.data_figures import contact_sheet
    from mmcl.rng import permutation

    seen = _seen(channels, intensity)
    source = _open(data, args, root)
    rows = permutation(len(source), seed)[:count]
    write_file(out, contact_sheet([source[int(row)] for row in rows], source.class_names, **seen))
    say(f"{len(rows)} of {counted(len(source), 'sample')} in {out}")


def _seen(channels: int, intensity: str) -> dict[str, Any]:
    """A model's preprocessing settings, as arguments of `inspect_source` and `contact_sheet`."""
    if not 1 <= channels <= MAX_SIDE:
        raise UserError(f"--channels is {channels}: give 1 to {MAX_SIDE:,}")
    return {"channels": channels, "intensity": _intensity(intensity)}


def _intensity(text: str) -> Intensity:
    try:
        return as_intensity(parse_value(text))
    except UserError as error:
        raise UserError(f"--intensity: {error}") from None


def _open(data: str, args: str, root: str | None) -> Source:
    from mmcl.data.open import open_source

    config = parse_source(data, args, flag="--args")
    return open_source(config.name, config.path, root, config.args)
