"""Each check of a source detects a violation; `tests/data/test_sources.py` runs the checks over the registry."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from mmcl.data.sample import Sample
from mmcl.data.source import SampleList
from mmcl.files.digest import digest
from mmcl.testing import check_source


class Grays(SampleList):
    """Gray images in two classes; keeps all rules, but for the changes."""

    class_names = ("dark", "light")

    def __init__(self, **changes: Any):
        self._samples = [self._sample(number, changes) for number in range(4)]
        for name in ("ids", "templates", "labels"):
            if name in changes:
                setattr(self, name, changes[name])

    def _sample(self, number: int, changes: dict[str, Any]) -> Sample:
        image = np.full((4, 4, 3), 60 * number, np.uint8)
        facts = {"name": f"gray {number}", "image": image, "captions": ("gray",), "label": number // 2}
        return Sample(**{**facts, **{key: value for key, value in changes.items() if key in facts}})

    @property
    def fingerprint(self) -> str:
        return digest("grays", len(self))


def test_one_that_keeps_all_rules_passes() -> None:
    check_source(Grays)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "one"}, "two samples have one name"),
        ({"name": ""}, "give a Sample with a name"),
        ({"image": None, "captions": ()}, "neither an image nor a caption"),
        ({"captions": (1,)}, "a text is not a str"),
        ({"label": 2}, "the label 2 is not an int from 0 to below 2"),
        ({"label": np.int64(1)}, "is not an int"),
        ({"labels": np.zeros(4, np.int64)}, "labels are not those of the samples"),
        ({"labels": None}, "labels is None, and samples have labels"),
        ({"ids": np.zeros(3, np.int64)}, "ids are not int64, one for each sample"),
        ({"templates": ("a photo",)}, "each has one {}"),
    ],
)
def test_one_that_breaks_a_rule_is_found(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_source(lambda: Grays(**changes))


def test_a_wrong_fingerprint_and_a_missing_end_are_found() -> None:
    numbers = itertools.count()

    class Unstable(Grays):
        def __init__(self) -> None:
            super().__init__()
            self.number = next(numbers)

        @property
        def fingerprint(self) -> str:
            return str(self.number)

    class Endless(Grays):
        def __getitem__(self, index: int) -> Sample:
            return super().__getitem__(index % 4)

    with pytest.raises(AssertionError, match="fingerprint changes"):
        check_source(Unstable)
    with pytest.raises(AssertionError, match="no IndexError"):
        check_source(Endless)
