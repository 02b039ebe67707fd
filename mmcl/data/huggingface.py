"""Data sets of the Hugging Face `datasets` library: saved to disk, in Arrow or parquet files, or by name from the hub."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmcl.data.columns import captions_of, find_columns, image_of, number_labels, scores_of
from mmcl.data.root import data_root
from mmcl.data.source import Sample, Source, digest, label_array
from mmcl.errors import UserError, first_line, unknown_name


class HuggingFaceSource(Source):
    """Rows of a memory-mapped `datasets.Dataset`. Images are decoded by mmcl, within its bounds, not by the library.

    Args:
        path: a folder written by `save_to_disk`, a folder of parquet or Arrow files, or the name of a data set on the hub.
        split: which part, of data sets that have several.
        subset: the configuration, of hub data sets that have several.
        revision: commit, tag or branch on the hub; pin it for a reproducible run.
        image_column, caption_column, label_column, positive_column, negative_column, score_column: as in `TableSource`.

    Raises:
        UserError: the data set cannot be loaded, has no such split, or lacks a column.
    """

    def __init__(
        self,
        path: str | None,
        root: str | None,
        *,
        split: str = "train",
        subset: str | None = None,
        revision: str | None = None,
        image_column: str | None = None,
        caption_column: str | None = None,
        label_column: str | None = None,
        positive_column: str | None = None,
        negative_column: str | None = None,
        score_column: str | None = None,
    ):
        if path is None:
            raise UserError("data source 'huggingface' needs a path: set `path` to a folder or to a name on the hub")
        import datasets

        dataset = _load(path, str(data_root(root) / "huggingface"), split, subset, revision)
        if len(dataset) == 0:
            raise UserError(f"{path}: has no rows")
        given = {
            "image": image_column,
            "caption": caption_column,
            "label": label_column,
            "positive": positive_column,
            "negative": negative_column,
            "score": score_column,
        }
        columns = find_columns(dataset.column_names, given, path)
        self._image, self._texts = columns.image, columns.texts
        if self._image and isinstance(dataset.features[self._image], datasets.Image):
            dataset = dataset.cast_column(self._image, datasets.Image(decode=False))
        if columns.score:
            self.scores = scores_of(dataset[columns.score][:], f"{path}: {columns.score}")
        self._labels: list[int | None] | None = None
        if columns.label:
            feature = dataset.features[columns.label]
            values = dataset[columns.label][:]
            if isinstance(feature, datasets.ClassLabel):
                self._labels, self.class_names = [None if v in (None, -1) else v for v in values], list(feature.names)
            else:
                self._labels, self.class_names = number_labels(values)
        self._path = path
        self._dataset = dataset.select_columns([*([self._image] if self._image else []), *self._texts.values()])

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        row = self._dataset[int(index)]
        texts: dict[str, Any] = {field: captions_of(row[column]) for field, column in self._texts.items()}
        return Sample(
            name=f"{self._path}, row {index + 1}",
            image=image_of(row[self._image]) if self._image else None,
            label=self._labels[index] if self._labels else None,
            **texts,
        )

    @cached_property
    def labels(self) -> np.ndarray | None:
        return label_array(self._labels) if self._labels else None

    @property
    def fingerprint(self) -> str:
        """Of texts, labels and the number of rows; pictures in the library's files are not read for it."""
        parts: list[object] = [len(self), self._labels]
        for column in self._texts.values():
            parts += (digest(batch[column]) for batch in self._dataset.select_columns(column).iter(10_000))
        return digest(*parts)


def _load(path: str, cache: str, split: str, subset: str | None, revision: str | None) -> Any:
    import datasets

    folder = Path(path)
    try:
        if not is_saved_to_disk(folder):
            return datasets.load_dataset(path, subset, split=split, revision=revision, cache_dir=cache)
        loaded = datasets.load_from_disk(path)
    except Exception as error:  # The library, and the network under it, raise many kinds.
        raise UserError(f"{path}: cannot be loaded as a Hugging Face data set: {first_line(error)}") from error
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if split not in loaded:
        raise unknown_name("split", split, loaded, where=path)
    return loaded[split]


def is_saved_to_disk(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
