"""Datasets of the Hugging Face `datasets` library: saved to disk, in Arrow or parquet files, or by name from the hub."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmcl.data.sources.tables.arrow_source import ArrowSource
from mmcl.data.sources.tables.arrow_types import plain_table
from mmcl.data.sources.tables.column_names import Columns, find_columns, find_targets
from mmcl.data.sources.tables.image_urls import LOOKED_AT, find_url_column
from mmcl.data.sources.tables.table_file import LARGE
from mmcl.data.sources.tables.table_rows import sample_rows
from mmcl.data.usage import Usage, count_unused
from mmcl.errors import UserError, first_line, unknown_name
from mmcl.files.digest import digest
from mmcl.files.disk_cache import cached_array
from mmcl.files.listing import list_files, reason_unused, suffix_of
from mmcl.files.parquet import check_unpacked
from mmcl.files.root import data_root

_PIECE = 10_000
_SUFFIXES = (".parquet", ".arrow", ".json")
"""Suffixes of the files that the library reads or writes in a dataset folder."""


class HuggingFaceSource(ArrowSource):
    """Rows of a memory-mapped `datasets.Dataset`. Images are decoded by mmcl, with its limits, not by the library.

    Args:
        path: a folder written by `save_to_disk`, a folder of parquet or Arrow files, or the name of a dataset on the hub.
        split: split to use, if the dataset has several.
        subset: configuration of a hub dataset, if it has several.
        revision: commit, tag or branch on the hub; pin it for a reproducible run.
        image_column, caption_column, label_column, positive_column, negative_column: as in `TableSource`.
        score_column, group_column, target_columns: as in `TableSource`.
        image_root: folder that image paths are relative to; default: `path`, if it is a folder.

    Raises:
        UserError: the dataset cannot be loaded, or the split or a column is missing.
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
        group_column: str | None = None,
        target_columns: Sequence[str] = (),
        image_root: str | None = None,
    ):
        if path is None:
            raise UserError("data source 'huggingface' needs a path: set `path` to a folder or to a name on the hub")
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
            "group": group_column,
        }
        folder = image_root or (path if Path(path).is_dir() else None)
        columns = find_columns(dataset.column_names, given, path)
        columns = replace(columns, targets=find_targets(dataset.column_names, target_columns, path))
        self._open(dataset, columns, path, Path(folder) if folder else None, data_root(root) / "index")

    def _open(self, dataset: Any, columns: Columns, path: str, folder: Path | None, cache: Path) -> None:
        from datasets import ClassLabel

        self._state = dataset, columns, path, folder, cache
        chosen = dataset.select_columns(columns.names)
        table = plain_table(chosen.data.table)
        kept = cache / f"rows-{digest(dataset._fingerprint, columns)[:16]}.npy"
        many = chosen.data.nbytes >= LARGE
        rows = cached_array(kept, lambda: sample_rows(table, columns)) if many else sample_rows(table, columns)
        label = dataset.features[columns.label] if columns.label else None
        urls = find_url_column(dataset.column_names, lambda name: dataset.select_columns([name])[:LOOKED_AT][name])
        names = label.names if isinstance(label, ClassLabel) else None
        super().__init__(
            table,
            columns,
            rows,
            name=path,
            image_root=folder,
            class_names=names,
            all_columns=dataset.column_names,
            url_column=urls,
        )

    def __getstate__(self) -> Any:
        """Pickles the library's dataset object, which refers to its files instead of copying them."""
        return self._state

    def __setstate__(self, state: Any) -> None:
        self._open(*state)

    @property
    def usage(self) -> Sequence[Usage]:
        """Usage of rows, and of the files in the folder; the library does not report which files belong to a split."""
        folder = Path(self._state[2])
        if not folder.is_dir():
            return super().usage
        names = list_files(folder).names
        unused = count_unused((reason_unused(name), name) for name in names if suffix_of(name) not in _SUFFIXES)
        return [
            Usage(unit="files", used=len(names) - sum(each.count for each in unused.values()), unused=unused),
            *super().usage,
        ]

    @property
    def fingerprint(self) -> str:
        """Digest of texts, labels, groups, targets and the number of rows; does not read the images in the library's files."""
        parts: list[object] = [len(self), None if self._labels is None else self._labels.tolist()]
        for column in itertools.chain.from_iterable(self._texts.values()):
            parts += (digest(column.slice(start, _PIECE).to_pylist()) for start in range(0, len(column), _PIECE))
        groups = () if self.groups is None else ("groups", self.groups.tobytes())
        targets = () if self.targets is None else ("targets", *self.target_names, self.targets.tobytes())
        return digest(*parts, *groups, *targets)


def _load(path: str, cache: str, split: str, subset: str | None, revision: str | None) -> Any:
    import datasets

    folder = Path(path)
    try:
        if not is_saved_to_disk(folder):
            for file in folder.rglob("*.parquet"):  # the library reads each file completely
                check_unpacked(file)
            return datasets.load_dataset(path, subset, split=split, revision=revision, cache_dir=cache)
        loaded = datasets.load_from_disk(path)
    except UserError:
        raise
    except Exception as error:  # The library and the network raise many types.
        raise UserError(f"{path}: cannot be loaded as a Hugging Face dataset: {first_line(error)}") from error
    if isinstance(loaded, datasets.Dataset):
        asked = split.partition("[")[0]  # The default selects the only split, whatever its name.
        loaded = {asked if asked == "train" or loaded.split is None else str(loaded.split): loaded}
    return _part(loaded, split, path)


def _part(parts: Mapping[str, Any], split: str, path: str) -> Any:
    """Selects rows by a split in the library's syntax, such as "train[:10%]" or "train+test"."""
    import datasets

    try:
        chosen = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(part) for name, part in parts.items()})
    except (ValueError, AssertionError):
        raise unknown_name("split", split, parts, where=path) from None
    return datasets.concatenate_datasets([parts[rows.splitname].select(range(rows.from_, rows.to)) for rows in chosen])


def is_saved_to_disk(folder: Path) -> bool:
    """True if `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
