"""Any dataset of `torchvision.datasets`, from a copy below the data root or, without one, by download."""

from __future__ import annotations

import inspect
import posixpath
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmcl.data.sample import Sample
from mmcl.data.source import Source, label_array, refuse_path
from mmcl.errors import UserError, first_line, unknown_name
from mmcl.files.digest import digest
from mmcl.files.root import data_root

_COPIES = {
    "CIFAR10": r"cifar-10-batches-py/(?:data_batch_\d|test_batch|batches\.meta)",
    "CIFAR100": r"cifar-100-python/(?:train|test|meta)",
    "STL10": r"stl10_binary/\w+\.bin",
    "SVHN": r"(?:train|test|extra)_32x32\.mat",
    **{name: rf"{name}/raw/[\w-]+-ubyte(?:\.gz)?" for name in ("MNIST", "FashionMNIST", "KMNIST", "QMNIST", "EMNIST")},
}
"""Datasets with characteristic files, and the end of such a file's path below the folder passed to torchvision."""
_VERIFY = 'mmcl data verify torchvision --args "{{dataset: {}}}"'
_IDX = re.compile(r"(?:.*/)?(?:train|t10k)-(?:images|labels)[-.]idx\d-ubyte(?:\.gz)?")


class TorchvisionSource(Source):
    """Images with the class labels or captions of the dataset.

    Args:
        root: the data root; a copy is searched in it, and in the subfolder with the dataset's name in lower case.
        dataset: name of the class, e.g. "MNIST", "CIFAR10", "CocoCaptions".
        train: training or test split, for datasets with this argument.
        split: split, for datasets with this argument instead.
        rows: only these rows, as "start:stop" like a Python slice, e.g. "0:8000" or "-2000:".
        args: further arguments of the class, e.g. {"annFile": "captions.json"}.

    Raises:
        UserError: the dataset or an argument does not exist, or there is no copy and the download is not possible.
    """

    def __init__(
        self,
        path: str | None,
        root: str | None,
        *,
        dataset: str,
        train: bool | None = None,
        split: str | None = None,
        rows: str | None = None,
        args: dict[str, Any] | None = None,
    ):
        refuse_path(path, "torchvision")
        factory = _factory(dataset)
        given = {key: value for key, value in {"train": train, "split": split}.items() if value is not None} | (args or {})
        accepted = inspect.signature(factory).parameters
        for key in given:
            if key not in accepted:
                raise unknown_name(f"argument of torchvision.datasets.{dataset}:", key, accepted)
        self._dataset = _find_or_download(factory, dataset, data_root(root), given)
        self._rows = range(len(self._dataset))[_slice(rows)]
        if not self._rows:
            raise UserError(f"{dataset}: rows {rows!r} leaves none of {len(self._dataset)}")
        self._images, self._targets = _arrays(self._dataset)
        classes = getattr(self._dataset, "classes", None)
        self.class_names = [str(name) for name in classes] if classes is not None else None
        self._what = (dataset, sorted(given.items()), rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        name = f"{self._what[0]}, row {row}"
        if self._images is not None and self._targets is not None:
            return Sample(name, self._images[row], label=_label(self._targets[row]))
        try:
            image, target = self._dataset[row]
        except Exception as error:  # It reads files itself, and may raise anything for a damaged one.
            return Sample(name, None, problem=f"cannot be read: {first_line(error)}")
        texts = [target] if isinstance(target, str) else target if isinstance(target, list) else []
        return Sample(name, image, tuple(text for text in texts if isinstance(text, str)), _label(target))

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Labels from the list that most labeled datasets hold in memory, else by reading every sample."""
        first = next((sample for sample in map(self.__getitem__, range(len(self))) if sample.problem is None), None)
        if first is None or first.label is None:
            return None
        for name in ("targets", "labels", "_labels"):
            targets = getattr(self._dataset, name, None)
            if targets is not None and len(targets) == len(self._dataset):
                return label_array(_label(targets[row]) for row in self._rows)
        return label_array(self[index].label for index in range(len(self)))

    @property
    def fingerprint(self) -> str:
        """Digest of pixels and labels if they are in memory, else of the dataset's name, arguments and size."""
        if self._images is None:
            return digest(self._what, len(self))
        rows = slice(self._rows.start, self._rows.stop)
        return digest(self._what, self._images[rows].tobytes(), (self._targets or [])[rows])


def known_copy(files: Iterable[str]) -> str | None:
    """Returns how to read a copy of a torchvision dataset, recognized by its file paths; None if it is not one."""
    for file in map(posixpath.normpath, files):
        for name, end in _COPIES.items():
            if match := re.fullmatch(rf"(?:(.*)/)?{end}", file):
                root = match[1] or ("/" if file.startswith("/") else ".")
                return f"is {name}, which the source torchvision reads: {_VERIFY.format(name)} --root {root}"
        if _IDX.fullmatch(file):
            one = (
                "is MNIST, or FashionMNIST or KMNIST, which the source torchvision reads from a folder MNIST/raw: move it there"
            )
            return f"{one}, and give the folder around it: {_VERIFY.format('MNIST')} --root ..."
    return None


def _label(target: Any) -> int | None:
    """Returns the target as a class index if it is one, possibly a tensor of one element; else None."""
    if isinstance(target, torch.Tensor) and target.ndim == 0:
        target = target.item()
    return int(target) if isinstance(target, int | np.integer) else None


def _factory(dataset: str) -> Any:
    from torchvision import datasets

    names = [name for name in datasets.__all__ if inspect.isclass(getattr(datasets, name))]
    if dataset not in names:
        raise unknown_name("torchvision dataset", dataset, names)
    return getattr(datasets, dataset)


def _find_or_download(factory: Any, name: str, root: Path, args: dict[str, Any]) -> Any:
    accepted = inspect.signature(factory).parameters
    for folder, download in ((root, False), (root / name.lower(), False), (root, True)):
        place = {"root": str(folder), "download": download}
        try:
            return factory(**{key: value for key, value in place.items() if key in accepted} | args)
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: {first_line(error)}") from error
        except (RuntimeError, OSError) as error:  # torchvision raises these for a folder without the dataset.
            reason = first_line(error)
    raise UserError(
        f"{name}: no copy below the data root {root}, and no download: {reason.rstrip(': ')}; put a copy there, or name "
        "its folder by --data.root or MMCL_DATA_ROOT; the configurations of emoji and digits need no download"
    )


def _arrays(dataset: Any) -> tuple[np.ndarray | None, list[int] | None]:
    """Returns images, uint8 [N, H, W] or [N, H, W, C], and labels, for datasets that hold them in memory in this form."""
    images, targets = getattr(dataset, "data", None), getattr(dataset, "targets", None)
    if images is None or targets is None or not hasattr(images, "shape"):
        return None, None
    images = np.asarray(images)
    image, target = dataset[0]
    if not np.array_equal(images[0], np.asarray(image)) or target != targets[0]:
        return None, None
    return images, np.asarray(targets).tolist()


def _slice(rows: str | None) -> slice:
    if rows is None:
        return slice(None)
    try:
        start, stop = (int(part) if part.strip() else None for part in rows.split(":"))
    except (ValueError, AttributeError):
        raise UserError(f'rows is {rows!r}; give "start:stop", e.g. "0:8000"') from None
    return slice(start, stop)
