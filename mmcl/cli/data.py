"""`mmcl data`: indexing, validation, statistics, inspection and curation of data before training."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmcl.cli.arguments import form_of
from mmcl.cli.curate import curate
from mmcl.cli.help import print_help
from mmcl.cli.options import Json, Root
from mmcl.cli.output import say, show
from mmcl.cli.parse import asks_for_help, parse_call
from mmcl.cli.sources import parse_source
from mmcl.config import parse_value
from mmcl.errors import UserError, unknown_name
from mmcl.files.atomic import check_file
from mmcl.files.figure import FIGURE_SUFFIXES, write_figure
from mmcl.preprocess import MAX_SIDE, Intensity, as_intensity
from mmcl.terminal import counted

if TYPE_CHECKING:
    from mmcl.data.source import Source

SHOWN = 50
MOST_DRAWN = 1_000


def data(words: Sequence[str]) -> None:
    """Runs the verb that the words name. Raises UserError as the verb does."""
    first, *rest = words or [""]
    if asks_for_help(words) and first not in VERBS:
        print_help(form_of(look), "mmcl data")
        return
    if first not in VERBS:
        raise _unknown(first, rest)
    parse_call(VERBS[first], rest, prog=f"mmcl data {first}")()


def look(verb: Literal["index", "verify", "stats", "preview", "curate"], data: str, /) -> None:
    """Check, count and show a dataset before training.

    Examples:
        mmcl data verify photos/
        mmcl data stats photos/ --picture stats.png
        mmcl data preview photos/ sheet.png
        mmcl data index photos/
        mmcl data curate photos/ --rows rows/ --out doubtful.parquet

    Args:
        verb: One of index, verify, stats, preview and curate: mmcl data verify --help.
        data: A path, or the name of a source. `mmcl list sources` lists them.
    """
    VERBS[verb](data)


def _unknown(word: str, rest: Sequence[str]) -> UserError:
    verb = next((one for one in rest if one in VERBS), None)
    if verb is not None:
        return UserError(f"the verb comes first: mmcl data {verb} {word}")
    if word and Path(word).exists():
        return UserError(f"say what to do with {word}: mmcl data verify {word} (or {', '.join(VERBS)})")
    return (
        unknown_name("verb", word, VERBS, where="mmcl data")
        if word
        else UserError(f"mmcl data needs a verb: {', '.join(VERBS)}")
    )


def index(data: str, /, *, args: str = "{}", root: Root = None) -> None:
    """Open a dataset once, so that its indices are there when a run starts.

    Examples:
        mmcl data index photos/

    Args:
        data: A path, or the name of a source, such as "shards/{00000..00099}.tar". `mmcl list sources` lists them.
        args: Arguments of the source, such as "{split: train}".
    """
    source = _open(data, args, root)
    say(f"{counted(len(source), 'sample')}, fingerprint {source.fingerprint[:16]}")
    for warning in source.warnings:
        say(f"warning: {warning}", error=True)


def verify(
    data: str,
    /,
    *,
    args: str = "{}",
    root: Root = None,
    no_decode: bool = False,
    channels: int = 3,
    intensity: str = "null",
    json: Json = False,
) -> None:
    """Read everything, list what cannot be used, and exit with 1 if there is any.

    Examples:
        mmcl data verify photos/

    Args:
        data: A path, or the name of a source. `mmcl list sources` lists them.
        args: Arguments of the source, such as "{split: train}".
        no_decode: Read only the headers of the images. This is faster, and misses what is cut off.
        channels: Channels of the model that will see the images. Such as 4 for red, green, blue and infrared.
        intensity: As image.preprocess.intensity of the run. Such as "[0, 4095]" or "{percentiles: [1, 99]}".
        json: Print JSON with all findings. It is {"samples": ..., "findings": [...], "usage": [...]}.
    """
    from mmcl.data.inspection import inspect_source

    source = _open(data, args, root)
    found = inspect_source(source, decoded=not no_decode, progress=True, **_seen(channels, intensity)).findings
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
    data: str,
    /,
    *,
    args: str = "{}",
    root: Root = None,
    picture: Path | None = None,
    channels: int = 3,
    intensity: str = "null",
    json: Json = False,
) -> None:
    """Count samples, captions, sizes and repetitions.

    Examples:
        mmcl data stats photos/
        mmcl data stats photos/ --picture stats.png

    Args:
        data: A path, or the name of a source. `mmcl list sources` lists them.
        args: Arguments of the source, such as "{split: train}".
        picture: Draw the histograms into this file. A .png, .jpg, .webp, .pdf, ...
        channels: Channels of the model that will see the images. Such as 4 for red, green, blue and infrared.
        intensity: As image.preprocess.intensity of the run. Such as "[0, 4095]" or "{percentiles: [1, 99]}".
    """
    if picture is not None:
        check_file(picture, flag="--picture", suffixes=FIGURE_SUFFIXES, inputs=(data,))
    from mmcl.data.inspection import inspect_source
    from mmcl.evaluate.reporting.data_figures import histograms

    source = _open(data, args, root)
    found = inspect_source(source, progress=True, **_seen(channels, intensity))
    if picture is not None:
        write_figure(picture, histograms(found))
    show(json_module.dumps(found.to_dict(), ensure_ascii=False, indent=1) if json else found.to_text())
    used = [usage.to_text() for usage in source.usage]
    for warning in [line for line in source.warnings if line not in used]:
        say(f"warning: {warning}", error=True)


def preview(
    data: str,
    out: Path,
    /,
    *,
    args: str = "{}",
    root: Root = None,
    count: int = 24,
    seed: int = 0,
    channels: int = 3,
    intensity: str = "null",
) -> None:
    """Draw some images with their captions.

    Examples:
        mmcl data preview photos/ sheet.png
        mmcl data preview digits sheet.jpg --count 60

    Args:
        data: A path, or the name of a source. `mmcl list sources` lists them.
        out: The file to write. A .png, .jpg, .webp, .pdf, ...
        args: Arguments of the source, such as "{split: train}".
        count: How many images, at most 1,000.
        seed: Decides which images.
        channels: Channels of the model that will see the images. Of many, the first three are drawn as colors.
        intensity: As image.preprocess.intensity of the run. Such as "[0, 4095]" or "{percentiles: [1, 99]}".
    """
    if not 1 <= count <= MOST_DRAWN:
        raise UserError(f"--count is {count}: give 1 to {MOST_DRAWN:,}")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed is {seed}: give a whole number from 0 to below 2^63")
    check_file(out, flag="OUT", suffixes=FIGURE_SUFFIXES, inputs=(data,))
    from mmcl.evaluate.reporting.data_figures import contact_sheet
    from mmcl.rng import permutation

    seen = _seen(channels, intensity)
    source = _open(data, args, root)
    rows = permutation(len(source), seed)[:count]
    write_figure(out, contact_sheet([source[int(row)] for row in rows], source.class_names, **seen))
    say(f"{len(rows)} of {counted(len(source), 'sample')} in {out}")


VERBS: dict[str, Callable[..., None]] = {"index": index, "verify": verify, "stats": stats, "preview": preview, "curate": curate}


def _seen(channels: int, intensity: str) -> dict[str, Any]:
    """Returns a model's preprocessing settings, as arguments of `inspect_source` and `contact_sheet`."""
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

    config = parse_source(data, args, flag="--args", with_answers=True)
    return open_source(config.name, config.path, root, config.args)
