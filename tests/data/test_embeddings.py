"""The source of stored embeddings: which row stands for what, and one line for every table that cannot be used."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.data.derived.mixture import Mixture
from mmcl.data.open import open_source
from mmcl.data.source import required_rows
from mmcl.data.sources.embeddings.source import EmbeddingSource
from mmcl.data.stored_rows import StoredRow, StoredText, read_rows, rows_of_texts
from mmcl.errors import UserError
from mmcl.evaluate.task import CachedModel
from mmcl.files.mapped import GrowingArray
from mmcl.testing.patterns import PatternModel
from tests.data.embeddings import PAIR_COLUMNS, lists, write_pairs
from tests.narrow import present

PAIRS = {"image_column": "picture", "text_column": "words"}


def test_every_pair_has_its_rows(tmp_path: Path) -> None:
    columns = write_pairs(tmp_path / "rows.parquet")
    source = EmbeddingSource(str(tmp_path / "rows.parquet"), str(tmp_path), **PAIR_COLUMNS)
    np.testing.assert_array_equal(read_rows(required_rows(source)), columns["picture"])
    captions = [source[index].captions[0] for index in range(len(source))]
    assert captions == columns["caption"]
    np.testing.assert_array_equal(read_rows(rows_of_texts(captions)), columns["words"])
    assert (source.class_names, present(source.labels).tolist()) == (["even", "odd"], [0, 1] * 6)
    assert source.draws_as_listed


def test_a_folder_of_files_is_one_table(tmp_path: Path) -> None:
    parts = [write_pairs(tmp_path / f"rows/{name}.parquet", count, kind=None) for name, count in (("a", 4), ("b", 6))]
    source = EmbeddingSource(str(tmp_path / "rows"), str(tmp_path), **PAIRS)
    np.testing.assert_array_equal(read_rows(required_rows(source)), np.concatenate([part["picture"] for part in parts]))
    assert [source[index].captions for index in (0, 9)] == [("row 1",), ("row 10",)], "texts without captions are told apart"


def test_two_tables_are_joined_by_their_ids(tmp_path: Path) -> None:
    """The texts in another order, several of one image and none of another."""
    pictures = write_pairs(tmp_path / "a.parquet", 4, words=None, caption=None)
    ids = [103, 100, 103, 101, 999]
    words = write_pairs(tmp_path / "b.parquet", 4, picture=None, kind=None, number=ids[:4])["words"]
    args: dict[str, Any] = {**PAIRS, "caption_column": "caption", "id_column": "number"}
    source = EmbeddingSource(str(tmp_path / "a.parquet"), str(tmp_path), texts=str(tmp_path / "b.parquet"), **args)
    found = {
        pictures["number"][index]: read_rows(rows).tolist()
        for index in range(4)
        if (rows := rows_of_texts(source[index].captions))
    }
    expected = {number: [words[place].tolist() for place in range(4) if ids[place] == number] for number in (100, 101, 103)}
    assert found == expected
    assert source.notes == ["of 4 images: 1 with no text; `mmcl data verify` lists them"]


def test_copies_are_made_once_and_are_those_of_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened() -> EmbeddingSource:
        return EmbeddingSource(str(tmp_path / "rows.parquet"), str(tmp_path), **PAIRS)

    write_pairs(tmp_path / "rows.parquet")
    first = opened()
    monkeypatch.setattr("mmcl.data.sources.embeddings.table._copy", lambda *arguments: pytest.fail("copied again"))
    assert opened().fingerprint == first.fingerprint
    monkeypatch.undo()
    write_pairs(tmp_path / "rows.parquet", picture=np.ones((12, 4), np.float16))
    second = opened()
    assert second.fingerprint != first.fingerprint
    assert np.load(required_rows(second)[0].file).dtype == np.float16
    assert Mixture({"a": first}).identity != Mixture({"a": second}).identity, "the numbers are part of the identity"
    np.testing.assert_array_equal(read_rows(required_rows(second)), np.ones((12, 4), np.float32))


def bad(values: list[Any]) -> pa.Array:
    return lists(values)


ONES = [[1.0, 2.0]] * 12
UNUSABLE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "not a number": (
        {"picture": bad([*ONES[:6], [1.0, float("nan")], *ONES[7:]])},
        PAIRS,
        r"picture is not finite in row 7; leave",
    ),
    "infinite": ({"words": bad([[1.0, float("inf")], *ONES[1:]])}, PAIRS, r"words is not finite in row 1; leave"),
    "too large": ({"picture": np.full((12, 2), 1e300)}, PAIRS, r"picture is not finite in row 1"),
    "nothing": ({"picture": bad([*ONES[:3], None, *ONES[4:]])}, PAIRS, r"picture is empty in row 4; leave the row out"),
    "a number is missing": ({"picture": bad([[1.0, None], *ONES[1:]])}, PAIRS, r"picture is not finite in row 1"),
    "two widths": ({"picture": bad([*ONES[:3], [1.0], *ONES[4:]])}, PAIRS, r"picture has 2 numbers in a row, and 1 in row 4"),
    "texts": ({"picture": pa.array(["a"] * 12)}, PAIRS, r"picture must hold lists of numbers, not string"),
    "lists of texts": (
        {"picture": pa.array([["a"]] * 12)},
        PAIRS,
        r"picture must hold lists of decimal numbers, not of string",
    ),
    "another column": ({}, {**PAIRS, "image_column": "image"}, r"has no column 'image'; it has picture, words, caption"),
    "no column": ({}, {}, r"which columns hold the embeddings\? Give image_column, text_column or both; it has picture, words"),
    "no images": ({}, {"text_column": "words"}, r"has no embeddings of images; give a table that has, and this one as `texts`"),
    "no rows": ({"picture": bad([]), "words": bad([]), "caption": [], "kind": [], "number": []}, PAIRS, r"has no rows with an"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_tables_are_one_line(case: str, tmp_path: Path) -> None:
    changed, args, message = UNUSABLE[case]
    write_pairs(tmp_path / "rows.parquet", **changed)
    with pytest.raises(UserError, match=message) as caught:
        open_source("embeddings", str(tmp_path / "rows.parquet"), str(tmp_path), args)
    assert "\n" not in str(caught.value)
    assert case == "no images" or not list(tmp_path.glob("index/embeddings-*"))


def test_files_and_ids_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a.parquet")
    write_pairs(tmp_path / "b.parquet", number=[f"n{number}" for number in range(12)])
    write_pairs(tmp_path / "c.parquet", number=list(range(12)))
    write_pairs(tmp_path / "few.parquet", 4)
    write_pairs(tmp_path / "mixed/a.parquet")
    write_pairs(tmp_path / "mixed/b.parquet", picture=np.ones((12, 5), np.float32))
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:500])
    (tmp_path / "empty").mkdir()
    ids = {**PAIRS, "id_column": "number"}
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("cut.parquet", PAIRS, "cannot be read as parquet"),
        ("empty", PAIRS, "has no .parquet files; give those with the embeddings"),
        ("gone", PAIRS, "gone: no such file or folder"),
        ("mixed", PAIRS, "has image rows of 4 and of 5 numbers; give those of one model"),
        ("a.parquet", {**ids, "texts": "b.parquet"}, r"number their rows differently \(int64 and string\)"),
        ("a.parquet", {**ids, "texts": "c.parquet"}, "no text belongs to an image of .*a.parquet; give tables with common ids"),
        (
            "a.parquet",
            {**PAIRS, "texts": "few.parquet"},
            "has 12 images and .*few.parquet 4 texts; give their id_column",
        ),
        ("a.parquet", {**ids, "texts": "gone.parquet"}, "gone.parquet: no such file or folder"),
    ]
    for path, args, message in cases:
        args = {**args, "texts": str(tmp_path / args["texts"])} if "texts" in args else args
        with pytest.raises(UserError, match=message) as caught:
            open_source("embeddings", str(tmp_path / path), str(tmp_path), args)
        assert "\n" not in str(caught.value)


def test_a_damaged_copy_is_named(tmp_path: Path) -> None:
    write_pairs(tmp_path / "rows.parquet")
    source = EmbeddingSource(str(tmp_path / "rows.parquet"), str(tmp_path), **PAIRS)
    (required_rows(source)[0].file.parent / "text.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"a copy of .*rows.parquet is damaged .*; delete it"):
        EmbeddingSource(str(tmp_path / "rows.parquet"), str(tmp_path), **PAIRS)


def test_a_stored_text_is_a_text_that_keeps_its_row() -> None:
    text = StoredText("a cat", StoredRow(Path("x/text.npy"), 3, "model"))
    assert (text, hash(text), {"a cat": 1}[text]) == ("a cat", hash("a cat"), 1)
    again = pickle.loads(pickle.dumps(text))
    assert (again, again.row) == (text, text.row)


def test_embeddings_of_texts_are_kept_by_their_rows(tmp_path: Path) -> None:
    """Two tables have other rows for the same text."""
    asked: list[dict[str, str]] = []

    class Recording:
        def load(self, depends_on: dict[str, str]) -> np.ndarray:
            asked.append(depends_on)
            return np.ones((1, 2), np.float32)

    for row in (StoredRow(Path("x/text.npy"), 3), StoredRow(Path("y/text.npy"), 3), StoredRow(Path("x/text.npy"), 4)):
        model = CachedModel(PatternModel(), cache=Recording())  # type: ignore[arg-type]
        model.encode_text([StoredText("a cat", row)])
    assert len({one["texts"] for one in asked}) == 3


@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=6),
    width=st.integers(1, 9),
    dtype=st.sampled_from(["f2", "f4", "f8"]),
)
def test_a_growing_array_is_what_was_appended(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], width: int, dtype: str
) -> None:
    path = tmp_path_factory.mktemp("grown") / "rows.npy"
    parts = [np.random.default_rng(count).normal(size=(count, width)).astype(dtype) for count in counts]
    with GrowingArray(path) as rows:
        for part in parts:
            rows.append(part)
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    np.testing.assert_array_equal(found, np.concatenate(parts))
    assert (found.shape, found.dtype) == ((sum(counts), width), np.dtype(dtype))
