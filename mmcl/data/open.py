"""Opening of data sources by name or path."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mmcl.data import SOURCES
from mmcl.data.source import Source, required_path
from mmcl.data.sources.embeddings.table import PLAN
from mmcl.data.sources.folders.captions_file import usual_captions_files
from mmcl.data.sources.huggingface import is_saved_to_disk
from mmcl.data.sources.shards.paths import COMPRESSED, is_shards
from mmcl.data.sources.tables.table_file import SUFFIXES as TABLE_SUFFIXES
from mmcl.data.sources.tables.table_file import is_table
from mmcl.data.sources.torchvision import known_copy
from mmcl.data.usage import count_unused, counts_to_text
from mmcl.errors import UserError, first_line
from mmcl.files.listing import (
    CONVERTIBLE_SUFFIXES,
    PACKED_SUFFIXES,
    VIDEO_SUFFIXES,
    is_image,
    list_files,
    reason_unused,
    suffix_of,
)
from mmcl.files.remote_filesystem import is_url

FEW = 10
"""Largest number of images, such as a logo, that are ignored beside shards or parquet files, whatever their size."""

_BY_PANDAS = "is not a readable table; save it as .parquet, e.g. pandas.{}({}).to_parquet(...)"
_OTHER_FILES = {
    ".json": "is read with the images that it describes: give their folder, and this file as `captions` in its args; write "
    "records of another kind as .jsonl, one a line; images that it names by URL are to be downloaded, as with img2dataset",
    ".feather": _BY_PANDAS.format("read_feather", "..."),
    ".orc": _BY_PANDAS.format("read_orc", "..."),
    ".db": _BY_PANDAS.format("read_sql", '"SELECT ...", sqlite3.connect(...)'),
    ".sqlite": _BY_PANDAS.format("read_sql", '"SELECT ...", sqlite3.connect(...)'),
    ".arrow": "is one of the files of a dataset; give the folder it is in",
    **dict.fromkeys(
        (".pkl", ".pickle"),
        "can run code when it is read; where you trust it, save it as .parquet, e.g. pandas.read_pickle(...).to_parquet(...)",
    ),
    **dict.fromkeys(
        (".h5", ".hdf5", ".mat"),
        "holds arrays; save each image as .png or .npy, and name these files in a table: image, caption",
    ),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "is not a readable table; save it as .csv"),
    **dict.fromkeys(PACKED_SUFFIXES, "is packed; unpack it, and give what was in it"),
    **dict.fromkeys(
        VIDEO_SUFFIXES, "is a video; save frames as images and give their folder, e.g. ffmpeg -i ... -vf fps=1 frames/%06d.jpg"
    ),
    **dict.fromkeys(CONVERTIBLE_SUFFIXES, "is of a kind of image that is not read; convert it to .jpg or .png"),
}
"""Advice for a file that is not a data source itself, by its suffix."""


def open_source(
    name: str, path: str | None = None, root: str | None = None, args: Mapping[str, Any] | None = None, *, where: str = ""
) -> Source:
    """Opens a data source.

    Args:
        name: a name in `SOURCES`, or "auto" to detect it from the content of `path`.
        path: file or folder, for sources that read from one; "~" is the home folder.
        root: folder of downloaded datasets; default: the environment variable MMCL_DATA_ROOT, else ~/.cache/mmcl.
        args: arguments of the source.
        where: prefix of errors about the arguments, e.g. "data.train".

    Raises:
        UserError: the name, the path, the arguments or the data are invalid; says what is wrong.

    Example:
        >>> source = open_source("digits")
        >>> len(source), source[0].label
        (1352, 0)
    """
    path = path and os.path.expanduser(path)
    name = guess_source(path) if name == "auto" else name
    SOURCES.check(name, args or {}, where=where)
    try:
        source: Source = SOURCES.build(name, args or {}, path, root)
    except OSError as error:
        prefix, place = f"{where}: " if where else "", error.filename or path or name
        raise UserError(f"{prefix}source {name!r}: {place} cannot be used ({error.strerror or first_line(error)})") from error
    return source


def guess_source(path: str | None) -> str:
    """Detects which source reads a path.

    Raises:
        UserError: the path does not exist, or has nothing that a source can read; says what was found.
    """
    if path is not None and is_shards(path):
        return "webdataset"
    if path is not None and is_url(path):
        if is_table(path):
            return "table"
        raise UserError(f"{path}: is neither a table nor a shard; of URLs only .tar and {', '.join(TABLE_SUFFIXES)} are read")
    place = required_path(path, "auto")
    if (place / PLAN).is_file():
        return "embeddings"
    if place.is_dir():
        return "huggingface" if is_saved_to_disk(place) else _guess_folder(place)
    if is_table(place):
        return "table"
    raise UserError(f"{place}: {known_copy([str(place)]) or _why_not(place.name)}")


def _why_not(name: str) -> str:
    """Returns advice for a file that is not a data source itself."""
    if is_image(name):
        return "is one image; give the folder it is in"
    kinds = f"is not a table; give a folder, or a file of one of the kinds {', '.join(TABLE_SUFFIXES)}"
    return _OTHER_FILES.get(suffix_of(name), kinds)


def _guess_folder(folder: Path) -> str:
    """Detects the source of a folder: captioned images first, then shards, parquet and Arrow files, then other images.

    An archive is ignored if it lies beside the folder that was unpacked from it or written with it.
    """
    if (folder / "config.yaml").is_file() and (folder / "metrics.jsonl").is_file():
        raise UserError(f"{folder}: is a run directory, not data; give a folder or a table of images")
    names = list_files(folder).names
    images = [name for name in names if is_image(name)]
    packed = [name for name in names if suffix_of(name) in (".tar", ".parquet", ".arrow") or name.lower().endswith(COMPRESSED)]
    if packed:
        folders = {place.as_posix() for name in names for place in PurePosixPath(name).parents}
        packed = [name for name in packed if _unpacked(name) not in folders]
    if images and (not packed or _described(folder, names) or _outweigh(folder, images, packed)):
        return "folder"
    if packed:
        return "webdataset" if any(is_shards(name) for name in packed) else "huggingface"
    if copy := known_copy(str(folder / name) for name in names):
        raise UserError(f"{folder}: {copy}")
    found = counts_to_text(count_unused((reason_unused(name), name) for name in names))
    kinds = "no images, shards, parquet or Arrow files in it"
    table = next(filter(is_table, names), None)
    instead = f"give the table itself, e.g. {folder / table}" if table else "give a folder or a table of images"
    nothing = "only hidden files in it" if any(folder.iterdir()) else "is empty"
    raise UserError(f"{folder}: {f'{kinds}, only {found}' if found else nothing}; {instead}")


def _unpacked(archive: str) -> str:
    """Returns the folder name that an archive would unpack to."""
    place, slash, name = archive.rpartition("/")
    return place + slash + name.partition(".")[0]


def _described(folder: Path, names: Sequence[str]) -> bool:
    parts = {"", *(f"{name.partition('/')[0]}/" for name in names if "/" in name)}
    return any(usual_captions_files(folder, names, part) for part in sorted(parts))


def _outweigh(folder: Path, images: Sequence[str], packed: Sequence[str]) -> bool:
    """True if most of the data are individual image files."""
    return len(images) > FEW and _bytes(folder, images) > _bytes(folder, packed)


def _bytes(folder: Path, names: Sequence[str]) -> int:
    places = (os.path.join(folder, name) for name in names)
    return sum(os.path.getsize(place) for place in places if os.path.isfile(place))
