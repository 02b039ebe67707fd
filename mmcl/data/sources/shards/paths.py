"""Resolution of shard paths: a tar file, a folder, a glob, or braces such as `{00000..00099}.tar`."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator
from pathlib import Path

from mmcl.errors import UserError
from mmcl.files.listing import list_files, suffix_of
from mmcl.files.remote_filesystem import find_matches, is_url
from mmcl.terminal import counted

SEPARATOR = "::"
MAX_SHARDS = 1_000_000
NUMBER_OF_SHARDS = "nshards.txt"
_UNPACKERS = {".tar.gz": "gunzip", ".tgz": "gunzip", ".tar.bz2": "bunzip2", ".tar.xz": "unxz", ".tar.zst": "unzstd"}
COMPRESSED = tuple(_UNPACKERS)
"""Suffixes of compressed archives, which do not allow random access."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_shards(path: str) -> bool:
    """True if a path names tar shards; does not check that they exist."""
    return all(part.lower().endswith((".tar", *COMPRESSED)) for part in path.split(SEPARATOR))


def find_shards(path: str, split: str | None = None) -> list[str]:
    """Returns the shards in reading order: the order of the braces, else by name with numbers by value.

    Args:
        path: one or several paths, joined by "::"; may be URLs, whose existence is not checked here.
        split: subfolder such as "train", if several subfolders contain shards.

    Raises:
        UserError: no shard exists, or a shard of a braced range or of a counted folder is missing.
    """
    shards = [shard for part in path.split(SEPARATOR) for shard in _find(part, split)]
    if len(set(shards)) < len(shards):
        twice = next(shard for shard in shards if shards.count(shard) > 1)
        raise UserError(f"{path}: names {twice} twice")
    return shards


def _find(part: str, split: str | None) -> list[str]:
    remote = is_url(part)
    if not remote and Path(part).is_dir():
        return _in_folder(Path(part), split)
    _refuse_compressed(part)
    if split is not None:
        raise UserError(f"{part}: is not a folder and has no split {split!r}; remove `split`")
    if any(mark in part for mark in "*?["):
        found = sorted(find_matches(part) if remote else glob.glob(part), key=_by_number)
        if not found:
            raise UserError(f"{part}: no file matches")
        return found
    shards = list(expand_braces(part))
    missing = [] if remote else [shard for shard in shards if not Path(shard).is_file()]
    if missing:
        rest = f" ({len(missing)} of {len(shards)} shards are missing)" if len(shards) > 1 else ""
        raise UserError(f"{missing[0]}: no such file{rest}")
    return shards


def expand_braces(pattern: str) -> Iterator[str]:
    """Expands ranges `{08..10}`, with leading zeros, and lists `{a,b}`; several multiply, and the last varies fastest.

    Raises:
        UserError: the braces contain neither, or expand to more than `MAX_SHARDS`.
    """
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    before, after = pattern[: match.start()], pattern[match.end() :]
    for choice in _choices(match[1], pattern):
        for rest in expand_braces(after):
            yield f"{before}{choice}{rest}"


def _choices(inside: str, pattern: str) -> list[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None and "," not in inside:
        raise UserError(f"{pattern}: {{{inside}}} is neither a range such as {{000..099}} nor a list such as {{a,b}}")
    if numbers is None:
        return inside.split(",")
    first, last = numbers.groups()
    count = int(last) - int(first) + 1
    if not 1 <= count <= MAX_SHARDS:
        raise UserError(f"{pattern}: {{{inside}}} is a range of {counted(count, 'shard')}")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _in_folder(folder: Path, split: str | None) -> list[str]:
    place, names = _tars_in(folder, split)
    shards = sorted((str(place / name) for name in names), key=_by_number)
    counted = place / NUMBER_OF_SHARDS
    if counted.is_file() and counted.read_text().strip() != str(len(shards)):
        raise UserError(
            f"{counted} says {counted.read_text().strip()} shards, and {len(shards)} are there: copy the others too"
        )
    return shards


def _tars_in(folder: Path, split: str | None) -> tuple[Path, list[str]]:
    """Returns the folder itself, its split or its only subfolder with shards, and the names of the shards in it."""
    files = list_files(folder).names
    by_place: dict[str, list[str]] = {}
    for name in files:
        if suffix_of(name) == ".tar":
            place, _, last = name.rpartition("/")
            by_place.setdefault(place, []).append(last)
    if split is None and "" in by_place:
        return folder, by_place[""]
    found = [place for place in by_place if split in (None, place, place.rpartition("/")[2])]
    if len(found) > 1:
        raise UserError(f"{folder}: has shards in {', '.join(found)}; set `split` to one of them, or give its folder")
    if not found:
        _refuse_compressed(*(str(folder / name) for name in files))
        raise UserError(f"{folder / (split or '')}: no .tar file in it")
    return folder / found[0], by_place[found[0]]


def _refuse_compressed(*paths: str) -> None:
    for path in paths:
        if path.lower().endswith(COMPRESSED):
            tool = next(tool for end, tool in _UNPACKERS.items() if path.lower().endswith(end))
            raise UserError(f"{path}: is compressed, so that no sample can be read by itself; unpack it to a .tar ({tool})")


def stated_samples(shard: str) -> tuple[int, int] | None:
    """Numbers of written and failed samples of a shard according to img2dataset; None without its statistics file."""
    side = Path(side_file(shard))
    if not side.is_file():
        return None
    try:
        stats = json.loads(side.read_text(encoding="utf-8"))
        return int(stats["successes"]), int(stats["count"]) - int(stats["successes"])
    except (ValueError, KeyError, TypeError, OSError):
        raise UserError(f"{side}: is not an img2dataset statistics file; fix or remove it") from None


def side_file(shard: str) -> str:
    """Path of img2dataset's statistics file of a shard."""
    return f"{shard[: -len('.tar')]}_stats.json"


def _by_number(path: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]
