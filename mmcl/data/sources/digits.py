"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, available offline."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mmcl.data.sample import Sample
from mmcl.data.source import Source, refuse_path
from mmcl.errors import unknown_name
from mmcl.files.digest import digest
from mmcl.rng import permutation

_FOLDS = ("train", "test", "all")


class DigitsSource(Source):
    """The digits with their labels, white on black.

    Args:
        fold: "test" is a fixed random quarter of every class; "train" the rest.
    """

    templates = ('a photo of the number: "{}".',)

    def __init__(self, path: str | None, root: str | None, *, fold: Literal["train", "test", "all"] = "train"):
        refuse_path(path, "digits")
        if fold not in _FOLDS:
            raise unknown_name("fold", str(fold), _FOLDS, where="digits")
        from sklearn.datasets import load_digits

        digits = load_digits()
        self._rows = _fold(digits.target, fold)
        self._images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        self._labels = digits.target
        self.class_names = [str(name) for name in digits.target_names]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        return Sample(f"digits, row {row}", self._images[row], label=int(self._labels[row]))

    @property
    def fingerprint(self) -> str:
        return digest(self._rows.tolist(), self._images.tobytes(), self._labels.tolist())


def _fold(labels: np.ndarray, fold: str) -> np.ndarray:
    """Rows of a stratified split, in ascending order."""
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        test[rows[permutation(len(rows), int(label))][: len(rows) // 4]] = True
    return np.flatnonzero({"train": ~test, "test": test, "all": np.full_like(test, True)}[fold])
