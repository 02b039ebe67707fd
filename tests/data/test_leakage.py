"""Images in both training and evaluation data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mmcl.data.leakage import shared_images
from mmcl.data.open import open_source
from mmcl.data.sample import Sample
from mmcl.data.source import SampleList
from mmcl.testing.patterns import pattern


class Arrays(SampleList):
    def __init__(self, numbers: list[int]):
        self._samples = [Sample(str(number), pattern(number)) for number in numbers]

    @property
    def fingerprint(self) -> str:
        return ""


def test_equal_bytes_are_found_under_any_name(tmp_path: Path) -> None:
    for name, numbers in (("train", range(6)), ("test", range(4, 9))):
        for number in numbers:
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pattern(number)).save(tmp_path / name / f"{name}{number}.png")
    (tmp_path / "test" / "gone.png").symlink_to(tmp_path / "nothing.png")
    train, test = (open_source("folder", str(tmp_path / name)) for name in ("train", "test"))
    rows = shared_images(test, train)
    assert [Path(test[row].name).name for row in rows] == ["test4.png", "test5.png"]
    assert shared_images(train, test) == [4, 5]


def test_pixels_in_memory_are_compared() -> None:
    assert shared_images(Arrays([1, 2, 3, 2]), Arrays([2, 5])) == [1, 3]
    assert shared_images(Arrays([1]), Arrays([])) == []
    assert np.array_equal(pattern(1), pattern(1))
