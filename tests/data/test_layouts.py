"""Common folder layouts: each is read as intended, or an ambiguity is reported; unused files are reported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmcl.data.open import guess_source, open_source
from mmcl.errors import UserError
from tests.data.folders import classes, images, read, write
from tests.data.tars import pairs, picture, write_tar


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


def coco(*names: str) -> str:
    """COCO's captions, two of every image, those of one not together."""
    annotations = [{"image_id": 9 - i, "id": i, "caption": f"{name} {n}"} for n in "12" for i, name in enumerate(names)]
    return json.dumps(
        {"images": [{"id": 9 - i, "file_name": name} for i, name in enumerate(names)], "annotations": annotations}
    )


class TestSplits:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        names = [f"{split}/{kind}/{n}.png" for split in ("train", "val") for kind in ("cat", "dog") for n in "12"]
        return write(tmp_path / "pets", images(*names))

    @pytest.mark.parametrize(
        "splits", [("train", "val"), ("Training", "Test"), ("train2017", "val2017"), ("dev", "test", "train")]
    )
    @pytest.mark.parametrize("around", ["", "images/"])
    def test_one_is_asked_for_by_name(self, splits: tuple[str, ...], around: str, tmp_path: Path) -> None:
        write(tmp_path / "all", images(*(f"{around}{split}/{n}.png" for split in splits for n in "12")))
        with pytest.raises(UserError, match=rf"has the splits {', '.join(sorted(splits))}; choose one by .*split: ") as error:
            open_source("auto", str(tmp_path / "all"))
        assert "\n" not in str(error.value)
        assert list(read(tmp_path / "all", split=splits[0])) == [f"{around}{splits[0]}/{n}.png" for n in "12"]

    def test_classes_are_those_of_the_split(self, folder: Path) -> None:
        for split, length in (("train", 4), ("val", 4), ("all", 8)):
            source = open_source("auto", str(folder), None, {"split": split})
            assert classes(source) == ["cat", "cat", "dog", "dog"] * (length // 4)
            assert list(source.warnings) == [], "the other splits are not part of what was asked for"
        write(folder, {"train.csv": "id\n1\n"})
        (line,) = open_source("auto", str(folder), None, {"split": "train"}).warnings
        assert line == "4 of 5 files used; not used: 1 .csv (train.csv)"
        with pytest.raises(UserError, match="no images of a split 'trian'; it has train, val"):
            open_source("auto", str(folder), None, {"split": "trian"})

    @pytest.mark.parametrize("names", [("train", "val"), ("2019", "2020")])
    def test_captions_of_a_part_do_not_vanish_where_parts_are_read_together(
        self, names: tuple[str, str], tmp_path: Path
    ) -> None:
        rows = {f"{name}/metadata.csv": "file_name,text\n1.png,one\n" for name in names}
        write(tmp_path / "a", images(*(f"{name}/{n}.png" for name in names for n in "12")) | rows)
        with pytest.raises(UserError, match=rf"{names[0]}/metadata.csv and {names[1]}/metadata.csv describe a part .*give one"):
            read(tmp_path / "a", split="all")
        assert read(tmp_path / "a" / names[0]) == {"1.png": ("one",)}

    def test_a_lone_split_is_entered(self, tmp_path: Path) -> None:
        source = open_source("auto", str(write(tmp_path / "pets", images("train/cat/1.png", "train/dog/1.png"))))
        assert classes(source) == ["cat", "dog"]

    def test_a_class_may_be_called_like_a_split(self, tmp_path: Path) -> None:
        source = open_source("auto", str(write(tmp_path / "vehicles", images("bus/1.png", "train/1.png"))))
        assert classes(source) == ["bus", "train"]

    def test_each_with_a_captions_file(self, tmp_path: Path) -> None:
        files = images("train/a.png", "test/a.png")
        for split in ("train", "test"):
            files[f"{split}/metadata.csv"] = f"file_name,text\na.png,of {split}\n"
        write(tmp_path / "all", files)
        with pytest.raises(UserError, match="has the splits test, train"):
            open_source("auto", str(tmp_path / "all"))
        assert read(tmp_path / "all", split="test") == {"test/a.png": ("of test",)}

    def test_one_captions_file_for_all(self, tmp_path: Path) -> None:
        files = images("train/a.png", "test/b.png") | {"metadata.csv": "file_name,text\ntrain/a.png,one\ntest/b.png,two\n"}
        write(tmp_path / "all", files)
        assert read(tmp_path / "all") == {"train/a.png": ("one",), "test/b.png": ("two",)}
        assert read(tmp_path / "all", split="test") == {"test/b.png": ("two",)}

    def test_a_captions_file_of_each_beside_their_images(self, tmp_path: Path) -> None:
        files = {"captions_train.csv": "image,caption\na.png,one\n", "captions_val.csv": "image,caption\nb.png,two\n"}
        write(tmp_path / "all", images("images/a.png", "images/b.png") | files)
        with pytest.raises(UserError, match=r"both captions_train\.csv and captions_val\.csv describe its images; choose"):
            open_source("auto", str(tmp_path / "all"))
        assert read(tmp_path / "all", split="val") == {"images/b.png": ("two",)}
        assert read(tmp_path / "all", captions="captions_train.csv") == {"images/a.png": ("one",)}


class TestWhatIsMeant:
    def test_parquet_and_not_the_logo_beside_it(self, tmp_path: Path) -> None:
        rows = [{"image": picture(n), "caption": f"gray {n}"} for n in range(4)]
        folder = write(
            tmp_path / "hub", {"data/train-0.parquet": parquet(rows)} | images("assets/logo.png") | {"README.md": "#"}
        )
        source = open_source("auto", str(folder), str(tmp_path / "root"))
        assert [source[i].captions for i in range(4)] == [(f"gray {n}",) for n in range(4)]
        assert source.warnings[0] == "1 of 2 files used; not used: 1 .png (assets/logo.png)"

    def test_many_images_and_not_a_small_table_beside_them(self, tmp_path: Path) -> None:
        names = [f"{n}.png" for n in range(30)]
        assert guess_source(str(write(tmp_path / "a", images(*names) | {"sizes.parquet": parquet([{"n": 1}])}))) == "folder"

    def test_the_captions_file_and_not_the_archive_of_the_images(self, tmp_path: Path) -> None:
        folder = write(
            tmp_path / "all", images("images/a.png", "images/b.png") | {"captions.csv": "image,caption\na.png,one\n"}
        )
        write_tar(folder / "images.tar", {"a.png": picture(), "b.png": picture()})
        source = open_source("auto", str(folder))
        assert [source[i].captions for i in range(len(source))] == [("one",)]
        assert source.usage[0].to_text() == (
            "2 of 4 files used; not used: 1 not in captions.csv (images/b.png), 1 .tar (images.tar)"
        )

    @pytest.mark.parametrize("archive", ["images.tar", "images.tar.gz"])
    def test_the_images_and_not_the_archive_that_they_came_in(self, archive: str, tmp_path: Path) -> None:
        folder = write(tmp_path / "all", images("images/cat/1.png", "images/dog/1.png") | {archive: b"packed"})
        assert classes(open_source("auto", str(folder))) == ["cat", "dog"]

    def test_shards_and_not_a_few_images_beside_them(self, tmp_path: Path) -> None:
        write_tar(write(tmp_path / "all", images("logo.png")) / "00000.tar", pairs(0, 3))
        source = open_source("auto", str(tmp_path / "all"), str(tmp_path / "root"))
        assert len(source) == 3
        assert [usage.to_text() for usage in source.usage] == [
            "1 of 2 files used; not used: 1 .png (logo.png)",
            "6 of 6 members used",
        ]

    @pytest.mark.parametrize("path", ["", "data", "data/train"])
    def test_shards_anywhere_below(self, path: str, tmp_path: Path) -> None:
        write_tar(tmp_path / "all/data/train/0.tar", pairs(0, 3))
        assert len(open_source("auto", str(tmp_path / "all" / path), str(tmp_path / "root"))) == 3

    def test_a_split_of_shards(self, tmp_path: Path) -> None:
        for split in ("train", "test"):
            write_tar(tmp_path / "all" / split / "0.TAR", {f"{split}.png": picture()})
        assert len(open_source("auto", str(tmp_path / "all"), str(tmp_path), {"split": "test"})) == 1
        with pytest.raises(UserError, match="has shards in test, train; set `split`"):
            open_source("auto", str(tmp_path / "all"), str(tmp_path))

    @pytest.mark.parametrize("name", ["0.tar.gz", "0.tgz"])
    def test_compressed_shards_say_how_to_unpack_them(self, name: str, tmp_path: Path) -> None:
        write(tmp_path / "all", {name: b"\x1f\x8b"})
        for path in (tmp_path / "all", tmp_path / "all" / name):
            with pytest.raises(UserError, match=rf"{name}: is compressed, .*gunzip"):
                open_source("auto", str(path), str(tmp_path))

    @pytest.mark.parametrize(
        "name", ["metadata.parquet", "metadata.csv", "Captions.CSV", "captions_v2.jsonl", "images/metadata.tsv"]
    )
    def test_a_captions_file_of_any_kind_and_case(self, name: str, tmp_path: Path) -> None:
        rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "b.png", "text": "two"}]
        separator = "\t" if name.endswith("tsv") else ","
        table = "".join(separator.join(line) + "\n" for line in [rows[0], *(row.values() for row in rows)])
        content: dict[str, str | bytes] = {".parquet": parquet(rows), ".jsonl": "".join(json.dumps(row) + "\n" for row in rows)}
        write(tmp_path / "all", images("images/a.png", "images/b.png") | {name: content.get(Path(name).suffix, table)})
        assert read(tmp_path / "all") == {"images/a.png": ("one",), "images/b.png": ("two",)}

    def test_the_files_output_of_img2dataset(self, tmp_path: Path) -> None:
        files: dict[str, str | bytes] = {}
        for part in ("00000", "00001"):
            files |= images(f"{part}/{part}0.jpg", f"{part}/{part}1.jpg")
            files |= {f"{part}/{part}{n}.txt": f"caption {n}" for n in "01"}
            files |= {f"{part}/{part}{n}.json": json.dumps({"caption": "another", "url": "u"}) for n in "01"}
            files |= {f"{part}.parquet": parquet([{"url": "u", "caption": "c"}] * 2), f"{part}_stats.json": '{"count": 2}'}
        source = open_source("auto", str(write(tmp_path / "laion", files)))
        assert [source[i].captions for i in range(4)] == [("caption 0",), ("caption 1",)] * 2
        assert source.class_names is None
        assert "8 of 16 files used; not used: 6 .json" in source.usage[0].to_text()

    def test_numbered_class_folders_without_captions_are_classes(self, tmp_path: Path) -> None:
        assert classes(open_source("auto", str(write(tmp_path / "a", images("00000/a.png", "00001/a.png"))))) == [
            "00000",
            "00001",
        ]

    def test_a_captions_file_may_hold_labels(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "a", images("1.png", "2.png") | {"metadata.csv": "file_name,label\n1.png,dog\n2.png,cat\n"})
        assert classes(open_source("auto", str(folder))) == ["dog", "cat"]

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (("cat/1.png", "dog/1.png", "cover.png"), r"no labels: 1 of 3 images in no subfolder \(cover\.png\)"),
            (("cat/1.png", "cat/2.png"), "no labels: all images are in one folder, cat/"),
            (("1.png", "2.png"), None),
            (("cat/1.png", "dog/a/1.png"), None),
            (("images/1.png", "masks/1.png"), "no labels: images/ beside masks/ is not a class; .* give images/"),
            (("Annotations/trimaps/1.png", "JPEGImages/1.jpg", "x/1.jpg"), "no labels: JPEGImages/ beside Annotations/"),
            (("maskss/1.png", "imagery/1.png"), None),
        ],
    )
    def test_labels_do_not_vanish_silently(self, names: tuple[str, ...], said: str | None, tmp_path: Path) -> None:
        warnings = list(open_source("auto", str(write(tmp_path / "a", images(*names)))).warnings)
        assert len(warnings) == (said is not None)
        assert said is None or re.search(said, warnings[0])


class TestFlickr:
    def test_captions_in_a_text_file_with_a_header(self, tmp_path: Path) -> None:
        write(
            tmp_path / "a",
            images("Images/a.jpg", "Images/b.jpg") | {"captions.txt": 'image,caption\na.jpg,"one, two"\nb.jpg,x\n'},
        )
        assert read(tmp_path / "a") == {"Images/a.jpg": ("one, two",), "Images/b.jpg": ("x",)}
        write(tmp_path / "a", {"captions.txt": "image,caption\na.jpg,one, two\n"})
        with pytest.raises(UserError, match=r"captions\.txt, line 2"):
            read(tmp_path / "a")

    @pytest.mark.parametrize("place", ["", "flickr30k_images/"])
    def test_results_csv(self, place: str, tmp_path: Path) -> None:
        rows = "image_name| comment_number| comment\na.jpg| 0| one\na.jpg| 1| two\nb.jpg| 0| three\n"
        names = ("flickr30k_images/a.jpg", "flickr30k_images/b.jpg")
        write(tmp_path / "a", images(*names) | {f"{place}results.csv": rows})
        assert read(tmp_path / "a") == dict(zip(names, [("one", "two"), ("three",)], strict=True))

    @pytest.mark.parametrize("name", ["Flickr8k.token.txt", "results_20130124.token"])
    def test_token_files(self, name: str, tmp_path: Path) -> None:
        write(tmp_path / "a", images("a.jpg", "b#1.jpg") | {name: "a.jpg#0\tone, 2\na.jpg#1\ttwo\nb#1.jpg#0\tthree\n\n"})
        assert read(tmp_path / "a") == {"a.jpg": ("one, 2", "two"), "b#1.jpg": ("three",)}
        write(tmp_path / "a", {name: "a.jpg#0\tone\nb.jpg two\n"})
        with pytest.raises(UserError, match=f"{name}, line 2: must be an image"):
            read(tmp_path / "a")

    @pytest.mark.parametrize("name", ["results.csv", "captions.txt", "my.token.txt"])
    def test_other_files_of_such_names_are_ignored(self, name: str, tmp_path: Path) -> None:
        folder = write(tmp_path / "a", images("a.jpg") | {name: "epoch,train/loss\n0,1.5\n"})
        source = open_source("auto", str(folder))
        assert f"1 {Path(name).suffix} ({name})" in source.usage[0].to_text()
        assert source[0].captions == ()


class TestCoco:
    def test_captions_in_the_annotations_beside_the_images(self, tmp_path: Path) -> None:
        files = images("train2017/0.jpg", "train2017/1.jpg", "val2017/2.jpg")
        files |= {"annotations/captions_train2017.json": coco("0.jpg", "1.jpg"), "annotations/instances_train2017.json": "{}"}
        write(tmp_path / "coco", files)
        expected = {"train2017/0.jpg": ("0.jpg 1", "0.jpg 2"), "train2017/1.jpg": ("1.jpg 1", "1.jpg 2")}
        assert read(tmp_path / "coco") == expected
        write(tmp_path / "coco", {"annotations/captions_val2017.json": coco("2.jpg")})
        with pytest.raises(UserError, match=r"both annotations/captions_train2017\.json and annotations/captions_val2017"):
            read(tmp_path / "coco")
        for split in ("train", "train2017"):
            assert read(tmp_path / "coco", split=split) == expected

    @pytest.mark.parametrize("place", ["annotations/", ""])
    def test_captions_above_the_folder_of_images(self, place: str, tmp_path: Path) -> None:
        write(tmp_path, images("val2017/2.jpg") | {f"{place}captions_val2017.json": coco("2.jpg")})
        assert read(tmp_path / "val2017") == {"2.jpg": ("2.jpg 1", "2.jpg 2")}

    @pytest.mark.parametrize(
        "content",
        ['[{"image": "a.png", "caption": "one"}]', '{"a.png": "one"}', '{"a.png": ["one"]}'],
    )
    def test_other_json(self, content: str, tmp_path: Path) -> None:
        write(tmp_path / "a", images("a.png") | {"captions.json": content})
        assert read(tmp_path / "a") == {"a.png": ("one",)}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "is not JSON"),
            ("[" * 100_000, "is not JSON"),
            ('{"annotations": [{"image_id": 1, "bbox": []}], "images": [{"id": 1, "file_name": "a.png"}]}', "neither COCO"),
            ('{"annotations": []}', "neither COCO"),
            ('{"a.png": 3}', "neither COCO"),
            ("3", "neither COCO"),
            ("[3]", "neither COCO|which column"),
            ("{}", "has no rows"),
        ],
    )
    def test_json_of_another_kind(self, content: str, message: str, tmp_path: Path) -> None:
        write(tmp_path / "a", images("a.png") | {"captions.json": content})
        with pytest.raises(UserError, match=message):
            read(tmp_path / "a")


class TestFilesThatAreNotData:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("a.jpg", "is one image; give the folder it is in"),
            ("captions_val2017.json", "give their folder, and this file as `captions`"),
            ("images.zip", "is packed; unpack it"),
            ("captions.csv.gz", "is packed; unpack it"),
            ("pairs.xlsx", r"save it as \.csv"),
            ("pairs.feather", r"save it as \.parquet"),
            ("pairs.arrow", "give the folder it is in"),
            ("a.heic", "convert it to"),
            ("a.mp4", "save frames as images"),
            ("a.pkl", r"where you trust it, save it as \.parquet"),
            ("a.h5", r"as \.png or \.npy"),
            ("pairs.json", r"as \.jsonl, one a line"),
        ],
    )
    def test_say_what_to_give_instead(self, name: str, message: str, tmp_path: Path) -> None:
        write(tmp_path, {name: b"x"})
        with pytest.raises(UserError, match=message):
            guess_source(str(tmp_path / name))

    def test_an_empty_folder_and_an_empty_path(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="is empty; give a folder or a table"):
            guess_source(str(tmp_path))
        for name in ("auto", "folder", "table", "webdataset"):
            with pytest.raises(UserError, match="needs a path"):
                open_source(name, "")

    def test_the_home_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(write(tmp_path, images("a/1.png"))))
        assert open_source("auto", "~/a").places == (f"{tmp_path}/a/",)

    def test_a_folder_of_tables_alone(self, tmp_path: Path) -> None:
        write(tmp_path / "a", {"pairs.csv": "image,caption\n", "notes.md": ""})
        with pytest.raises(
            UserError, match=r"only 1 \.md \(notes\.md\), 1 \.csv .* give the table itself, e\.g\. .*a/pairs\.csv"
        ):
            guess_source(str(tmp_path / "a"))
