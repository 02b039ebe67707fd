"""Columns of tables with common names and contents: they are found, or the error says what to give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmcl.data.open import open_source
from mmcl.errors import UserError
from mmcl.testing.patterns import PatternModel
from tests.data.tars import write_tar
from tests.data.test_loader import batches
from tests.data.test_loader import rows as rows_of
from tests.data.test_tables import encoded_image, opened, samples, write
from tests.narrow import present


class TestColumns:
    def test_two_of_one_name(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="has 2 columns of the name 'caption'; rename all but one"):
            opened(write(tmp_path / "a.csv", "image,caption,caption\na,b,c\n"))
        pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, ["image", "image", "text"]), tmp_path / "a.parquet")
        with pytest.raises(UserError, match="2 columns of the name 'image'"):
            opened(tmp_path / "a.parquet")

    @pytest.mark.parametrize("spelled", ["['a', 'b']", '["a", "b"]', "['a',\n 'b']", "[\"a\", 'b']"])
    def test_lists_that_pandas_wrote(self, spelled: str, tmp_path: Path) -> None:
        cell = spelled.replace('"', '""')
        assert samples(opened(write(tmp_path / "a.csv", f'image,caption\nx,"{cell}"\n'))) == [("x", ("a", "b"))]

    @pytest.mark.parametrize("text", ["[sic] a dog", "['a' dog", "['a', 3]", '["a"] dog', "['" * 9999])
    def test_captions_in_brackets_stay(self, text: str, tmp_path: Path) -> None:
        write(tmp_path / "a.jsonl", json.dumps({"caption": text}))
        assert samples(opened(tmp_path / "a.jsonl")) == [("None", (text,))]

    def test_unused_columns_of_one_name(self, tmp_path: Path) -> None:
        assert samples(opened(write(tmp_path / "a.csv", "id,image,id,caption\n1,a,2,b\n"))) == [("a", ("b",))]

    def test_others_are_not_typed(self, tmp_path: Path) -> None:
        others = [2**64 - 1, -(2**70), {"a": 1}, "x", [1, "y"], None, 1e400, True]
        rows = [json.dumps({"image": f"{n}.png", "text": f"t{n}", "meta": other}) for n, other in enumerate(others)]
        source = opened(write(tmp_path / "a.jsonl", "\n".join(rows)))
        assert samples(source) == [(f"{n}.png", (f"t{n}",)) for n in range(len(others))]

    def test_numbers_are_texts_and_nan_is_missing(self, tmp_path: Path) -> None:
        cells = [7, "b", float("nan"), None, "", 2.5, 2**64, ["x", 8, float("nan")]]
        rows = [json.dumps({"image": f"{n}.png", "text": cell}) for n, cell in enumerate(cells)]
        for n in range(len(cells)):
            (tmp_path / f"{n}.png").touch()
        source = opened(write(tmp_path / "a.jsonl", "\n".join(rows)))
        expected = [("7",), ("b",), (), (), (), ("2.5",), (str(2**64),), ("x", "8")]
        assert [captions for _, captions in samples(source)] == expected
        assert source.usage[1].to_text() == "5 of 8 rows used; not used: 3 without caption (row 3, row 4, row 5)"

    @pytest.mark.parametrize("labels", [[3, None, 1], [3.0, float("nan"), 1.0], ["3", "", "1"]])
    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_missing_labels_are_not_a_class(self, suffix: str, labels: list[float | str | None], tmp_path: Path) -> None:
        path = tmp_path / f"a.{suffix}"
        rows = [{"image": f"{n}.png", "label": label} for n, label in enumerate(labels)]
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            write(path, "\n".join(map(json.dumps, rows)))
        source = opened(path)
        assert present(source.labels).tolist() == [1, -1, 0]
        assert source.class_names == ["1", "3"]

    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_labels_that_are_lists(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"a.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.table({"image": ["a"], "label": [[1, 2]]}), path)
        else:
            write(path, '{"image": "a", "label": [1, 2]}')
        with pytest.raises(UserError, match=r"label.* a label is one text or number"):
            opened(path)

    @pytest.mark.parametrize("cell", ["true", "[[1]]", '{"url": "x"}', "3"])
    def test_an_invalid_image(self, cell: str, tmp_path: Path) -> None:
        source = opened(write(tmp_path / "a.jsonl", f'{{"image": "a", "text": "b"}}\n{{"image": {cell}, "text": "b"}}'))
        assert source[0].check()
        with pytest.raises(UserError, match=r"a\.jsonl, row 2: its (image is of type|cell of images)"):
            source[1].check()

    def test_paths_of_one_image(self, tmp_path: Path) -> None:
        paths = ["a.jpg", "./a.jpg", "sub/a.jpg", "sub//a.jpg", "./sub/./a.jpg", ".a.jpg", "a./b.jpg"]
        source = opened(write(tmp_path / "a.csv", "image,caption\n" + "".join(f"{p},{n}\n" for n, p in enumerate(paths))))
        assert [captions for _, captions in samples(source)] == [("0", "1"), ("2", "3", "4"), ("5",), ("6",)]
        assert source[1].image == str(tmp_path / "sub" / "a.jpg")

    def test_images_by_url(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"names its images by URL \(http://x.org/a.jpg\); download them"):
            opened(write(tmp_path / "a.csv", "image,caption\nhttp://x.org/a.jpg,b\n"))


class TestImagesAlone:
    @pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
    def test_are_samples(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"a.{suffix}"
        rows = [{"image": name} for name in ("a.png", "b.png", "a.png")]
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif suffix == "jsonl":
            write(path, "\n".join(map(json.dumps, rows)))
        else:
            write(path, "image\na.png\nb.png\na.png\n")
        source = opened(path)
        assert samples(source) == [("a.png", ()), ("b.png", ())]
        assert source.labels is None
        assert source.class_names is None

    def test_are_trained_on_and_embedded_alike(self, tmp_path: Path) -> None:
        """Two views of the same images, and their embeddings, whatever lists or holds them."""
        folder = tmp_path / "photos"
        folder.mkdir()
        files = [write(folder / f"{number}.png", encoded_image(number)) for number in range(6)]
        names, contents = [file.name for file in files], [file.read_bytes() for file in files]
        write(folder / "a.csv", "\n".join(["image", *names]))
        write(folder / "a.jsonl", "\n".join(json.dumps({"image": name}) for name in names))
        pq.write_table(pa.table({"image": names}), folder / "paths.parquet")
        pq.write_table(pa.table({"image": contents}), folder / "encoded.parquet")
        images = {"image": [{"bytes": content, "path": None} for content in contents]}
        datasets.Dataset.from_dict(images, datasets.Features({"image": datasets.Image()})).save_to_disk(folder / "set")
        write_tar(folder / "a.tar", dict(zip(names, contents, strict=True)))
        views, model = {"one": "image", "other": "image"}, PatternModel()
        expected = None
        for name in ("a.csv", "a.jsonl", "paths.parquet", "encoded.parquet", "set", "a.tar"):
            source = open_source("auto", str(folder / name), str(tmp_path / "root"))
            made = rows_of(batches(source, 4, views=views)[1]), model.encode_image(source).tobytes()
            expected = expected or made
            assert made == expected

    def test_unused_columns_are_reported(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").touch()
        source = opened(write(tmp_path / "a.csv", "image,words\na.png,one\n"))
        assert source.warnings == ["1 of 2 columns used; not used: 1 other (words)"]
        rows = ["a.png,one", "b.png,two", "b.png,", ",three", "./a.png,four", f"{'c' * 999},five"]
        source = opened(write(tmp_path / "a.csv", "\n".join(["image,text", *rows])))
        assert source.warnings == [
            "2 of 6 rows used; not used: 2 without file (row 2, row 6), 1 without image (row 4), 1 without caption (row 3)"
        ]


class TestNumberedCaptions:
    @pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
    @pytest.mark.parametrize(
        "columns",
        [
            ["caption_0", "caption_1", "caption_2"],
            ["caption", "caption1", "caption2"],
            ["Sentence 9", "Sentence 10", "Sentence 11"],
        ],
        ids=str,
    )
    def test_are_those_of_one_image(self, columns: list[str], name: str, tmp_path: Path) -> None:
        rows: list[dict[str, Any]] = [{"image": "0.png"}, {"image": "1.png"}]
        for row, cells in zip(rows, (("a", "b", "c"), ("d", "", "e")), strict=True):
            row |= dict(zip(columns, cells, strict=True))
        path, separator = tmp_path / name, "\t" if name == "a.tsv" else ","
        if name == "a.parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif name == "a.jsonl":
            write(path, "\n".join(map(json.dumps, rows)))
        else:
            write(path, "\n".join(separator.join(cells) for cells in [list(rows[0]), *(row.values() for row in rows)]))
        source = opened(path)
        assert samples(source) == [("0.png", ("a", "b", "c")), ("1.png", ("d", "e"))]
        assert source.usage[0].to_text() == "4 of 4 columns used"
        assert opened(path, caption_column=columns[1])[0].captions == ("b",)
        for image in ("0.png", "1.png"):
            (tmp_path / image).write_bytes(encoded_image(int(image[0])))
        path.rename(tmp_path / f"captions{path.suffix}")
        if name != "a.parquet":
            assert [sample[1] for sample in samples(open_source("auto", str(tmp_path)))] == [("a", "b", "c"), ("d", "e")]

    def test_a_pair_of_sentences_without_an_image_stays_one(self, tmp_path: Path) -> None:
        source = opened(write(tmp_path / "a.csv", "sentence1,sentence2,score\na,b,1\nc,d,2\n"))
        assert [(sample.captions, sample.positives) for sample in map(source.__getitem__, range(2))] == [
            (("a",), ("b",)),
            (("c",), ("d",)),
        ]
