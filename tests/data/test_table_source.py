"""The table source: several captions of one image, columns, file formats, large files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmcl.data.open import open_source
from mmcl.data.sources.tables.source import TableSource
from mmcl.data.sources.tables.table_file import read_table
from mmcl.data.sources.tables.table_rows import group_rows
from mmcl.errors import UserError
from mmcl.files.digest import digest
from tests.data.files import decoded, write_image, write_table
from tests.narrow import present

TINY = Path(__file__).parents[1] / "fixtures" / "emoji_tiny"


class TestTable:
    def test_rows_of_one_image_are_one_sample(self, table: Path) -> None:
        source = open_source("table", str(table))
        assert [source[i].captions for i in range(3)] == [("one, two", "12"), ("NA",), ("three",)]
        assert source[0].name == str(table.parent / "a.png")

    def test_tabs_other_columns_and_another_root(self, tmp_path: Path) -> None:
        write_image(tmp_path / "images" / "a.png")
        path = tmp_path / "pairs.csv"
        path.write_text("\ufeffwhere\twhat\tkind\na.png\ta, b\tx\n", encoding="utf-8")
        args = {
            "image_column": "where",
            "caption_column": "what",
            "label_column": "kind",
            "image_root": str(tmp_path / "images"),
        }
        source = open_source("table", str(path), None, args)
        assert source[0].captions == ("a, b",)
        assert source.class_names == ["x"]
        assert decoded(source[0]).size == (6, 4)

    def test_jsonl_with_lists(self, tmp_path: Path) -> None:
        path = tmp_path / "pairs.jsonl"
        rows = [{"image": "a.png", "captions": ["one", None, "two"], "label": 7}, {"image": "b.png", "label": 3}]
        path.write_text("\n".join(map(json.dumps, rows)))
        source = open_source("table", str(path))
        assert [source[i].captions for i in range(2)] == [("one", "two"), ()]
        assert source.class_names == ["3", "7"]
        assert [source[i].label for i in range(2)] == [1, 0]

    def test_parquet_with_encoded_images(self) -> None:
        source = open_source("table", str(TINY / "twemoji.parquet"), None, {"label_column": "group"})
        rows = pq.read_table(TINY / "twemoji.parquet").to_pylist()
        names = present(source.class_names)
        assert len(source) == len(rows) == 128
        for i in (0, 127):
            assert source[i].image == rows[i]["image"]["bytes"]
            assert source[i].captions == (rows[i]["caption"],)
            assert names[present(source[i].label)] == rows[i]["group"]

    def test_a_missing_path_is_a_bad_sample_of_its_own(self, tmp_path: Path) -> None:
        path = tmp_path / "pairs.jsonl"
        path.write_text('{"image": null, "text": "one"}\n{"image": null, "text": "two"}\n{"image": "a.png", "text": "three"}')
        source = open_source("table", str(path))
        assert [source[i].captions for i in range(3)] == [("one",), ("two",), ("three",)]
        assert source[0].image is None

    @pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
    def test_texts_alone_with_positives_and_hard_negatives(self, suffix: str, tmp_path: Path) -> None:
        rows = [
            {"sent0": "a dog runs", "sent1": "an animal moves", "hard_neg": "a dog sleeps"},
            {"sent0": "two men sit", "sent1": "people sit", "hard_neg": "two men stand"},
        ]
        write_table(tmp_path / f"nli.{suffix}", rows)
        source = TableSource(str(tmp_path / f"nli.{suffix}"), None)
        assert [(s.image, s.captions, s.positives, s.negatives) for s in map(source.__getitem__, range(2))] == [
            (None, *((row[column],) for column in ("sent0", "sent1", "hard_neg"))) for row in rows
        ]
        assert source.scores is None
        assert source.view_text("negative", 1, 0.7) == "two men stand"
        assert source.view_text("anything", 1, 0.7) == "two men sit"

    def test_pairs_with_a_score(self, tmp_path: Path) -> None:
        pairs = [("a", "b", 2.5), ("c", "d", 0)]
        write_table(tmp_path / "sts.csv", [dict(zip(("sentence1", "sentence2", "score"), pair, strict=True)) for pair in pairs])
        source = TableSource(str(tmp_path / "sts.csv"), None)
        assert present(source.scores).tolist() == [2.5, 0.0]
        assert (source[1].captions, source[1].positives) == (("c",), ("d",))

    def test_a_score_column_without_pairs_is_ignored(self, tmp_path: Path) -> None:
        write_table(tmp_path / "a.csv", [{"caption": "a", "score": "high"}])
        assert TableSource(str(tmp_path / "a.csv"), None).scores is None

    def test_texts_of_one_image_stay_in_their_order(self, tmp_path: Path) -> None:
        rows = [{"image": "x.png", "caption": f"c{n}", "negative": f"n{n}"} for n in range(4)]
        write_table(tmp_path / "a.csv", rows)
        sample = TableSource(str(tmp_path / "a.csv"), None)[0]
        assert sample.captions == ("c0", "c1", "c2", "c3")
        assert sample.negatives == ("n0", "n1", "n2", "n3")

    def test_a_text_file_has_a_caption_on_every_line(self, tmp_path: Path) -> None:
        (tmp_path / "wiki.txt").write_text("One sentence, with commas.\n\n  Another.\n")
        source = TableSource(str(tmp_path / "wiki.txt"), None)
        assert [source[n].captions for n in range(len(source))] == [("One sentence, with commas.",), ("  Another.",)]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.csv", "image,caption\n", "has no rows"),
            ("a.csv", "", "first line must name the columns"),
            (
                "a.csv",
                "image,caption\na.png,one,more\n",
                "a.csv, line 2: has 3 fields, and the header 2; put a field that holds ',' in",
            ),
            (
                "a.csv",
                "photo,label\na.png,one\n",
                "which column holds the images, or the captions.*columns are photo, label",
            ),
            ("a.csv", "sentence1,sentence2,score\na,b,1.5\na,b,much\n", "a.csv: score, row 2: 'much' is not a number"),
            ("a.jsonl", '{"image": "a"}\n{"image": \n{', r"a\.jsonl, line 2 is not JSON"),
            ("a.jsonl", "[1]\n", r"a\.jsonl, line 1 must be an object"),
            ("a.jsonl", "[" * 100_000, r"a\.jsonl, line 1 is not JSON"),
            ("a.jsonl", '{"image": "a", "text": "\\ud83d"}', r"a\.jsonl, line 1 holds half a character"),
            ("a.parquet", "no parquet", "cannot be read as parquet"),
            ("a.xml", "<a/>", "must be one of"),
        ],
    )
    def test_wrong_files(self, name: str, content: str, message: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=message) as error:
            open_source("table", str(tmp_path / name))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("piece", [1, 2, 3, 100])
    def test_jsonl_is_the_same_however_it_is_cut(self, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keys that come late, cells that are missing, one caption here and a list there, numbers that grow a fraction."""
        rows = [
            {"image": "a.png", "captions": "one"},
            {"image": "b.png", "captions": ["two", None, "three"], "extra": {"x": 1}},
            {"image": "c.png", "score": 1},
            {"image": None, "captions": [], "score": 2.5},
            {"captions": "four", "extra": {"y": "z"}},
        ]
        path = tmp_path / "pairs.jsonl"
        path.write_text("\n\n".join(map(json.dumps, rows)))
        monkeypatch.setattr("mmcl.data.sources.tables.json_table.PIECE", piece)
        table = read_table(path)
        assert table.column_names == ["image", "captions", "extra", "score"]
        assert table["captions"].to_pylist() == ["one", ["two", None, "three"], None, [], "four"]
        assert table["score"].to_pylist() == [None, None, 1, 2.5, None]
        assert table["extra"].to_pylist()[1::3] == [{"x": 1}, {"y": "z"}]

    @pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
    def test_a_large_file_is_copied_once_and_mapped(self, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = [{"image": f"{n % 70}.png", "caption": f"c{n}", "label": f"l{n % 3}"} for n in range(100)]
        path = tmp_path / f"a.{suffix}"
        write_table(path, rows)
        given = (str(path), str(tmp_path))
        plain = TableSource(*given)
        assert not (tmp_path / "index").exists()
        for module in ("table_file", "source"):
            monkeypatch.setattr(f"mmcl.data.sources.tables.{module}.LARGE", 1)
        copied = TableSource(*given)
        assert copied.fingerprint == plain.fingerprint
        assert len(list((tmp_path / "index").iterdir())) == 3

        def refuse(*args: Any) -> None:
            raise AssertionError("made again")

        monkeypatch.setattr("mmcl.data.sources.tables.table_file._copy", refuse)
        monkeypatch.setattr(
            "mmcl.data.sources.tables.table_file.digest", lambda *parts: refuse() if parts == (path,) else digest(*parts)
        )
        monkeypatch.setattr("mmcl.data.sources.tables.source.sample_rows", refuse)
        mapped = TableSource(*given)
        for source in (copied, mapped):
            assert len(source) == 70
            assert [source[n] for n in range(70)] == [plain[n] for n in range(70)]
            assert present(source.labels).tolist() == present(plain.labels).tolist()
            assert source.fingerprint == plain.fingerprint
        write_table(path, rows[:-1])
        with pytest.raises(AssertionError, match="made again"):
            TableSource(*given)

    def test_rows_are_grouped_as_by_a_loop(self) -> None:
        generator = np.random.default_rng(0)
        for size in (1, 2, 50):
            cells = [None if draw > 8 else str(draw) for draw in generator.integers(0, 10, size)]
            groups: dict[object, list[int]] = {}
            for row, cell in enumerate(cells):
                groups.setdefault(cell if cell is not None else (row,), []).append(row)
            column = pa.chunked_array([cells[: size // 2], cells[size // 2 :]], pa.string())
            rows, sample = group_rows(column, size)
            assert rows.tolist() == [row for group in groups.values() for row in group]
            assert sample.tolist() == [number for number, group in enumerate(groups.values()) for _ in group]

    def test_a_column_that_is_not_there(self, table: Path) -> None:
        with pytest.raises(UserError, match="no column 'text' for `caption_column`; it has filepath, title"):
            open_source("table", str(table), None, {"caption_column": "text"})
