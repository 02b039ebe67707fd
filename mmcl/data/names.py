"""Names of samples within their collection, by which lists and indexes refer to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mmcl.data.source import Source
from mmcl.errors import UserError
from mmcl.files.text_file import find_encoding, text_lines
from mmcl.terminal import counted


def names_of(source: Source) -> Iterator[str]:
    """Yields the name of every sample without the place of the collection; the second of equal names ends in "#2"."""
    return unique(relative(source[row].name, source.places) for row in range(len(source)))


def rows_in_list(sources: Sequence[Source], file: Path) -> list[np.ndarray]:
    """Returns the rows of each source whose names are lines of a file, as `mmcl dedup --list` writes it: int64, ascending.

    Raises:
        UserError: the file cannot be read, or names what is in none of the sources.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; mmcl dedup INDEX --list {file} writes one")
    listed = {line.rstrip("\n") for _, line in text_lines(file, find_encoding(file, None)) if line.strip()}
    found: set[str] = set()
    rows = []
    for source in sources:
        names = list(names_of(source))
        rows.append(np.array([row for row, name in enumerate(names) if name in listed], np.int64))
        found.update(listed.intersection(names))
    if missing := sorted(listed - found):
        raise UserError(
            f"{file}: {counted(len(missing), 'line')} of {len(listed):,} not in the data, the first {missing[0]!r}; give paths "
            "relative to the folder of the data"
        )
    return rows


def unique(paths: Iterable[str]) -> Iterator[str]:
    """Yields the paths, the second of the same name with "#2" at its end, and so on."""
    seen: dict[str, int] = {}
    for path in paths:
        seen[path] = seen.get(path, 0) + 1
        yield path if seen[path] == 1 else f"{path}#{seen[path]}"


def relative(name: str, places: Sequence[str]) -> str:
    """Returns a sample's name without the place of its collection (`Source.places`)."""
    if len(places) == 1:  # as most collections have, each of whose names comes by here
        return name.removeprefix(places[0])
    place = max((place for place in places if name.startswith(place)), key=len, default="")
    return name.removeprefix(place)
