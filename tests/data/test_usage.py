"""Everything that a source does not use is counted once, by reason, and named."""

from __future__ import annotations

import json

import numpy as np

from mmcl.data.derived.mixture import Mixture
from mmcl.data.derived.subset import Subset
from mmcl.data.sample import Sample
from mmcl.data.source import SampleList
from mmcl.data.usage import Unused, Usage, count_unused


class Photos(SampleList):
    """Two samples, beside three files that cannot be used."""

    fingerprint = "photos"
    _samples = (Sample("a", None, ("one",)), Sample("b", None, ("two",)))

    @property
    def usage(self) -> list[Usage]:
        return [
            Usage(unit="files", used=2, unused=count_unused([(".md", "README.md"), *((".heic", f"{n}.heic") for n in "abcd")]))
        ]


def test_one_line_says_all() -> None:
    assert Usage(unit="files", used=1200, unused={}).to_text() == "1,200 of 1,200 files used"
    (usage,) = Photos().usage
    assert usage.to_text() == "2 of 7 files used; not used: 4 .heic (a.heic, b.heic, c.heic, ...), 1 .md (README.md)"
    assert usage.total == usage.used + 4 + 1
    without_names = Usage(unit="rows", used=1, unused={"without image": Unused(3)})
    assert without_names.to_text() == "1 of 4 rows used; not used: 3 without image"


def test_names_that_are_not_utf_8_can_be_written() -> None:
    usage = Usage(unit="files", used=0, unused=count_unused([(".heic", "caf\udce9.heic")]))
    assert "caf\\udce9.heic" in usage.to_text()
    json.dumps(usage.to_dict(), ensure_ascii=False).encode()


def test_unused_data_are_a_warning_of_the_source_its_parts_and_mixtures() -> None:
    line = Photos().usage[0].to_text()
    assert list(Photos().warnings) == [line]
    assert list(Subset(Photos(), np.array([1])).warnings) == [line]
    mixture = Mixture({"mine": Photos(), "others": Photos()})
    assert list(mixture.warnings) == [f"mine: {line}", f"others: {line}"]
    assert [usage.unit for usage in mixture.usage] == ["files of mine", "files of others"]
