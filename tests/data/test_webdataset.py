"""Tar shards: all their samples in any layout, and a clear error for everything that is broken."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmcl.data.open import guess_source, open_source
from mmcl.data.sample import Sample
from mmcl.data.source import Source
from mmcl.data.sources.shards.paths import expand_braces, find_shards
from mmcl.data.sources.shards.source import WebDatasetSource
from mmcl.errors import UserError
from mmcl.files.byte_range import FilePart, LocalFile
from tests.data.files import decoded
from tests.data.tars import HEIGHT, WIDTH, pairs, picture, write_tar
from tests.narrow import present


def open_tar(path: str | Path, tmp_path: Path, **args: Any) -> WebDatasetSource:
    source = open_source("webdataset", str(path), str(tmp_path / "root"), args)
    assert isinstance(source, WebDatasetSource)
    return source


def samples(source: Source) -> list[Sample]:
    return [source[index] for index in range(len(source))]


class TestSamples:
    def test_images_and_captions_of_several_shards(self, tmp_path: Path) -> None:
        for number in range(3):
            write_tar(tmp_path / f"{number:05}.tar", pairs(4 * number, 4 * number + 4))
        source = open_tar(tmp_path / "{00000..00002}.tar", tmp_path)
        for number, sample in enumerate(samples(source)):
            assert sample.captions == (f"gray {number}", f"the gray of {number}")
            assert sample.name == f"{tmp_path}/{number // 4:05}.tar, {number:04}"
            image = decoded(sample)
            assert image.size == (WIDTH, HEIGHT)
            assert image.getpixel((0, 0)) == number
        assert len(source) == 12
        assert source.labels is None
        assert list(source.warnings) == []

    def test_members_in_any_order(self, tmp_path: Path) -> None:
        members = pairs(0, 3)
        write_tar(tmp_path / "a.tar", sorted(members.items(), key=lambda item: item[0][::-1]))
        source = open_tar(tmp_path / "a.tar", tmp_path)
        assert sorted(sample.captions[0] for sample in samples(source)) == ["gray 0", "gray 1", "gray 2"]
        assert all(decoded(s).getpixel((0, 0)) == int(s.captions[0].split()[1]) for s in samples(source))

    def test_captions_in_json(self, tmp_path: Path) -> None:
        records = [{"caption": "one", "status": "success"}, {"text": ["two", "three"]}, {"alt": "four", "caption": None}]
        write_tar(tmp_path / "a.tar", {f"{i}.json": json.dumps(record).encode() for i, record in enumerate(records)})
        captions = [sample.captions for sample in samples(open_tar(tmp_path / "a.tar", tmp_path))]
        assert captions == [("one",), ("two", "three"), ()]
        captions = [sample.captions for sample in samples(open_tar(tmp_path / "a.tar", tmp_path, fields=["alt", "text"]))]
        assert captions == [(), ("two", "three"), ("four",)]

    @pytest.mark.parametrize("order", [1, -1])
    def test_the_text_file_wins_unless_fields_are_asked_for(self, order: int, tmp_path: Path) -> None:
        members = [("a.txt", b"short"), ("a.json", b'{"caption": "long"}'), ("a.jpg", picture())][::order]
        write_tar(tmp_path / "a.tar", members)
        assert open_tar(tmp_path / "a.tar", tmp_path)[0].captions == ("short",)
        assert open_tar(tmp_path / "a.tar", tmp_path, fields=["caption"])[0].captions == ("long",)

    def test_names_are_keys_and_never_paths(self, tmp_path: Path) -> None:
        hostile = tmp_path / "outside.png"
        names = [f"{hostile}", "../../outside.png", "./plain.png", "sub/deep.PNG", "\udcff.png"]
        write_tar(tmp_path / "a.tar", {name: picture(number) for number, name in enumerate(names)})
        source = open_tar(tmp_path / "a.tar", tmp_path)
        keys = [sample.name.split(", ")[1] for sample in samples(source)]
        assert keys == [str(hostile.with_suffix("")), "../../outside", "plain", "sub/deep", "\\udcff"]
        assert [decoded(sample).getpixel((0, 0)) for sample in samples(source)] == list(range(5))
        assert not hostile.exists()

    def test_members_that_are_not_samples_are_counted(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "a.tar", {"a.png": picture(), "a.npy": b"1", "._a.png": b"2", "README": b"3"})
        source = open_tar(tmp_path / "a.tar", tmp_path)
        assert len(source) == 1
        assert source.usage[0].to_text() == (
            "1 of 4 members used; not used: 1 .npy to name in a table (a.npy), 1 .png (._a.png), 1 without suffix (README)"
        )


class TestLayouts:
    def test_clip_benchmark(self, tmp_path: Path) -> None:
        for number in (0, 1, 10, 2):
            write_tar(
                tmp_path / "test" / f"{number}.tar", {f"s{number}.webp": picture(), f"s{number}.cls": str(number % 2).encode()}
            )
        (tmp_path / "test" / "nshards.txt").write_text("4\n")
        (tmp_path / "classnames.txt").write_text("cat\ndog\n")
        (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nart of a {c}.\n")
        source = open_source("auto", str(tmp_path), str(tmp_path / "root"))
        assert [sample.name.split(", ")[1] for sample in samples(source)] == ["s0", "s1", "s2", "s10"]
        assert present(source.labels).tolist() == [0, 1, 0, 0]
        assert source.class_names == ["cat", "dog"]
        assert source.templates == ["a photo of a {}.", "art of a {}."]
        (tmp_path / "classnames.txt").write_text("cat\n")
        with pytest.raises(UserError, match=r"classnames\.txt has 1 name, and a sample the class number 1"):
            open_tar(tmp_path, tmp_path)
        (tmp_path / "test" / "nshards.txt").write_text("5")
        with pytest.raises(UserError, match="says 5 shards, and 4 are there"):
            open_tar(tmp_path, tmp_path)

    def test_splits(self, tmp_path: Path) -> None:
        for split in ("train", "test"):
            write_tar(tmp_path / split / "0.tar", {f"{split}.png": picture()})
        assert open_tar(tmp_path, tmp_path, split="train")[0].name.endswith(", train")
        with pytest.raises(UserError, match="has shards in test, train; set `split`"):
            open_tar(tmp_path, tmp_path)
        with pytest.raises(UserError, match=r"val: no \.tar file in it"):
            open_tar(tmp_path, tmp_path, split="val")

    def test_img2dataset_says_what_it_wrote(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "00000.tar", pairs(0, 3))
        (tmp_path / "00000_stats.json").write_text(json.dumps({"count": 5, "successes": 3}))
        source = open_tar(path, tmp_path)
        assert (source.shards[0].facts.broken, source.shards[0].facts.failed) == (None, 2)
        write_tar(path, pairs(0, 2))
        assert "has 2 samples, and img2dataset wrote 3" in open_tar(path, tmp_path).warnings[0]

    def test_which_files_a_pattern_matches(self, tmp_path: Path) -> None:
        for name in ("a-1.tar", "a-10.tar", "a-2.tar", "b.tar"):
            write_tar(tmp_path / name, pairs(0, 1))

        def names(path: str) -> list[str]:
            return [Path(shard).name for shard in find_shards(str(tmp_path / path))]

        assert names("a-*.tar") == ["a-1.tar", "a-2.tar", "a-10.tar"]
        assert names("{b,a-2}.tar") == ["b.tar", "a-2.tar"]
        assert names(f"b.tar::{tmp_path}/a-[12].tar") == ["b.tar", "a-1.tar", "a-2.tar"]
        assert names(".") == ["a-1.tar", "a-2.tar", "a-10.tar", "b.tar"]
        assert list(expand_braces("x{08..10}{a,b}")) == ["x08a", "x08b", "x09a", "x09b", "x10a", "x10b"]
        for path in ("a-*.tar", "", "{b,a-2}.tar"):
            assert guess_source(f"{tmp_path}/{path}") == "webdataset"

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("a{0..3}.tar", r"a0\.tar: no such file \(4 of 4 shards are missing\)"),
            ("a*.tar", "no file matches"),
            ("a{0..9999999}.tar", "a range of 10,000,000 shards"),
            ("a{0.5}.tar", "neither a range"),
            ("b.tar::b.tar", r"names .*b\.tar twice"),
        ],
    )
    def test_files_that_are_not_there(self, path: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_tar(tmp_path / "b.tar", pairs(0, 1))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=message):
            open_tar(path, tmp_path)


class TestFaults:
    def test_a_class_number_beyond_all_classes_is_refused(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "a.tar", {"a.webp": picture(), "a.cls": b"1000000000000"})
        with pytest.raises(UserError, match="class number 1000000000000; number the classes from 0"):
            open_source("auto", str(tmp_path / "a.tar"), str(tmp_path / "root"))

    @pytest.mark.parametrize(
        ("members", "problem"),
        [
            ([("a.png", picture()), ("a.jpg", picture())], "two members of kind image"),
            ([("a.txt", b"1"), ("a.txt", b"2")], r"two members of kind \.txt"),
            ([("a.png", picture()), ("a.txt", b"\xff\xfe")], r"its \.txt cannot be read: .*utf-8"),
            ([("a.json", b"{")], r"its \.json cannot be read: Expecting"),
            ([("a.json", b"[" * 100_000)], r"its \.json cannot be read"),
            ([("a.json", b'{"caption": "\\ud800"}')], r"its \.json cannot be read: .*surrogates"),
            ([("a.json", b"[1]")], "it is not an object"),
            ([("a.json", b'{"caption": [{"a": 1}]}')], "a caption is of type dict, not a text"),
            ([("a.cls", b"cat")], "'cat' is not a class number"),
            ([("a.txt", b"x" * (2**20 + 1))], "more than the limit"),
        ],
    )
    def test_of_a_sample(self, members: list[tuple[str, bytes]], problem: str, tmp_path: Path) -> None:
        write_tar(tmp_path / "a.tar", [*members, *pairs(0, 2).items()])
        source = open_tar(tmp_path / "a.tar", tmp_path)
        assert len(source) == 3, "the others are whole, and it keeps its number"
        with pytest.raises(UserError, match=rf"a\.tar, a: .*{problem}"):
            source[0].check()
        assert source.warnings[0].endswith("1 broken; `mmcl data verify` lists them")
        assert source[1].check().captions

    def test_half_pairs_are_reported(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "a.tar", {**pairs(0, 2), "x.png": picture(), "y.txt": b"a text"})
        (warning,) = open_tar(tmp_path / "a.tar", tmp_path).warnings
        assert "of 4 samples in shards: 1 with no image, 1 with no caption;" in warning

    def test_of_a_shard(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "a.tar", pairs(0, 4))
        path.write_bytes(path.read_bytes()[: 512 * 12])
        write_tar(tmp_path / "b.tar", pairs(4, 6))
        source = open_tar(tmp_path, tmp_path)
        assert len(source) == 5
        assert "1 of 2 shards broken" in source.warnings[0]
        assert "a.tar ends at byte 6144 without the mark of an end" in source.warnings[0]
        path.write_bytes(b"<html>" * 300)
        with pytest.raises(UserError, match=r"no image or text in it: .*not a tar file"):
            open_tar(path, tmp_path)

    def test_a_shard_that_changes_under_a_run(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "a.tar", pairs(0, 2))
        source = open_tar(path, tmp_path)
        os.utime(path, ns=(1, 1))
        with pytest.raises(UserError, match="has changed since it was indexed"):
            decoded(source[0])

    def test_a_part_of_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"0123456789")
        file = LocalFile.find(str(path))
        assert FilePart(file, 3, 4).read() == b"3456"
        with pytest.raises(UserError, match="ends at byte 10"):
            FilePart(file, 8, 4).read()
        paths = [tmp_path / f"file{number}" for number in range(300)]  # more than are kept open
        for number, path in enumerate(paths):
            path.write_bytes(b"%06d" % number)
        parts = [FilePart(LocalFile.find(str(path)), 0, 6) for path in paths]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(FilePart.read, parts * 4)) == [b"%06d" % number for number in range(300)] * 4
        with pytest.raises(UserError, match="nowhere: cannot be read: No such file"):
            FilePart(LocalFile(str(tmp_path / "nowhere"), 1, "0"), 0, 1).read()


class TestIndex:
    def test_a_shard_is_scanned_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_tar(tmp_path / "a.tar", pairs(0, 4))
        before = open_tar(path, tmp_path)

        class ScannedError(Exception):
            pass

        def refuse(*args: Any) -> None:
            raise ScannedError

        monkeypatch.setattr("mmcl.data.sources.shards.index.members", refuse)
        assert samples(open_tar(path, tmp_path)) == samples(before)
        with pytest.raises(ScannedError):
            open_tar(path, tmp_path, fields=["caption"])
        os.utime(path, ns=(1, 1))
        with pytest.raises(ScannedError):
            open_tar(path, tmp_path)

    def test_a_damaged_index_is_rebuilt(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "a.tar", pairs(0, 4))
        expected = samples(open_tar(path, tmp_path))
        (index,) = (tmp_path / "root" / "index").glob("*.arrow")
        for spoilt in (b"", b"ARROW1\0\0" + b"x" * 99, index.read_bytes()[:-20]):
            index.write_bytes(spoilt)
            assert samples(open_tar(path, tmp_path)) == expected

    def test_the_fingerprint_belongs_to_the_content(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "a.tar", pairs(0, 4))
        copy = tmp_path / "copy" / "other.tar"
        copy.parent.mkdir()
        copy.write_bytes(path.read_bytes())
        fingerprint = open_tar(path, tmp_path).fingerprint
        assert open_tar(copy, tmp_path).fingerprint == fingerprint
        write_tar(copy, {**pairs(0, 4), "0000.txt": b"gray 1"})
        assert open_tar(copy, tmp_path).fingerprint != fingerprint

    def test_any_sizes(self, tmp_path: Path) -> None:
        sizes = [3, 0, 1, 5]
        start = np.cumsum([0, *sizes])
        for number in range(len(sizes)):
            write_tar(tmp_path / f"{number}.tar", pairs(int(start[number]), int(start[number + 1])))
        source = open_tar(tmp_path, tmp_path)
        assert [sample.captions[0] for sample in samples(source)] == [f"gray {number}" for number in range(9)]
        for index in (-1, 9):
            with pytest.raises(IndexError):
                source[index]
