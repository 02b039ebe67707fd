"""Cells of tables that are easily misread silently: labels, lists, quotes after backslashes, pointers instead of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmcl.data.images.decode import decode
from mmcl.data.open import open_source
from mmcl.errors import UserError
from tests.data.folders import classes
from tests.data.tars import picture, write_tar
from tests.data.test_tables import opened, samples, write
from tests.narrow import present


class TestSecondLabels:
    """An image with two labels keeps the first and reports the other."""

    ROWS = (("a.png", ""), ("b.png", "dog"), ("a.png", "cat"), ("b.png", "cat"), ("a.png", "cat"))

    def test_in_a_table(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "image,label\n" + "".join(f"{image},{label}\n" for image, label in self.ROWS))
        for name in ("a.png", "b.png"):
            (tmp_path / name).write_bytes(picture())
        source = opened(path)
        assert classes(source) == ["cat", "dog"]
        assert present(source.labels).tolist() == [0, 1]
        assert source.usage[1].to_text() == "4 of 5 rows used; not used: 1 with a second label of their image (row 4)"

    def test_in_a_folder(self, tmp_path: Path) -> None:
        lines = "".join(f"{image},{label}\n" for image, label in self.ROWS)
        write(tmp_path / "captions.csv", f"image,label\n{lines}")
        for name in ("a.png", "b.png"):
            (tmp_path / name).write_bytes(picture())
        source = open_source("auto", str(tmp_path))
        assert present(source.labels).tolist() == [0, 1]
        assert list(source.warnings) == ["a second label of an image is not used: 1 row of captions.csv (row 4)"]


def test_an_empty_list_in_a_csv_is_not_a_caption(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "image,captions\na.png,[]\nb.png,\"['one']\"\nc.png,[x]\n")
    source = opened(path)
    assert [source[i].captions for i in range(3)] == [(), ("one",), ("[x]",)]
    assert "1 without caption (row 1)" in source.usage[1].to_text()


@pytest.mark.parametrize("field", [r'"a \"b\" c"', r'"\"b\" c"', r'"a 5\" nail"'])
def test_quotes_behind_backslashes_garble_no_caption(field: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.csv, line 3: a quote within a field is written .*; write it twice"):
        opened(write(tmp_path / "a.csv", f"image,caption\na.png,one\nb.png,{field}\n"))


def test_backslashes_at_the_end_of_a_field_are_its_own(tmp_path: Path) -> None:
    lines = 'image,caption\n"x\\","one\\"\n"y\\z","a ""b\\"" c"\n'
    assert samples(opened(write(tmp_path / "a.csv", lines))) == [("x\\", ("one\\",)), ("y\\z", ('a "b\\" c',))]


def test_pointers_of_git_lfs_say_what_to_fetch(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
    for name in ("a.csv", "a.parquet", "a.jsonl"):
        with pytest.raises(UserError, match=rf"{name}: is a pointer of Git LFS; fetch the file by `git lfs pull`"):
            opened(write(tmp_path / name, pointer))
    with pytest.raises(UserError, match=r"a\.jpg: is a pointer of Git LFS"):
        decode(write(tmp_path / "a.jpg", pointer))


@pytest.mark.parametrize("key", ["TEXT", "Caption", "caption"])
def test_fields_of_records_are_found_in_any_case(key: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": picture(), "a.json": f'{{"url": "u", "{key}": "one"}}'.encode()})
    assert open_source("auto", str(path), str(tmp_path / "root"))[0].captions == ("one",)
