"""The cells of a table give the same samples in every Arrow type."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmcl.data.source import Source
from mmcl.data.sources.tables.arrow_source import ArrowSource
from mmcl.data.sources.tables.arrow_types import plain_table
from mmcl.data.sources.tables.column_names import find_columns
from mmcl.data.sources.tables.table_rows import sample_rows
from mmcl.errors import UserError
from tests.data.test_tables import CAPTIONS, IMAGES, PAIRS, encoded_image, opened, samples
from tests.narrow import of_type, present


def two_dictionaries(values: list[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(part).dictionary_encode() for part in (values[:1], values[1:3], values[3:])])


def in_runs(values: list[str]) -> pa.Array:
    return pa.RunEndEncodedArray.from_arrays(pa.array(range(1, len(values) + 1), pa.int32()), pa.array(values))


def fixed(values: list[str]) -> pa.Array:
    return pa.array([value.encode().ljust(8, b"\0") for value in values], pa.binary(8))


FromArrow = Callable[[pa.Table], Source]

ENCODED: dict[str, Callable[[list[str]], Any]] = {
    "string": pa.array,
    "large_string": lambda values: pa.array(values, pa.large_string()),
    "string_view": lambda values: pa.array(values, pa.string_view()),
    "dictionary": lambda values: pa.array(values).dictionary_encode(),
    "dictionary_of_large": lambda values: pa.array(values, pa.large_string()).dictionary_encode(),
    "dictionaries_that_differ": two_dictionaries,
    "dictionary_of_bytes": lambda values: pa.array([value.encode() for value in values]).dictionary_encode(),
    "binary": lambda values: pa.array([value.encode() for value in values]),
    "large_binary": lambda values: pa.array([value.encode() for value in values], pa.large_binary()),
    "binary_view": lambda values: pa.array([value.encode() for value in values], pa.binary_view()),
    "fixed_size_binary": fixed,
    "runs": in_runs,
    "json": lambda values: pa.ExtensionArray.from_storage(pa.json_(), pa.array(map(json.dumps, values))),
    "list": lambda values: pa.array([[value] for value in values]),
    "large_list": lambda values: pa.array([[value] for value in values], pa.large_list(pa.string())),
    "fixed_size_list": lambda values: pa.array([[value] for value in values], pa.list_(pa.string(), 1)),
    "list_view": lambda values: pa.array([[value] for value in values], pa.list_view(pa.string())),
    "list_of_dictionary": lambda values: pa.array([[value] for value in values]).cast(
        pa.list_(pa.dictionary(pa.int32(), pa.string()))
    ),
    "chunks": lambda values: pa.chunked_array([values[:1], [], values[1:]]),
}
AS_IMAGE = {
    "struct": lambda values: pa.array([{"bytes": None, "path": value} for value in values]),
    "struct_typed": lambda values: pa.array(
        [{"bytes": None, "path": value} for value in values], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    ),
    "list_of_struct": lambda values: pa.array([[{"bytes": None, "path": value}] for value in values]),
}
AS_CAPTION = {
    "raw": lambda values: pa.array([{"raw": value, "tokens": value.split()} for value in values]),
    "list_of_raw": lambda values: pa.array([[{"raw": value, "sentid": 3}] for value in values]),
    "lists_in_raw": lambda values: pa.array([{"raw": [value], "sentid": [3]} for value in values]),
}


class Held(ArrowSource):
    """Of a table in memory."""

    fingerprint = ""


@pytest.fixture(params=["held", "parquet", "mapped"])
def from_arrow(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FromArrow:
    """Opens an Arrow table as it is, from a parquet file, and from the mapped copy of a large one."""

    def open_it(table: pa.Table) -> Source:
        if request.param == "held":
            columns = find_columns(table.column_names, {}, "table")
            table = plain_table(table)
            rows = sample_rows(table, columns)
            return Held(table, columns, rows, name="table", image_root=tmp_path)
        if request.param == "mapped":
            for module in ("table_file", "source"):
                monkeypatch.setattr(f"mmcl.data.sources.tables.{module}.LARGE", 0)
        try:
            pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
        except pa.ArrowNotImplementedError as error:  # parquet has no runs, and pyarrow before 25 writes no list views
            pytest.skip(str(error))
        return opened(tmp_path / "t.parquet")

    return open_it


class TestArrowTypes:
    """The same cells are the same samples, however Arrow stores them."""

    @pytest.mark.parametrize("kind", ENCODED | AS_IMAGE)
    def test_of_images(self, kind: str, from_arrow: FromArrow) -> None:
        table = pa.table({"image": (ENCODED | AS_IMAGE)[kind](IMAGES), "caption": CAPTIONS})
        assert samples(from_arrow(table)) == PAIRS

    @pytest.mark.parametrize("kind", ENCODED | AS_CAPTION)
    def test_of_captions(self, kind: str, from_arrow: FromArrow) -> None:
        table = pa.table({"image": IMAGES, "caption": (ENCODED | AS_CAPTION)[kind](CAPTIONS)})
        assert samples(from_arrow(table)) == PAIRS

    @pytest.mark.parametrize("kind", [kind for kind in ENCODED if "list" not in kind])
    def test_of_labels(self, kind: str, from_arrow: FromArrow) -> None:
        source = from_arrow(pa.table({"image": list("abcd"), "label": ENCODED[kind](CAPTIONS)}))
        assert present(source.labels).tolist() == [1, 3, 2, 0]
        assert source.class_names == ["four", "one", "three", "two"]

    @pytest.mark.parametrize("kind", ["null", "dictionary", "struct", "list", "bytes", "text"])
    def test_missing_cells(self, kind: str, from_arrow: FromArrow, tmp_path: Path) -> None:
        """A null, an empty text, a list of none: every row is a sample, and is counted."""
        cells = {
            "null": pa.nulls(3),
            "dictionary": pa.array(["a.png", None, ""]).dictionary_encode(),
            "struct": pa.array([{"bytes": None, "path": "a.png"}, {"bytes": None, "path": None}, None]),
            "list": pa.array([["a.png"], [], None]),
            "bytes": pa.array([b"a.png", b"", None]),
            "text": pa.array(["a.png", " ", None]),
        }[kind]
        (tmp_path / "a.png").touch()
        source = from_arrow(pa.table({"image": cells, "caption": ["x", "y", "z"]}))
        assert [caption for _, caption in samples(source)] == [("x",), ("y",), ("z",)]
        assert [source[row].image is None for row in range(3)] == [kind == "null", True, True]
        text = source.usage[1].to_text()
        assert text.startswith("0 of 3 rows used" if kind == "null" else "1 of 3 rows used; not used: 2 without image (row 2, ")

    @pytest.mark.parametrize("kind", ["bytes", "large", "struct", "path", "dictionary"])
    def test_encoded_images(self, kind: str, from_arrow: FromArrow) -> None:
        """Equal bytes are one image with several captions; without captions, or with labels, every row stays a sample."""
        one, other = encoded_image(1), encoded_image(2)
        contents = [one, other, one, None, one[:-1], None, other]
        cells = {
            "bytes": pa.array(contents),
            "large": pa.array(contents, pa.large_binary()),
            "struct": pa.array([{"bytes": content, "path": None} for content in contents]),
            "path": pa.array([{"bytes": content, "path": "x.png" if content else None} for content in contents]),
            "dictionary": pa.array(contents).dictionary_encode(),
        }[kind]
        source = from_arrow(pa.table({"image": cells, "caption": list("abcdefg")}))
        expected = [(one, ("a", "c")), (other, ("b", "g")), (None, ("d",)), (one[:-1], ("e",)), (None, ("f",))]
        assert [(source[row].image, source[row].captions) for row in range(len(source))] == expected
        for columns in ({}, {"label": list("abcdefg")}, {"label": list("abcdefg"), "caption": list("abcdefg")}):
            apart = from_arrow(pa.table({"image": cells, **columns}))
            assert [apart[row].image for row in range(len(apart))] == contents

    def test_images_that_differ_in_one_byte_stay_apart(self, from_arrow: FromArrow) -> None:
        contents = [bytes(10_000), bytes(10_000), bytes(4_000) + b"x" + bytes(5_999)]
        source = from_arrow(pa.table({"image": contents, "caption": list("abc")}))
        assert [source[row].captions for row in range(len(source))] == [("a", "b"), ("c",)]

    def test_images_in_base64_and_as_pixels(self, from_arrow: FromArrow) -> None:
        content = base64.b64encode(encoded_image(1)).decode()
        for cell in (content, f"data:image/png;base64,{content}"):
            source = from_arrow(pa.table({"image": [cell, cell], "caption": ["a", "b"]}))
            assert [(source[row].image, source[row].captions) for row in range(len(source))] == [(encoded_image(1), ("a", "b"))]
        with pytest.raises(UserError, match="base64 that is cut"):
            from_arrow(pa.table({"image": [content[:101]]}))[0].check()
        pixels = np.arange(24).reshape(4, 2, 3)
        for array in (pixels, pixels[..., 0]):
            source = from_arrow(pa.table({"image": [array.tolist()]}))
            image = of_type(np.ndarray, source[0].image)
            assert np.array_equal(image, array)
            assert image.dtype == np.uint8
        refused: list[list[list[float]]] = [[[256], [0]], [[1, 2], [3]], [[], []], [[0.5], [1]]]
        for wrong in refused:
            with pytest.raises(UserError, match="list of lists; give whole numbers"):
                from_arrow(pa.table({"image": [wrong]}))[0].check()

    def test_objects_of_other_kinds_are_bad_samples(self, from_arrow: FromArrow) -> None:
        for cell in ({"bytes": [1, 2], "path": "a.png"}, {"src": "a.png"}, {"bytes": 3, "path": None}):
            source = from_arrow(pa.table({"image": [cell], "caption": ["a"]}))
            assert source.usage
            with pytest.raises(UserError, match=r"row 1: its (image|cell)"):
                source[0].check()

    def test_several_images_in_a_cell(self, from_arrow: FromArrow) -> None:
        source = from_arrow(pa.table({"images": [["a.png"], ["a.png", "b.png"], ["a.png"]], "caption": ["x", "y", "z"]}))
        assert [captions for _, captions in samples(source)] == [("x", "z"), ("y",)]
        with pytest.raises(UserError, match="row 2: its cell of images holds 2; write a row for each"):
            source[1].check()
