"""Tables in all common forms: no row is lost or misread silently."""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmcl.data.inspection import inspect_source
from mmcl.data.open import guess_source, open_source
from mmcl.data.source import Source
from mmcl.data.sources.tables import csv_table
from mmcl.data.sources.tables.source import TableSource
from mmcl.data.sources.tables.table_file import read_table, without_problems
from mmcl.errors import UserError
from tests.narrow import present

PAIRS = [("a.png", ("one", "two")), ("b.png", ("three", "four"))]
"""What every spelling of this table has to give."""


def samples(source: Source) -> list[tuple[Any, ...]]:
    return [(Path(str(s.image)).name, s.captions) for s in map(source.__getitem__, range(len(source)))]


def opened(path: Path, **args: Any) -> TableSource:
    return TableSource(str(path), str(path.parent / "root"), **args)


def write(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


IMAGES, CAPTIONS = ["a.png", "a.png", "b.png", "b.png"], ["one", "two", "three", "four"]


def encoded_image(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 9), np.uint8)).save(file, "png")
    return file.getvalue()


class TestQuotes:
    """A quote that opens and never closes takes every row behind it."""

    @pytest.mark.parametrize("suffix", ["csv", "tsv"])
    @pytest.mark.parametrize("rows_behind", [1, 60_000])
    def test_never_closed(self, suffix: str, rows_behind: int, tmp_path: Path) -> None:
        separator = {"csv": ",", "tsv": "\t"}[suffix]
        lines = [f"{row}.png{separator}a caption of row {row}" for row in range(30 + rows_behind)]
        lines[20] = f'20.png{separator}"a caption'
        path = write(tmp_path / f"a.{suffix}", "\n".join([f"image{separator}caption", *lines]))
        with pytest.raises(UserError, match=r"line 22: a quote \(\"\) opens a field here and never closes"):
            opened(path)

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ('a,"one\nb,"two\nc,three\n', "line 2: .* only closes on line 3, within a field"),
            ('a,one\n\n"b,two\nc,three\n', "line 4: .* never closes"),
            ('a,"one ""two""\nb,"""\nc,"x\n', "line 4: .* never closes"),
            ('a,"one\rb,"two\rc,three\r', "line 2: .* only closes on line 3"),
            ('a,"""\nb,c\n', "line 2: .* never closes"),
        ],
    )
    def test_closed_in_another_row(self, rows: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=message):
            opened(write(tmp_path / "a.csv", "image,caption\n" + rows))

    @pytest.mark.parametrize(
        ("cell", "text"),
        [
            ('"one, ""two"", and\nthree"', 'one, "two", and\nthree'),
            ('5" nails', '5" nails'),
            ('a "quoted" word', 'a "quoted" word'),
            ('a 5" and a 6"', 'a 5" and a 6"'),
            ('"Stop" he said', "Stop he said"),
            ('"a ""b"" c" d', 'a "b" c d'),
            ('""""', '"'),
            ("'it's", "'it's"),
        ],
    )
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_quotes_that_hide_nothing(self, cell: str, text: str, end: str, tmp_path: Path) -> None:
        content = end.join(["image,caption", f"a,{cell}", "b,x", f"c,{cell}"])
        assert samples(opened(write(tmp_path / "a.csv", content))) == [("a", (text,)), ("b", ("x",)), ("c", (text,))]

    def test_as_the_standard_library_reads_it(self, tmp_path: Path) -> None:
        """Of random files: the same rows, those of another length as bad ones in their places, or an error where a quoted field
        is not closed before a separator or a line's end."""
        generator = np.random.default_rng(0)
        read = refused = ragged = 0
        for number in range(400):
            rows = ["".join(generator.choice(list('abcd "",\n'), generator.integers(1, 7))) for _ in range(3)]
            content = "image,caption\n" + "\n".join(f"{row}.png,{text}" for row, text in enumerate(rows)) + "\n"
            try:
                expected = [row for row in csv.reader(io.StringIO(content), strict=True) if row][1:]
            except csv.Error:
                expected = None
            path = write(tmp_path / f"{number}.csv", content)
            try:
                table, problems = without_problems(read_table(path))
                found = [list(row.values()) for row in table.to_pylist()]
            except UserError as error:
                refused += 1
                assert ", line " in str(error)  # noqa: PT017
                assert expected is None or 2 * sum(len(row) != 2 for row in expected) > len(expected)
            else:
                read += 1
                ragged += bool(problems)
                if expected is not None:
                    assert found == [row if len(row) == 2 else [None, None] for row in expected]
                    assert [*problems] == [number for number, row in enumerate(expected) if len(row) != 2]
                if not problems:
                    assert sum(f"{row}.png" in cell for cells in found for cell in cells for row in range(3)) == 3
        assert min(read, ragged) > 30
        assert refused > 50


class TestRows:
    """Every row is a sample, or an error names its line."""

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.csv", "image,caption\na\nb\n", "line 2: has 1 field, and the header 2; complete the row"),
            ("a.csv", 'image,caption\n"a\nb",x\nc,x,y\nd,x,y\n', "line 4: has 3 fields"),
            ("a.csv", "\n\nimage,caption\r\n\r\na,x,\r\nb,x,\r\n", "line 5: has 3 fields"),
            ("a.csv", "image,caption\n" + "a,b\n" * 50_000 + "a,b,c\n" * 50_001, "line 50002: has 3 fields"),
            ("a.csv", "image,caption\n  \nb", "line 2: has 1 field"),
            ("a.tsv", "image\tcaption\na\tx\ty\nb\tx\ty\n", "line 2: has 3 fields"),
            ("a.csv", "image,caption\na,b\nc,d\0e\n", "line 3: holds NUL characters"),
            ("a.txt", "one\ntwo\0\n", "line 2: holds NUL characters"),
            ("a.jsonl", '{"text": "one"}\n\0\n', "line 2: holds NUL characters"),
            (
                "a.jsonl",
                '{"text": "a"}\n\n' + '{"text": "b", "text": "c"}\n' * 2,
                "line 3 is not JSON: the key 'text' occurs twice",
            ),
            ("a.jsonl", '{"text": "a"}\n' + '{"text": "b"} {"text": "c"}\n' * 2, "line 2 is not JSON: Extra data"),
            ("a.jsonl", '{"text": "a"}\n[1]\n{"text": "b"', "line 2 must be an object"),
        ],
    )
    def test_the_line_is_named(self, name: str, content: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=message):
            opened(write(tmp_path / name, content))

    def test_a_row_of_many_megabytes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A quarter of the limit, which is still more than Arrow's own blocks."""
        monkeypatch.setattr(csv_table, "LONGEST_ROW", 2**22)
        long = "x " * 2**20
        source = opened(write(tmp_path / "a.csv", f"image,caption\na,b\nc,{long}\nd,e\n"))
        assert [len(captions[0]) for _, captions in samples(source)] == [1, len(long), 1]
        with pytest.raises(UserError, match=r"line 3: the row has \d+ bytes, more than the limit of 4194304"):
            opened(write(tmp_path / "b.csv", f"image,caption\na,b\nc,{long * 5}\nd,e\n"))

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    @pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
    def test_line_ends_blank_lines_and_byte_order_marks(self, suffix: str, mark: str, end: str, tmp_path: Path) -> None:
        texts = ["one", "two\u2028three\x85", "four"]  # Line breaks of Unicode end no row.
        lines = {
            "csv": ["caption", *texts],
            "jsonl": [json.dumps({"caption": text}, ensure_ascii=False) for text in texts],
            "txt": texts,
        }[suffix]
        path = write(tmp_path / f"a.{suffix}", mark + (end + end).join(lines))
        assert [captions for _, captions in samples(opened(path))] == [(text,) for text in texts]


class TestEncodings:
    @pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "ndjson", "txt"])
    @pytest.mark.parametrize("encoding", ["gbk", "utf-16-le", "utf-16-be", "utf-32-le", "shift_jis", "cp1252"])
    def test_given(self, suffix: str, encoding: str, tmp_path: Path) -> None:
        text = {"cp1252": "caf\xe9 \x85", "shift_jis": "\u30c6\u30b9\u30c8"}.get(encoding, "\u72d7\u5728\u8dd1")
        text = text.replace("\x85", "\u2026")
        content = {"txt": text, "csv": f"caption\n{text}\n", "tsv": f"caption\tx\n{text}\ty\n"}.get(
            suffix, json.dumps({"caption": text}, ensure_ascii=False)
        )
        path = write(tmp_path / f"a.{suffix}", content, encoding)
        assert samples(opened(path, encoding=encoding)) == [("None", (text,))]
        with pytest.raises(UserError, match="set `encoding` to"):
            opened(path)

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
    def test_of_a_byte_order_mark(self, encoding: str, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "image,caption\r\na,\u72d7\r\n", encoding)
        assert samples(opened(path)) == [("a", ("\u72d7",))]
        assert samples(opened(path, encoding=encoding)) == [("a", ("\u72d7",))]

    @pytest.mark.parametrize("suffix", ["csv", "txt", "jsonl"])
    def test_the_line_is_named(self, suffix: str, tmp_path: Path) -> None:
        first = {"csv": b"caption", "jsonl": b'{"caption": "a"}'}.get(suffix, b"one")
        path = write(tmp_path / f"a.{suffix}", b"\n".join([first, *[first] * 200_000, b"caf\xe9", first]))
        fix = "is not UTF-8; set `encoding` to the file's own, such as cp1252, gbk or utf-16, or save the file as UTF-8"
        with pytest.raises(UserError, match=f"line 200002: {fix}"):
            opened(path)

    def test_wrong_encodings(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", b"caption\nx\ncaf\xff\xff\n")
        for encoding, message in (
            ("ascii", "line 3: is not ascii"),
            ("hex", "unknown encoding 'hex'"),
            ("cp99", "unknown encoding 'cp99'"),
        ):
            with pytest.raises(UserError, match=message):
                opened(path, encoding=encoding)
        pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
        with pytest.raises(UserError, match="`encoding` is for text files"):
            opened(tmp_path / "a.parquet", encoding="gbk")


class TestDialects:
    @pytest.mark.parametrize("name", ["a.csv", "a.tsv", "A.CSV", "B.Tsv"])
    @pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
    def test_the_separator_is_found(self, name: str, separator: str, tmp_path: Path) -> None:
        rows = [("image", "caption", "x"), ("a.png", "a man; a dog", "1"), ("b.png", "x | y", "2"), ("c.png", "p, q", "3")]
        content = "\n".join(separator.join(f'"{cell}"' if separator in cell else cell for cell in row) for row in rows)
        path = write(tmp_path / name, content)
        assert guess_source(str(path)) == "table"
        assert samples(opened(path)) == [(row[0], (row[1],)) for row in rows[1:]]

    @pytest.mark.parametrize(
        ("name", "header", "row"),
        [
            ("a.tsv", "image\tcaption\tsize, in pixels", "a\tb\t3"),
            ("a.tsv", "image\ttitle, or text, or none, at all\tcaption", "a\tx\tb"),
            ("a.csv", "image;caption;size, in pixels, or not, who, knows", "a;b;3"),
            ("a.csv", "image_name| comment_number| comment", "a| 0| b"),
            ("a.csv", "image, caption", "a, b"),
            ("a.csv", "sep=;\nimage;caption", "a;b"),
            ("a.csv", '"image";"caption"', '"a";"b"'),
            ("captions.txt", "image,caption", "a,b"),
            ("captions.txt", "image\tcaption", "a\tb"),
            ("CAPTIONS.TXT", "image_name|comment", "a|b"),
        ],
    )
    def test_headers_as_people_write_them(self, name: str, header: str, row: str, tmp_path: Path) -> None:
        assert samples(opened(write(tmp_path / name, f"{header}\n{row}\n"))) == [("a", ("b",))]

    @pytest.mark.parametrize(
        "content", ["a dog, a cat\nan image, caption\n", "image of a dog,caption\n", "title\n", "one | two\n", "text, title\n"]
    )
    def test_a_text_file_of_captions_is_not_a_table(self, content: str, tmp_path: Path) -> None:
        source = opened(write(tmp_path / "a.txt", content))
        assert [captions for _, captions in samples(source)] == [(line,) for line in content.splitlines()]

    @pytest.mark.parametrize(
        ("name", "row"),
        [
            ("Train_GCC-training.tsv", "a very typical bus station\thttp://x.org/a.jpg"),
            ("a.csv", "images/a.jpg,a dog"),
            ("token.tsv", "a.jpg#0\ta dog"),
        ],
    )
    def test_no_header(self, name: str, row: str, tmp_path: Path) -> None:
        path = write(tmp_path / name, f"{row}\n{row}\n")
        with pytest.raises(UserError, match=r"first line is a row.*; (set `header` to their|write a first line)"):
            opened(path)

    def test_a_header_that_is_given(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.tsv", "a dog, and a cat\ta.jpg\na bird\tb.jpg\n")
        assert samples(opened(path, header=["caption", "image"])) == [
            ("a.jpg", ("a dog, and a cat",)),
            ("b.jpg", ("a bird",)),
        ]
        with pytest.raises(UserError, match="`header` names 3 columns, and the first line has others: 'a dog"):
            opened(path, header=["caption", "image", "more"])
        with pytest.raises(UserError, match="`header` is for"):
            opened(write(tmp_path / "a.jsonl", "{}"), header=["caption"])

    @pytest.mark.parametrize("name", ["a.ndjson", "A.JSONL", "a.NDJSON"])
    def test_json_lines_by_other_names(self, name: str, tmp_path: Path) -> None:
        path = write(tmp_path / name, '{"image": "a", "caption": "b"}\n')
        assert samples(open_source("auto", str(path), str(tmp_path / "root"))) == [("a", ("b",))]


class TestHuggingFace:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Callable[..., Source]:
        def save(columns: dict[str, Any], features: Any = None, **args: Any) -> Source:
            dataset = datasets.Dataset.from_dict(columns, features=features and datasets.Features(features))
            dataset.save_to_disk(tmp_path / "set")
            return open_source("huggingface", str(tmp_path / "set"), str(tmp_path / "root"), args)

        return save

    def test_paths_are_grouped_and_joined_to_the_folder(self, saved: Callable[..., Source], tmp_path: Path) -> None:
        source = saved({"image": IMAGES, "caption": CAPTIONS})
        assert samples(source) == PAIRS
        assert source[0].image == str(tmp_path / "set" / "a.png")
        assert saved({"image": IMAGES, "text": CAPTIONS}, image_root="/photos")[1].image == "/photos/b.png"

    def test_images_by_path_are_grouped(self, tmp_path: Path) -> None:
        cells = [{"bytes": None, "path": path} for path in IMAGES]
        features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
        table = pa.table({"image": cells, "caption": CAPTIONS}).cast(features.arrow_schema)
        (tmp_path / "files").mkdir()
        pq.write_table(table, tmp_path / "files" / "train.parquet")
        source = open_source("huggingface", str(tmp_path / "files"), str(tmp_path / "root"))
        assert samples(source) == PAIRS

    def test_objects_of_captions(self, saved: Callable[..., Source]) -> None:
        source = saved({"image": ["a", "b"], "sentences": [{"raw": ["x", "y"]}, {"raw": ["z"]}]})
        assert samples(source) == [("a", ("x", "y")), ("b", ("z",))]
        source = saved(
            {"image": ["a"], "caption": [{"raw": "x"}]}, {"image": datasets.Value("string"), "caption": datasets.Json()}
        )
        assert samples(source) == [("a", ("x",))]

    def test_class_labels(self, saved: Callable[..., Source]) -> None:
        label = {"label": datasets.ClassLabel(names=["x", "y", "z"])}
        source = saved({"image": ["a", "b", "c"], "label": [2, None, 0]}, {"image": datasets.Value("string")} | label)
        assert present(source.labels).tolist() == [2, -1, 0]
        assert source.class_names == ["x", "y", "z"]

    def test_another_process_gets_the_paths_of_the_files(self, saved: Callable[..., Source]) -> None:
        source = saved({"caption": ["a caption"] * 10_000})
        sent = pickle.dumps(source)
        assert len(sent) < 10_000
        assert samples(pickle.loads(sent)) == samples(source)


def test_large_copies_belong_to_their_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("table_file", "source"):
        monkeypatch.setattr(f"mmcl.data.sources.tables.{module}.LARGE", 0)
    path = write(tmp_path / "a.csv", "image,caption\na,caf\xe9\n", "cp1252")
    assert samples(opened(path, encoding="cp1252"))[0][1] == ("caf\xe9",)
    assert samples(opened(path, encoding="cp1251"))[0][1] == ("caf\u0439",)
    assert len(opened(path, encoding="cp1252", header=["x", "text"])) == 2


def test_spaces_around_labels_make_no_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "caption,label\none,cat\ntwo, cat\nthree,dog \nfour, \n", "utf-8")
    source = opened(path)
    assert source.class_names == ["cat", "dog"]
    assert present(source.labels).tolist() == [0, 0, 1, -1]


class TestMisplacedImages:
    def test_where_they_were_looked_for_and_where_they_are(self, tmp_path: Path) -> None:
        table = write(tmp_path / "a.csv", "image,caption\n0.png,one\n1.png,two\n")
        (line,) = opened(table).broken_files()
        assert f"looked for at {tmp_path / '0.png'}; set `image_root` to the folder that its paths start from" in line
        images = tmp_path / "photos"
        images.mkdir()
        (images / "0.png").write_bytes(encoded_image(0))
        (line,) = opened(table).broken_files()
        assert line.endswith(f"set `image_root` to {images}")
        assert opened(table).warnings[-1] == line
        assert not [*opened(table, image_root=str(images)).broken_files()]

    def test_some_that_are_missing_are_bad_samples(self, tmp_path: Path) -> None:
        (tmp_path / "0.png").write_bytes(encoded_image(0))
        source = opened(write(tmp_path / "a.csv", "image,caption\n0.png,one\n1.png,two\n"))
        assert not [*source.broken_files()]
        assert inspect_source(source).findings == [f"{tmp_path / '1.png'}: no such file"]

    def test_texts_alone_need_none(self, tmp_path: Path) -> None:
        assert not [*opened(write(tmp_path / "a.csv", "caption\none\n")).broken_files()]
