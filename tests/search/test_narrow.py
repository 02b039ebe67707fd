"""Narrow rows, with every type of the vectors beside them: as defined in plain Python, and alike in all that an index does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmcl.errors import UserError
from mmcl.search import Index, lance_store
from mmcl.search.narrow import RESCORE, NarrowRows, code_bytes, narrowed, widened
from tests.search.test_approximate import ROWS, WIDTH, Looked

KINDS: list[tuple[Any, Any]] = [(dtype, narrow) for narrow in ("int8", "binary") for dtype in ("float32", "float16", "none")]
shapes = st.tuples(st.integers(1, 200), st.integers(1, 140), st.integers(0, 10**6))


def unit(rows: int, width: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    unit_rows: np.ndarray = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit_rows


def by_definition(row: list[float], narrow: str) -> list[int]:
    largest = max(abs(value) for value in row)
    return [round(127 * value / largest) if narrow == "int8" else int(value > 0) for value in row]


@pytest.mark.parametrize("narrow", ["int8", "binary"])
@given(shape=shapes)
def test_codes_are_their_definition_and_stay_as_they_are(narrow: Any, shape: tuple[int, int, int]) -> None:
    rows = unit(*shape)
    codes = narrowed(rows, narrow)
    assert codes.shape == (len(rows), code_bytes(narrow, rows.shape[1]))
    read = codes.view(np.int8) if narrow == "int8" else np.unpackbits(codes, axis=1)[:, : rows.shape[1]]
    for row, code in zip(rows[:5].tolist(), read[:5].tolist(), strict=True):
        expected = by_definition(row, narrow)
        assert all(abs(one - other) <= (narrow == "int8") for one, other in zip(code, expected, strict=True))  # of halves
    again = widened(codes, narrow, rows.shape[1])
    np.testing.assert_allclose(np.linalg.norm(again, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(narrowed(again, narrow), codes)
    if narrow == "int8":
        assert np.abs(again - rows).max() < 1 / 127


@pytest.mark.parametrize("narrow", ["int8", "binary"])
@given(shape=shapes, count=st.integers(1, 220), is_filtered=st.booleans())
def test_the_nearest_by_codes_are_those_of_a_full_sort(
    narrow: Any, shape: tuple[int, int, int], count: int, is_filtered: bool
) -> None:
    """Of bits, by the number that differ, ties in the order of the rows; of int8, by the cosine but for rounding."""
    rows, query = unit(*shape), unit(1, shape[1], shape[2] + 1)[0]
    among = np.random.default_rng(shape[2]).random(len(rows)) < 0.5 if is_filtered else None
    found = NarrowRows(narrowed(rows, narrow), narrow, shape[1]).nearest(query, count, among)
    places = np.arange(len(rows)) if among is None else np.flatnonzero(among)
    assert len(found) == min(count, len(places))
    assert (np.diff(found) > 0).all()
    if narrow == "binary":
        differing = [sum((one > 0) != (other > 0) for one, other in zip(rows[place], query, strict=True)) for place in places]
        best = sorted(zip(differing, places, strict=True))[:count]
        assert found.tolist() == sorted(int(place) for _, place in best)
        return
    cosine = widened(narrowed(rows, narrow), narrow, shape[1]).astype(np.float64) @ query
    worst = np.sort(cosine[places])[::-1][: len(found)]
    np.testing.assert_allclose(np.sort(cosine[found])[::-1], worst, atol=1e-5)


def test_bits_take_a_32nd_of_float32() -> None:
    rows = unit(1000, 256, 0)
    assert NarrowRows(narrowed(rows, "binary"), "binary", 256).nbytes * 32 == rows.nbytes
    assert NarrowRows(narrowed(rows, "int8"), "int8", 256).nbytes < rows.nbytes / 3.9


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("narrow") / "photos"
    for number in range(ROWS):
        (folder / str(number % 3)).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (number % 256, number // 256, 0)).save(folder / str(number % 3) / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def exact(photos: Path) -> Index:
    return Index.build(photos, Looked())


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def place(request: Any, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dtype, narrow = request.param
    place = tmp_path_factory.mktemp("index") / f"{dtype}-{narrow}"
    Index.build(photos, Looked(), out=place, dtype=dtype, narrow=narrow)
    return place


def about(index: Index) -> Any:
    return index.store.table.about  # type: ignore[attr-defined]


def stored_rows(index: Index, exact: Index) -> np.ndarray:
    """What an index should hold, from the vectors as they were."""
    rows = exact.image_emb
    if about(index).dtype == "none":
        return widened(narrowed(rows, about(index).narrow), about(index).narrow, WIDTH)
    return rows.astype(about(index).dtype).astype(np.float32)


def test_scores_are_those_of_the_vectors_or_of_the_query_with_narrow_rows(place: Path, exact: Index) -> None:
    index = Index.open(place, Looked())
    rows = stored_rows(index, exact)
    np.testing.assert_allclose(index.image_emb, rows, atol=1e-6)
    position = {hit.id: number for number, hit in enumerate(exact.store.items(range(ROWS)))}
    query = Looked().encode_text(["17"])[0].astype(np.float64)
    cosine = rows.astype(np.float64) @ query
    all_of_them = index.search("17", top_k=ROWS, rescore=1)
    assert not all_of_them.exact
    np.testing.assert_allclose([hit.score for hit in all_of_them], np.sort(cosine)[::-1], atol=1e-6)
    for hit in index.search("17", top_k=7):
        assert hit.score == pytest.approx(cosine[position[hit.id]], abs=1e-6)
    assert index.search("17", top_k=1)[0].path.stem == "017"
    compared = index.search("17", top_k=ROWS, exact=True)
    assert compared.exact
    assert [hit.score for hit in compared] == [hit.score for hit in all_of_them]


def test_more_rescoring_finds_more(place: Path) -> None:
    index = Index.open(place, Looked())
    if about(index).dtype == "none":
        with pytest.raises(UserError, match="keeps no vectors, so what narrow rows miss is not known"):
            index.recall(20, 5)
        return
    found = [index.recall(60, 5, rescore=rescore).value for rescore in (1, 3, 60)]
    assert found[0] < found[1] <= found[2] == 1 or about(index).narrow == "int8"
    assert found == sorted(found)
    assert index.recall(60, 5).value == index.recall(60, 5, rescore=RESCORE).value


def test_a_filter_is_looked_through_by_narrow_rows(place: Path, exact: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index, read = Index.open(place, Looked()), list[int]()
    real = lance_store.LanceStore.vectors

    def counted(self: Any, positions: Any) -> Any:
        read.append(len(positions))
        return real(self, positions)

    monkeypatch.setattr(lance_store.LanceStore, "vectors", counted)
    hits = index.search("18", where='folder = "0"', top_k=3, rescore=2)
    assert max(read) == 6
    assert (len(hits), hits.exact, hits[0].path.stem) == (3, False, "018")
    assert {hit.path.parent.name for hit in hits} == {"0"}
    few = index.search("18", where='path = "0/018.png" or path = "0/021.png"')
    assert [hit.path.stem for hit in few][:1] == ["018"]
    assert len(few) == 2
    likes = [index.search(text, top_k=1)[0].id for text in ("4", "40")]
    assert set(likes) <= {hit.id for hit in index.search(like=likes, combine="any", top_k=4)}


def test_all_else_reads_the_vectors(place: Path, exact: Index) -> None:
    """Dates, duplicates, examples, overlap and export, as of the rows that are stored."""
    index = Index.open(place, Looked())
    rows = stored_rows(index, exact)
    assert index.search("17", sort="taken").exact
    one = index.search("17", top_k=1)[0].id
    assert one not in [hit.id for hit in index.similar(one, 5)]
    near = np.triu(rows.astype(np.float64) @ rows.T.astype(np.float64), 1)
    threshold = 0.55
    grouped = {id for group in index.duplicates(threshold) for id in group.ids}
    ids = index.store.column("id").to_pylist()
    assert grouped == {ids[number] for pair in np.argwhere(near >= threshold) for number in pair}
    assert len(index.overlap(index)) == ROWS
    file = place.parent / "rows.parquet"
    assert index.export(file) == ROWS
    table = parquet.read_table(file).sort_by("path")
    assert "code" not in table.column_names
    vectors = np.stack(table["vector"].to_pylist()).astype(np.float32)
    np.testing.assert_allclose(vectors[np.argsort(table["id"].to_numpy())], rows[np.argsort(ids)], atol=1e-6)
    assert index.export(place.parent / "rows.csv") == ROWS
    assert index.verify() == []


def test_sync_equals_a_rebuild(place: Path, photos: Path, tmp_path: Path) -> None:
    """Moved, copied, changed, new and unreadable images; the narrow rows and all vectors are those of a new index."""
    import shutil

    kept = about(Index.open(place, Looked()))
    folder = tmp_path / "photos"
    shutil.copytree(photos / "0", folder)
    options = {"dtype": kept.dtype, "narrow": kept.narrow}
    Index.build(folder, Looked(), out=tmp_path / "index", **options)
    (folder / "018.png").rename(folder / "moved.png")
    shutil.copy(folder / "021.png", folder / "copied.png")
    Image.new("RGB", (2, 2), (5, 0, 0)).save(folder / "024.png")
    Image.new("RGB", (2, 2), (7, 0, 0)).save(folder / "new.png")
    (folder / "027.png").write_bytes(b"no image")
    with Index.open(tmp_path / "index", Looked(), mode="w") as index:
        index.search("18")  # what is in memory is forgotten
        before = index.versions()[-1].number
        report = index.sync()
        assert (report.moved, report.copied, report.encoded, report.bad) == (1, 1, 2, 1)
        assert index.search("7", top_k=1)[0].path.stem == "new"
        rebuilt = Index.build(folder, Looked(), out=tmp_path / "again", **options)
        columns = ["path", *(["code"] if kept.narrow else []), *(["vector"] if kept.dtype != "none" else [])]
        held, expected = (
            pa.Table.from_batches(list(one.store.table.scan(columns))).sort_by("path").drop_columns("_rowid")  # type: ignore[attr-defined]
            for one in (index, rebuilt)
        )
        assert held.combine_chunks().equals(expected.combine_chunks())
        assert index.verify() == []
        index.restore(before)
        assert index.search("18", top_k=1)[0].path.stem == "018"
        with pytest.raises(UserError, match=r"has narrow rows .*, which are compared already"):
            index.build_ann()


def test_a_damaged_narrow_row_is_named(place: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(place, tmp_path / "index")
    with Index.open(tmp_path / "index", Looked(), mode="w") as index:
        kept, table = about(index), index.store.table.table  # type: ignore[attr-defined]
        row = table.search().where("path = '1/001.png'").limit(1).to_arrow()
        code = bytearray(row["code"][0].as_py())
        code[0] ^= 0xFF
        changed = row.set_column(
            row.schema.get_field_index("code"), row.schema.field("code"), pa.array([bytes(code)], row["code"].type)
        )
        index.store.table.upsert(changed)  # type: ignore[attr-defined]
        if kept.dtype != "none":
            assert index.verify() == ["1/001.png: its narrow row is not that of its vector"]


def test_an_index_without_narrow_rows_is_of_the_format_before(photos: Path, tmp_path: Path) -> None:
    """Its settings are those of an index that an earlier version wrote, in which nothing names narrow rows."""
    files = sorted((photos / "0").glob("*.png"))[:4]
    index = Index.build(files, Looked(), out=tmp_path / "index")
    assert about(index).format == 1
    assert "code" not in index.store.table.table.schema.names  # type: ignore[attr-defined]
    import lancedb

    database = lancedb.connect(str(tmp_path / "index"))
    content = json.loads(database.open_table("about").to_arrow()["value"][0].as_py())
    del content["narrow"]
    database.create_table("about", pa.table({"key": ["about"], "value": [json.dumps(content)]}), mode="overwrite")
    opened = Index.open(tmp_path / "index", Looked())
    assert opened.search("0", top_k=4) == index.search("0", top_k=4)
    assert opened.search("0").exact
    narrow = Index.build(files, Looked(), out=tmp_path / "narrow", narrow="binary")
    assert about(narrow).format == 2


def test_what_cannot_be_is_one_line(photos: Path, tmp_path: Path, exact: Index) -> None:
    out = tmp_path / "index"
    for options, message in (
        ({"narrow": "binari"}, "binary"),
        ({"dtype": "float61"}, "float16"),
        ({"dtype": "none"}, "dtype none keeps no vectors: give narrow, int8 or binary"),
    ):
        with pytest.raises(UserError, match=message):
            Index.build(photos, Looked(), out=out, **options)  # type: ignore[arg-type]
    for options in ({"narrow": "int8"}, {"dtype": "float16"}):
        with pytest.raises(UserError, match="is of an index on disk: give `out`"):
            Index.build(photos, Looked(), **options)  # type: ignore[arg-type]
    Index.build(photos / "0", Looked(), out=out, narrow="int8")
    with pytest.raises(UserError, match="was begun with dtype float32 and narrow int8, not float32 and None"):
        Index.build(photos / "0", Looked(), out=out)
    with pytest.raises(UserError, match="rescore is 0"):
        Index.open(out, Looked()).search("3", rescore=0)
    for index, more in ((exact, {}), (Index.open(out, Looked()), {"exact": True})):
        with pytest.raises(UserError, match="rescore is of images that narrow rows find"):
            index.search("3", rescore=5, **more)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="rescore is of an index with narrow rows"):
        Index.build(photos / "1", Looked(), out=tmp_path / "other").recall(5, 3, rescore=4)
