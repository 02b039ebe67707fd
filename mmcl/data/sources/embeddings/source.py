"""Stored embeddings in place of images and texts, for heads that are trained on frozen encoders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa

from mmcl.data.names import unique
from mmcl.data.sample import Sample
from mmcl.data.source import Source, required_path
from mmcl.data.sources.embeddings.table import Columns, EmbeddedRows, EmbeddedTable, open_embeddings
from mmcl.data.sources.tables.column_names import group_of, number_labels
from mmcl.data.stored_rows import StoredRow, StoredText
from mmcl.data.usage import Usage, incomplete
from mmcl.errors import UserError
from mmcl.files.digest import digest
from mmcl.files.root import data_root


class EmbeddingSource(Source):
    """Rows of embeddings that models have written, each in place of an image or a text.

    A table is a folder or a parquet file of `mmcl embed`, whose images and captions belong together by their numbers; or a
    parquet file of any origin, or a folder of such files, with lists of numbers in the columns that are named. The images may
    be of one model and the texts of another. The rows are copied once to files that are mapped into memory.

    Without a caption column, texts are told apart by their rows. Images without a text are bad samples in training.

    Args:
        path: the table of the images, and of their texts.
        root: copies of the rows are stored in its subfolder "index".
        texts: another table, whose texts are used; in folders of `mmcl embed`, of the same data.
        image_column, text_column: columns of embeddings.
        caption_column: the texts themselves; equal ones are positives of each other.
        label_column: classes of the images.
        group_column: what makes images dependent on each other, as in `TableSource`; a file of `mmcl embed` has its own.
        id_column: what images and texts belong to; default: those of the same row. Images with equal ids have the same texts.

    Raises:
        UserError: a table is damaged or incomplete, is of other data, or has rows of two widths or with numbers that are not
            finite; names the file and the row.
    """

    def __init__(
        self,
        path: str | None,
        root: str | None,
        *,
        texts: str | None = None,
        image_column: str | None = None,
        text_column: str | None = None,
        caption_column: str | None = None,
        label_column: str | None = None,
        group_column: str | None = None,
        id_column: str | None = None,
    ):
        cache = data_root(root) / "index"
        of_images = Columns(image=image_column, label=label_column, group=group_column, id=id_column)
        of_texts = Columns(text=text_column, caption=caption_column, id=id_column)
        whole = required_path(path, "embeddings")
        if texts is None:
            self._images = self._texts = open_embeddings(whole, of_images | of_texts, cache)
        else:
            self._images = open_embeddings(
                whole, of_images if image_column or label_column or group_column else Columns(), cache
            )
            others = required_path(os.path.expanduser(texts), "embeddings")
            self._texts = open_embeddings(others, of_texts if text_column or caption_column else Columns(), cache)
            _require_same_data(self._images, self._texts)
            _require_common_numbers(self._images, self._texts, columns=image_column or text_column, id_column=id_column)
        self._fingerprint = digest("embeddings", self._images.digest, self._texts.digest)
        self._image, self._text = _rows_of_images(self._images), self._texts.kinds.get("text")
        self._names = list(unique(self._image.names))
        self._start_N, self._stop_N, self._slot_T = _texts_of_images(self._images, self._texts)
        self.class_names, self._label_N = _classes(self._image, self._texts)
        if group_column is not None or any(group is not None for group in self._image.groups):
            where = f"{self._images.path}: {group_column or 'group'}"
            cells = enumerate(self._image.groups, 1)
            self.groups = np.array([group_of(cell, f"{where}, image {number}") for number, cell in cells], np.int64)

    def __len__(self) -> int:
        return len(self._image)

    def __getitem__(self, index: int) -> Sample:
        name = self._names[index]
        captions = (self._caption(slot) for slot in self._slot_T[self._start_N[index] : self._stop_N[index]].tolist())
        label = int(self._label_N[index])
        row = StoredRow(self._image.file, index, self._images.model)
        return Sample(name, None, tuple(captions), label=None if label < 0 else label, row=row)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def identity(self) -> str:
        """The fingerprint, which covers all rows."""
        return self._fingerprint

    @cached_property
    def labels(self) -> np.ndarray | None:
        return None if (self._label_N < 0).all() else self._label_N

    @property
    def usage(self) -> Sequence[Usage]:
        """Rows without an embedding."""
        tables = {one.path: one for one in (self._images, self._texts)}.values()
        return [Usage(unit="rows", used=sum(map(len, one.kinds.values())), unused=one.unused) for one in tables if one.unused]

    @property
    def notes(self) -> Sequence[str]:
        """Images without a text, where others have one."""
        return incomplete(len(self), "images", {"no text": int((self._start_N == self._stop_N).sum())}, 0)

    def _caption(self, slot: int) -> StoredText:
        assert self._text is not None
        return StoredText(self._text.names[slot], StoredRow(self._text.file, slot, self._texts.model))


def _require_same_data(images: EmbeddedTable, texts: EmbeddedTable) -> None:
    if images.data and texts.data and images.data != texts.data:
        raise UserError(f"{texts.path}: was made from other data than {images.path}; run `mmcl embed` on the same data")


def _require_common_numbers(images: EmbeddedTable, texts: EmbeddedTable, *, columns: str | None, id_column: str | None) -> None:
    """Raise UserError if two tables have no ids and cannot be joined by the order of their rows."""
    if id_column is not None and columns is None:
        raise UserError(f"id_column {id_column} is of a table with image_column or text_column; remove it")
    sizes = [len(table.kinds.get(kind, ())) for table, kind in ((images, "image"), (texts, "text"))]
    if columns is not None and id_column is None and all(sizes) and sizes[0] != sizes[1]:
        raise UserError(f"{images.path} has {sizes[0]:,} images and {texts.path} {sizes[1]:,} texts; give their id_column")


def _rows_of_images(table: EmbeddedTable) -> EmbeddedRows:
    if "image" not in table.kinds:
        raise UserError(f"{table.path}: has no embeddings of images; give a table that has, and this one as `texts`")
    return table.kinds["image"]


def _texts_of_images(images: EmbeddedTable, texts: EmbeddedTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joins images and texts: where the texts of each image start and stop, int64 [N], among the rows of texts, int64 [T].

    Raises:
        UserError: no image has a text.
    """
    image, text = images.kinds["image"], texts.kinds.get("text")
    if text is None:
        if texts is not images:
            raise UserError(f"{texts.path}: has no embeddings of texts; embed with a model that has a text tower")
        return np.zeros(len(image), np.int64), np.zeros(len(image), np.int64), np.arange(0)
    both = [_plain_keys(rows.keys) for rows in (image, text)]
    if both[0].type != both[1].type:
        raise UserError(
            f"{images.path} and {texts.path} number their rows differently ({both[0].type} and {both[1].type}); embed both "
            "into folders, or give id_column"
        )
    code = pa.concat_arrays(both).dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    code_N, code_T = code[: len(image)], code[len(image) :]
    slot_T = np.argsort(code_T, kind="stable")
    start_N, stop_N = (np.searchsorted(code_T[slot_T], code_N, side) for side in ("left", "right"))
    stop_N = np.where(code_N < 0, start_N, stop_N)
    if (start_N == stop_N).all():
        raise UserError(f"{texts.path}: no text belongs to an image of {images.path}; give tables with common ids, id_column")
    return start_N, stop_N, slot_T


def _plain_keys(keys: pa.ChunkedArray) -> pa.Array:
    array = keys.combine_chunks()
    if pa.types.is_integer(array.type):
        return array.cast(pa.int64())
    return array.cast(pa.string()) if pa.types.is_large_string(array.type) else array


def _classes(image: EmbeddedRows, texts: EmbeddedTable) -> tuple[Sequence[str] | None, np.ndarray]:
    """Names of the classes, with their rows if there are some, or None; and the class of each image, -1 for none: int64 [N]."""
    named = texts.kinds.get("class")
    if named is None:
        numbers, names = number_labels(image.labels)
        return names or None, np.array([-1 if number is None else number for number in numbers], np.int64)
    number_of = {name: number for number, name in enumerate(named.names)}
    rows = [StoredText(name, StoredRow(named.file, number, texts.model)) for name, number in number_of.items()]
    return rows, np.array([number_of.get(label, -1) for label in image.labels], np.int64)
