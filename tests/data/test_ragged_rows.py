"""Rows of a table with too few or too many fields."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmcl.data.inspection import inspect_source
from mmcl.data.open import open_source
from mmcl.errors import UserError
from mmcl.evaluate.evaluators.sts import evaluate_sts
from mmcl.evaluate.task import CachedModel, Task
from mmcl.testing.patterns import PatternModel
from tests.data.test_tables import encoded_image, opened, write


class TestRaggedRows:
    """A row with too few or too many fields is a bad sample in its place, and costs no other; in most rows it is an error."""

    def test_a_separator_that_is_missing_in_one_row(self, tmp_path: Path) -> None:
        rows = [
            "1.png| 0| Two men .",
            "1.png| 4   A dog runs .",
            "2.png| 0| A cat .",
            "3.png| 0| A | in a text .",
            "1.png| 1| Men .",
        ]
        path = write(tmp_path / "results.csv", "\n".join(["image_name| comment_number| comment", *rows]))
        for name in "123":
            (tmp_path / f"{name}.png").write_bytes(encoded_image(int(name)))
        for source in (opened(path), open_source("auto", str(tmp_path))):
            found = inspect_source(source).findings
            good = [source[i] for i in range(len(source)) if source[i].problem is None]
            assert {sample.name[-5:]: sample.captions for sample in good if sample.captions} == {
                "1.png": ("Two men .", "Men ."),
                "2.png": ("A cat .",),
            }
            assert "row 2: has 2 fields, and the header 3; complete the row" in "\n".join(found)
            assert "row 4: has 4 fields, and the header 3; put a field that holds '|' in quotes" in "\n".join(found)
        assert opened(path).usage[1].to_text() == "3 of 5 rows used; not used: 2 broken (row 2, row 4)"

    @pytest.mark.parametrize("bad", [0, 1, 2, 3])
    @pytest.mark.parametrize(
        "line", ['{"text": ', "[1]", "<html>", '{"text": "\\ud83d"}', '{"\\u0000problem": "x"}', "9" * 5_000]
    )
    def test_lines_of_json_up_to_half_of_all(self, line: str, bad: int, tmp_path: Path) -> None:
        lines = ['{"text": "one"}', "", *[line] * bad, '{"text": "two", "n": 2}', ""]
        path = write(tmp_path / "a.jsonl", "\n".join(lines))
        if bad == 3:
            with pytest.raises(UserError, match=r"a\.jsonl, line 3 "):
                opened(path)
            return
        source = opened(path)
        assert [source[row].captions for row in range(len(source))] == [("one",), *[()] * bad, ("two",)]
        found = inspect_source(source).findings
        assert len(found) == bad
        assert all(f"a.jsonl, row {row}: line {row + 1} " in text for row, text in enumerate(found, 2))

    @pytest.mark.parametrize("suffix", ["csv", "jsonl"])
    def test_a_score_beside_a_broken_row(self, suffix: str, tmp_path: Path) -> None:
        rows = {
            "csv": "caption,positive,score\na,b,1\na,b\nc,d,3.5\n",
            "jsonl": '{"caption": "a", "positive": "b", "score": 1}\n{"cap\n{"caption": "c", "positive": "d", "score": 3.5}',
        }
        source = opened(write(tmp_path / f"a.{suffix}", rows[suffix]))
        np.testing.assert_array_equal(source.scores, [1, np.nan, 3.5])
        assert len(inspect_source(source).findings) == 1
        with pytest.raises(UserError, match=rf"a\.{suffix}, row 2: (line 2 is not JSON|has 2 fields)"):
            evaluate_sts(CachedModel(PatternModel()), Task("pairs", source))

    @pytest.mark.parametrize("line", [1, 2, 5, 6])
    def test_a_bad_byte_is_one_error_and_nothing_else(self, line: int, tmp_path: Path, capfd: Any) -> None:
        rows = [b"image,caption", b"a.png,one", b"b.png,two,more", b"c.png,three", b"d.png,four,more", b"e.png,five"]
        rows[line - 1] += b"\xff,x"
        (tmp_path / "a.csv").write_bytes(b"\n".join(rows))
        with pytest.raises(UserError, match=rf"a\.csv, line {line}: is not UTF-8"):
            opened(tmp_path / "a.csv")
        gc.collect()
        assert "".join(capfd.readouterr()) == ""

    def test_with_any_number_of_threads(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "caption,label\none,a\ntwo\nthree,c\nfour,d,e\n")
        threads, found = pa.cpu_count(), []
        for number in (1, 4):
            pa.set_cpu_count(number)
            found.append(inspect_source(open_source("table", str(path), str(tmp_path))).findings)
        pa.set_cpu_count(threads)
        assert found[0] == found[1]
        assert [("row 2" in line, "row 4" in line) for line in found[0]] == [(True, False), (False, True)]

    def test_in_a_file_of_several_blocks(self, tmp_path: Path) -> None:
        text, bad = "x" * 2000, {0, 1, 7_000, 8_387, 8_388, 8_389, 20_000, 20_001, 24_999}
        lines = [f"{row}.png,{text}" + ",y" * (row in bad) for row in range(25_000)]
        source = opened(write(tmp_path / "a.csv", "image,caption\n" + "\n".join(lines)))
        for row in {*bad, 2, 8_386, 8_390, 19_999, 20_002, 24_998}:
            sample = source[row]
            assert (sample.problem is not None) == (row in bad)
            assert sample.name.endswith(f"row {row + 1}" if row in bad else f"{row}.png")

    @pytest.mark.parametrize("bad", [0, 1, 2, 3])
    def test_up_to_half_of_all(self, bad: int, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "caption,x\n" + "a\n" * bad + "a,b\n" * (4 - bad))
        if bad > 2:
            with pytest.raises(UserError, match="line 2: has 1 field"):
                opened(path)
        else:
            assert [opened(path)[row].problem is not None for row in range(4)] == [row < bad for row in range(4)]
