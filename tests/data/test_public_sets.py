"""Datasets in their published form: their files are read, or the error explains how to make them readable."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmcl.cli.main import main
from mmcl.data.open import guess_source, open_source
from mmcl.data.source import Source
from mmcl.data.sources.torchvision import known_copy
from mmcl.errors import UserError
from tests.data.test_tables import encoded_image

FLICKR = "".join(f"{number}.jpg#{k}\tcaption {k} of {number}\n" for number in range(2) for k in range(2))


def folder(place: Path, **files: str) -> Path:
    """Two images in photos/, and files by paths in which "__" is a slash and "_DOT_" a dot."""
    for number in range(2):
        (place / "photos").mkdir(parents=True, exist_ok=True)
        (place / "photos" / f"{number}.jpg").write_bytes(encoded_image(number))
    for name, content in files.items():
        path = place / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return place


def captions(source: Source) -> list[tuple[str, ...]]:
    return [source[index].captions for index in range(len(source))]


class TestCaptionsInAFolderOfTheirOwn:
    @pytest.mark.parametrize(
        "name", ["Flickr8k_text__Flickr8k_DOT_token_DOT_txt", "texts__captions_DOT_token", "a__b_DOT_token"]
    )
    def test_are_read(self, name: str, tmp_path: Path) -> None:
        source = open_source("auto", str(folder(tmp_path, **{name: FLICKR})))
        assert captions(source) == [(f"caption 0 of {number}", f"caption 1 of {number}") for number in range(2)]
        assert not source.warnings

    def test_lemmas_are_not_captions(self, tmp_path: Path) -> None:
        files = {f"text__Flickr8k_DOT_{kind}token_DOT_txt": FLICKR.replace("caption", kind) for kind in ("", "lemma_DOT_")}
        assert captions(open_source("auto", str(folder(tmp_path, **files))))[0] == (" 0 of 0", " 1 of 0")

    def test_in_a_folder_of_images_describe_these_alone(self, tmp_path: Path) -> None:
        place = folder(tmp_path, more__captions_DOT_csv="image,caption\n0.jpg,a text\n")
        (place / "more" / "0.jpg").write_bytes(encoded_image(5))
        with pytest.raises(UserError, match=r"describe a part of its images|more/captions"):
            open_source("auto", str(place))


class TestFilesThatMayDescribeTheImages:
    @pytest.mark.parametrize("name", ["regions.json", "labels.csv", "list.tsv", "sub/rows.jsonl"])
    def test_are_named_with_the_argument(self, name: str, tmp_path: Path) -> None:
        place = folder(tmp_path)
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("[]")
        (note,) = [line for line in open_source("auto", str(place)).notes if name in line]
        assert f'--args "{{captions: {name}}}"' in note

    def test_not_where_captions_or_labels_are_found(self, tmp_path: Path) -> None:
        place = folder(tmp_path, data_DOT_json="[]", photos__0_DOT_txt="a text")
        assert not open_source("auto", str(place)).notes
        classes = tmp_path / "classes"
        for number, name in enumerate("ab"):
            (classes / name).mkdir(parents=True)
            (classes / name / "0.jpg").write_bytes(encoded_image(number))
        (classes / "images.json").write_text("[]")
        assert not open_source("auto", str(classes)).notes

    def test_nor_records_of_single_images(self, tmp_path: Path) -> None:
        records = {f"photos__{number}_DOT_json": '{"shapes": []}' for number in range(2)}
        assert not any("captions" in note for note in open_source("auto", str(folder(tmp_path, **records))).notes)

    def test_nor_the_file_that_was_chosen(self, tmp_path: Path) -> None:
        rows = [{"image": f"{n}.jpg", "conversations": [{"value": "a text"}]} for n in range(2)]
        source = open_source("folder", str(folder(tmp_path, llava_DOT_json=json.dumps(rows))), args={"captions": "llava.json"})
        (note,) = source.notes
        assert note.startswith("llava.json names images and has no captions")

    def test_karpathys_file_is_read_when_chosen(self, tmp_path: Path) -> None:
        images = [{"filename": f"{n}.jpg", "sentences": [{"raw": f"text {n}", "tokens": []}]} for n in range(2)]
        place = folder(tmp_path, dataset_DOT_json=json.dumps({"images": images, "dataset": "flickr8k"}))
        source = open_source("folder", str(place), args={"captions": "dataset.json"})
        assert captions(source) == [("text 0",), ("text 1",)]


class TestImagesByUrl:
    COMMAND = "img2dataset --url_list {} --input_format {} --url_col {} --caption_col {} --output_format webdataset"

    @pytest.mark.parametrize(
        "column", ["URL", "url", "image_url", "img url", "coco_url", "picture_url", "photo_url", "thumbnail_link"]
    )
    @pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
    def test_texts_alone_are_reported_with_the_command(self, column: str, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"a.{suffix}"
        rows = [{column: f"https://x.org/{n}.jpg", "TEXT": f"text {n}", "WIDTH": n} for n in range(2)]
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif suffix == "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        else:
            mark = "," if suffix == "csv" else "\t"
            path.write_text(
                "\n".join(mark.join(map(str, row)) for row in ((column, "TEXT", "WIDTH"), *(r.values() for r in rows)))
            )
        source = open_source("auto", str(path))
        (note,) = source.notes
        assert note in source.warnings
        assert self.COMMAND.format(path, suffix, column, "TEXT") in note
        with pytest.raises(UserError, match=r"names its images by URL .* img2dataset --url_list"):
            open_source("table", str(path), args={"image_column": column})

    @pytest.mark.parametrize("cell", ["", "a.html", "not given"])
    def test_other_cells_and_columns_cause_no_message(self, cell: str, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text(f"url,page_url,text\n{cell},https://x.org,one\n{cell},https://x.org,two\n")
        assert not open_source("auto", str(tmp_path / "a.csv")).notes

    def test_of_other_captions_and_without_a_header(self, tmp_path: Path) -> None:
        (tmp_path / "wit.tsv").write_text("page_url\timage_url\tcaption_reference_description\nhttp://x\thttp://x/a.jpg\tone\n")
        with pytest.raises(UserError, match=r"Its columns are .*--input_format tsv --url_col image_url"):
            open_source("auto", str(tmp_path / "wit.tsv"))
        (tmp_path / "cc12m.tsv").write_text("http://x.org/a.jpg\tone\nhttp://x.org/b.jpg\ttwo\n")
        with pytest.raises(UserError, match=r"write a first line .*--url_col url --caption_col caption"):
            open_source("auto", str(tmp_path / "cc12m.tsv"))


class TestFilesOfTorchvision:
    @pytest.mark.parametrize(
        ("file", "name", "root"),
        [
            ("d/cifar-10-batches-py/data_batch_1", "CIFAR10", "d"),
            ("cifar-10-batches-py/batches.meta", "CIFAR10", "."),
            ("/d/e/cifar-100-python/train", "CIFAR100", "/d/e"),
            ("./d/stl10_binary/train_X.bin", "STL10", "d"),
            ("d/train_32x32.mat", "SVHN", "d"),
            ("d/KMNIST/raw/t10k-labels-idx1-ubyte.gz", "KMNIST", "d"),
            ("d/train-images-idx3-ubyte", "MNIST", "..."),
            ("d/data_batch_1", None, None),
            ("d/train", None, None),
        ],
    )
    def test_are_known_by_their_paths(self, file: str, name: str | None, root: str | None) -> None:
        line = known_copy(["d/readme.txt", file])
        assert line is None if name is None else f'"{{dataset: {name}}}" --root {root}' in str(line)

    def test_the_command_reads_them(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        raw = tmp_path / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for part in ("train", "t10k"):
            pixels = np.zeros((3, 28, 28), np.uint8)
            (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, *pixels.shape) + pixels.tobytes())
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 3) + bytes([0, 1, 2]))
        with pytest.raises(UserError, match="dataset: MNIST") as error:
            guess_source(str(tmp_path))
        assert str(error.value).endswith(f"--root {tmp_path}")
        assert main(["data", "verify", "torchvision", "--args", "{dataset: MNIST}", "--root", str(tmp_path)]) == 0
        assert "3 samples, 0 findings" in capsys.readouterr().out

    def test_a_folder_of_pickles_names_its_source(self, tmp_path: Path) -> None:
        (tmp_path / "cifar-10-batches-py").mkdir()
        batch: dict[bytes, Any] = {b"data": np.zeros((1, 3072), np.uint8), b"labels": [0]}
        (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(batch))
        for place in (tmp_path, tmp_path / "cifar-10-batches-py"):
            with pytest.raises(UserError, match=rf"dataset: CIFAR10.* --root {tmp_path}$"):
                open_source("auto", str(place))
