"""An index on disk, searched from memory: vectors are loaded once, all else is looked up for the rows that are asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from mmcl.data.sample import ImageLike
from mmcl.errors import UserError
from mmcl.files.byte_range import FilePart, LocalFile
from mmcl.files.listing import file_named
from mmcl.logging import get_logger
from mmcl.search.arrow import TYPES, vectors_of
from mmcl.search.items import KINDS, Item, Kind, id_of, unknown_id
from mmcl.search.lance_table import FOUND, LanceTable, row_ids_of
from mmcl.search.narrow import RESCORE, Narrow, NarrowRows, code_bytes
from mmcl.search.ranking import ranked
from mmcl.search.store import TextRows
from mmcl.search.table_indices import Approximate, approximate_kind, nearest_rows, with_words
from mmcl.types import BadSample

logger = get_logger(__name__)

LARGE_ROWS, LARGE_BYTES = 10**6, 2**31
"""Above one of these, a warning names the approximate index. An exact search goes on as before."""
_OF_ITEM = ("id", "path", "file", "offset", "size", "width", "height", "taken", "captions", "label")
_ID = re.compile("[0-9a-f]{16}")
_KEPT_BYTES = 2**25
"""Columns up to this size stay in memory after their first use."""


class LanceStore:
    """Rows of a Lance table, in the order of their paths; a `Store`.

    Args:
        table: the tables.
    """

    def __init__(self, table: LanceTable):
        self.table = table
        self._forget()

    def _forget(self) -> None:
        self._row_ids: np.ndarray | None = None
        self._order: np.ndarray | None = None
        self._ids: tuple[np.ndarray, np.ndarray] | None = None
        self._images: Tensor | None = None
        self._narrow: NarrowRows | None = None
        self._texts: TextRows | None = None
        self._columns: dict[str, pa.Array] = {}
        self._approximate: Approximate | Literal[False] | None = False
        self._loaded = self.table.version

    def refresh(self) -> None:
        """Goes to the newest version, which another process may have written."""
        self.table.refresh()
        self.forget_if_changed()

    def forget_if_changed(self) -> None:
        """Drops what is in memory if the table has another version."""
        if self.table.version != self._loaded:
            self._forget()

    def __len__(self) -> int:
        return self.table.count(FOUND) if self._row_ids is None else len(self._row_ids)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.table.about.dim

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """Types of the columns, those of the user's own included."""
        return {**KINDS, **self.table.about.column_kinds}

    @property
    def model(self) -> str:
        """Fingerprint of the model."""
        return self.table.about.model

    @property
    def model_name(self) -> str:
        """What loads the model; "" if not known."""
        return self.table.about.model_name

    @property
    def approximate(self) -> Approximate | None:
        """Kind of the approximate index, or None."""
        if self._approximate is False:
            self._approximate = approximate_kind(self.table)
        return self._approximate

    @property
    def narrow(self) -> Narrow | None:
        """Kind of the narrow rows; None without them."""
        return self.table.about.narrow

    @property
    def exact(self) -> bool:
        """False if there is an approximate index, or rows are narrow."""
        return self.narrow is None and self.approximate is None

    @property
    def version(self) -> int:
        """Version of the table."""
        return self.table.version

    @property
    def calibration(self) -> Mapping[str, float] | None:
        """The fit of `match`."""
        return self.table.about.calibration

    @property
    def images(self) -> Tensor:
        """Vectors of the images; loaded on first use."""
        if self._images is None:
            self._warn_if_large()
            vectors = np.empty((len(self.row_ids), self.dim), np.float32)
            for row_ids, values in self.table.scan_vectors():
                vectors[self._places(row_ids)] = values
            self._images = torch.from_numpy(vectors)
        return self._images

    def vectors(self, positions: Sequence[int]) -> Tensor:
        """Vectors at some positions, read from the disk unless all are in memory."""
        if self._images is not None or not len(positions):
            return self.images[list(positions)] if len(positions) else torch.zeros(0, self.dim)
        row_ids = self.row_ids[list(positions)]
        rows = self.table.take(row_ids.tolist(), [self.table.about.stored])
        found = vectors_of(rows[self.table.about.stored], self.dim, self.narrow)
        ids = row_ids_of(rows)
        order = np.argsort(ids)
        return torch.from_numpy(found[order[np.searchsorted(ids[order], row_ids)]].astype(np.float32))

    @property
    def codes(self) -> NarrowRows:
        """The narrow rows, of an index that has them; loaded on first use."""
        if self._narrow is None:
            assert self.narrow is not None
            codes = np.empty((len(self.row_ids), code_bytes(self.narrow, self.dim)), np.uint8)
            for row_ids, values in self.table.scan_codes():
                codes[self._places(row_ids)] = values
            self._narrow = NarrowRows(codes, self.narrow, self.dim)
        return self._narrow

    def nearby(self, query_D: np.ndarray, count: int, *, among_N: Tensor | None = None, rescore: int = RESCORE) -> list[int]:
        """Returns the positions nearest to a query, by the narrow rows or the approximate index if there is one."""
        if self.narrow is not None:
            near = self.codes.nearest(query_D, rescore * count, None if among_N is None else among_N.numpy()).tolist()
            return [near[row.position] for row in ranked(query_D[None], self.vectors(near), count)]
        if self.approximate is None:
            return [row.position for row in ranked(query_D[None], self.images, count)]
        ids = np.array(nearest_rows(self.table, self.approximate, query_D, count), np.int64)
        return [int(one) for one in self._places(ids)]

    @property
    def texts(self) -> TextRows:
        """Captions and their vectors; loaded on first use."""
        if self._texts is None:
            stored = self._ordered(["caption_vectors"])["caption_vectors"].to_pylist()
            parts = [np.frombuffer(one or b"", np.float32).reshape(-1, self.dim) for one in stored]
            counts = torch.tensor([len(part) for part in parts], dtype=torch.int64)
            item = torch.repeat_interleave(counts)
            first = counts.cumsum(0) - counts
            vectors = np.concatenate([*parts, np.zeros((0, self.dim), np.float32)])
            self._texts = TextRows(torch.from_numpy(vectors), item, torch.arange(len(item)) - first[item])
        return self._texts

    @property
    def row_ids(self) -> np.ndarray:
        """Lance's id of the row at each position, int64 [N]."""
        if self._row_ids is None:
            row_ids, paths = np.empty(self.table.count(FOUND), np.int64), list[pa.Array]()
            filled = 0
            for batch in self.table.scan(["path"], FOUND):
                row_ids[filled : filled + len(batch)] = row_ids_of(batch)
                filled += len(batch)
                # By their parts, as a walk through the folder meets them; "/" sorts after "-" and other signs.
                paths.append(pc.replace_substring(batch["path"], "/", "\0"))
            self._row_ids = row_ids[pc.sort_indices(pa.chunked_array(paths, pa.string())).to_numpy()]
            paths.clear()
            pa.default_memory_pool().release_unused()  # beside the vectors, which are read next
        return self._row_ids

    def items(self, positions: Sequence[int]) -> list[Item]:
        """Returns the rows at positions."""
        if not positions:
            return []
        own = list(self.table.about.column_kinds)
        rows = self.table.take([int(one) for one in self.row_ids[list(positions)]], [*_OF_ITEM, *own]).to_pylist()
        by_row_id = {row["_rowid"]: row for row in rows}
        return [self._item(by_row_id[int(self.row_ids[position])], own) for position in positions]

    def position(self, id: str) -> int:
        """Returns the position of an image. Raises UserError for an id that there is not."""
        if not _ID.fullmatch(id):
            raise unknown_id(id)
        if self._ids is None:
            digits = "".join(self._ordered(["id"])["id"].to_pylist())
            numbers = np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64)
            self._ids = numbers, np.argsort(numbers)
        numbers, order = self._ids
        wanted = np.uint64(int(id, 16))
        place = int(np.searchsorted(numbers, wanted, sorter=order))
        if place == len(numbers) or numbers[order[place]] != wanted:
            raise unknown_id(id)
        return int(order[place])

    def column(self, name: str) -> pa.Array:
        """Returns a column at all positions."""
        if name not in self._columns:
            if name == "folder":
                found = pc.replace_substring_regex(self.column("path"), r"/?[^/]*$", "", max_replacements=1)
            else:
                found = self._ordered([name])[name]
            if found.nbytes > _KEPT_BYTES:
                return found
            self._columns[name] = found
        return self._columns[name]

    def thumb(self, position: int) -> bytes | None:
        """Returns the small image of a row."""
        (row,) = self.table.take([int(self.row_ids[position])], ["thumb"]).to_pylist()
        thumb: bytes | None = row["thumb"]
        return thumb

    def bad(self) -> list[BadSample]:
        """Returns the images that could not be read, and the unusable captions."""
        batches = self.table.scan(["path", "reason"], "reason IS NOT NULL")
        rows = sorted((row["path"], row["reason"]) for batch in batches for row in batch.to_pylist())
        return [BadSample(number, self._name(path, None), reason) for number, (path, reason) in enumerate(rows)]

    def full_text(self, text: str) -> list[tuple[int, float]]:
        """Returns the positions whose captions have words of a text, with their scores, best first; ties by position."""
        place = {row_id: position for position, row_id in enumerate(self.row_ids.tolist())}
        found = with_words(self.table, text, len(place))
        return sorted(((place[row_id], score) for row_id, score in found if row_id in place), key=lambda one: (-one[1], one[0]))

    def hashes(self) -> list[bytes | None]:
        """Returns the SHA-256 of each image's file."""
        shas: list[bytes | None] = self._ordered(["sha"])["sha"].to_pylist()
        return shas

    def set_calibration(self, calibration: Mapping[str, float] | None) -> None:
        """Keeps the fit of `match`. Raises UserError if another process writes."""
        with self.table.locked():
            self.table.write_about(replace(self.table.about, calibration=calibration))

    def _warn_if_large(self) -> None:
        """Names the approximate index where an exact search takes long and much memory; nothing switches by itself."""
        rows = len(self)
        if self.exact and (rows > LARGE_ROWS or 4 * rows * self.dim > LARGE_BYTES):
            logger.warning(
                f"{self.table.place}: {rows:,} vectors of {self.dim} numbers are compared with every query, from "
                f"{4 * rows * self.dim / 2**30:.1f} GiB of memory; for an approximate index: mmcl index optimize "
                f"{self.table.place} --ann ivf_flat"
            )

    def _places(self, row_ids: np.ndarray) -> np.ndarray:
        """Returns the positions of rows with some of Lance's ids."""
        if self._order is None:
            self._order = np.argsort(self.row_ids)
        return self._order[np.searchsorted(self.row_ids, row_ids, sorter=self._order)]

    def _ordered(self, columns: Sequence[str]) -> dict[str, pa.Array]:
        """Returns columns at all positions."""
        batches = list(self.table.scan(columns, FOUND))
        if not batches:
            kinds = {"caption_vectors": pa.binary(), "sha": pa.binary(32)}
            return {name: pa.array([], kinds.get(name) or TYPES[self.kinds[name]]) for name in columns}
        rows = pa.Table.from_batches(batches)
        order = np.argsort(self._places(row_ids_of(rows)))
        return {name: rows[name].take(pa.array(order)).combine_chunks() for name in columns}

    def _item(self, row: Mapping[str, Any], own: Sequence[str]) -> Item:
        path = row["path"]
        given = {name: row[name] for name in ("label", "size", "width", "height", "taken")}
        captions = tuple(row["captions"] or ())
        name, meta = self._name(path, row["file"]), {name: row[name] for name in own}
        return Item(id_of(path), path, name, captions, meta=meta, image=self._image(row), **given)

    def _name(self, path: str, file: str | None) -> str:
        root = self.table.about.root
        return _near(file or root + path) if file or root else path

    def _image(self, row: Mapping[str, Any]) -> ImageLike | None:
        file, offset = row["file"], row["offset"]
        if offset is not None:
            return _part(file, offset, row["size"])
        if file is None and not self.table.about.root:
            return None
        return file_named(_near(file if file is not None else self.table.about.root + row["path"]))


def _near(path: str) -> str:
    """A path below the working directory, relative to it."""
    here = os.getcwd() + "/"
    return path.removeprefix(here)


def _part(file: str, offset: int, size: int) -> FilePart | None:
    if not Path(file).is_file():
        return None
    try:
        return FilePart(LocalFile.find(file), offset, size)
    except UserError:
        return None
