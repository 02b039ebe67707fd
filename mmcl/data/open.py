"""One call from a name or a path to a source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcl.data import SOURCES
from mmcl.data.folder import IMAGE_SUFFIXES
from mmcl.data.huggingface import is_saved_to_disk
from mmcl.data.servers import is_url
from mmcl.data.shards.paths import is_shards
from mmcl.data.source import Source, required_path
from mmcl.data.table_file import SUFFIXES as TABLE_SUFFIXES
from mmcl.data.table_file import is_table
from mmcl.errors import UserError


def open_source(
    name: str, path: str | None = None, root: str | None = None, args: Mapping[str, Any] | None = None, *, where: str = ""
) -> Source:
    """Opens a data source.

    Args:
        name: a name in `SOURCES`, or "auto" to go by what lies at `path`.
        path: file or folder, for sources that read one.
        root: folder with downloaded data sets; default: the environment variable MMCL_DATA_ROOT, else ~/.cache/mmcl.
        args: the source's own arguments.
        where: put in front of an error about the arguments, e.g. "data.train".

    Raises:
        UserError: names what is wrong with the name, the path, the arguments or the data.
    """
    name = guess_source(path) if name == "auto" else name
    SOURCES.check(name, args or {}, where=where)
    source: Source = SOURCES[name](path, root, **(args or {}))
    return source


def guess_source(path: str | None) -> str:
    """The name of the source that reads what lies at a path.

    Raises:
        UserError: there is nothing, or nothing that a source reads; says what was found.
    """
    if path is not None and is_shards(path):
        return "webdataset"
    if path is not None and is_url(path):
        if is_table(path):
            return "table"
        raise UserError(f"{path}: is no table and no shard; of URLs only .tar and {', '.join(TABLE_SUFFIXES)} are read")
    place = required_path(path, "auto")
    if place.is_file():
        if is_table(place):
            return "table"
        raise UserError(f"{place}: is no table; give a folder, or a file of one of the kinds {', '.join(TABLE_SUFFIXES)}")
    if is_saved_to_disk(place):
        return "huggingface"
    suffixes = [file.suffix.lower() for file in place.rglob("*") if file.is_file() and not file.name.startswith(".")]
    if any(suffix in IMAGE_SUFFIXES for suffix in suffixes):
        return "folder"
    if any(suffix in (".parquet", ".arrow") for suffix in suffixes):
        return "huggingface"
    found = f"{len(suffixes)} files ({', '.join(sorted(set(suffixes))[:5])})" if suffixes else "nothing"
    raise UserError(f"{place}: no images, parquet or Arrow files in it, only {found}; give a folder or a table of images")
