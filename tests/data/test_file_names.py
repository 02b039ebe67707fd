"""Names of images and texts in folders and shards: which files belong together, are found, or are not used."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image

from mmcl.data.open import open_source
from mmcl.errors import UserError
from mmcl.files.listing import list_files
from tests.data.files import decoded
from tests.data.folders import images, read, write
from tests.data.tars import picture, write_tar

Form = Literal["NFC", "NFD"]
FORMS: tuple[Form, Form] = ("NFC", "NFD")


class TestNames:
    def test_of_a_list_are_found_where_the_images_lie(self, tmp_path: Path) -> None:
        write(tmp_path / "flickr", images("Images/a.jpg", "Images/b.jpg", "Images/deep/c.jpg"))
        lines = ["a.jpg,one", "./Images/a.jpg,two", "Images\\b.jpg,three", "deep/c.jpg,four"]
        write(tmp_path / "flickr", {"captions.csv": "\n".join(["image,caption", *lines])})
        assert read(tmp_path / "flickr") == {
            "Images/a.jpg": ("one", "two"),
            "Images/b.jpg": ("three",),
            "Images/deep/c.jpg": ("four",),
        }

    def test_of_a_list_may_lack_suffixes(self, tmp_path: Path) -> None:
        names = ("images/15970.jpg", "images/ISIC_1.v2.png", "images/x/7.jpg", "images/x/7.png")
        write(tmp_path / "a", images(*names) | {"captions.csv": "image,caption\n15970,one\nISIC_1.v2,two\nx/7,three\n"})
        source = open_source("auto", str(tmp_path / "a"))
        assert [source[i].captions for i in range(3)] == [("one",), ("two",), ("three",)]
        assert [source[i].problem is None for i in range(3)] == [True, True, False], "two images are called x/7"

    @pytest.mark.parametrize("lines", [("Id,Caption\n1,x\n"), ("file_key,breed\n1,x\n")])
    def test_columns_of_other_names_say_what_to_do_about_a_folder(self, lines: str, tmp_path: Path) -> None:
        write(tmp_path / "a", images("1.png") | {"metadata.csv": lines})
        with pytest.raises(UserError, match=r"Its columns are .*, .*; call that of the images `image`, or give"):
            read(tmp_path / "a")
        write(tmp_path / "a", {"captions.json": '[{"key": "1.png", "breed": "x"}]'})
        (tmp_path / "a" / "metadata.csv").unlink()
        with pytest.raises(UserError, match=r"captions\.json: which column holds .* key, breed; call that of the images"):
            read(tmp_path / "a")

    @pytest.mark.parametrize("name", ["x\\1.png", ".\\x\\1.png", "x/1.png", "é\\1.png"])
    def test_backslashes_of_a_table_from_windows(self, name: str, tmp_path: Path) -> None:
        write(tmp_path, images("x/1.png", unicodedata.normalize("NFD", "é/1.png")) | {"a.csv": f"image,caption\n{name},one\n"})
        source = open_source("auto", str(tmp_path / "a.csv"))
        assert source.usage[1].to_text() == "1 of 1 row used"
        decoded(source[0])

    def test_the_name_of_two_images_is_ambiguous(self, tmp_path: Path) -> None:
        write(
            tmp_path / "a", images("x/1.png", "y/1.png", "y/2.png") | {"captions.csv": "image,caption\n1.png,one\n2.png,two\n"}
        )
        source = open_source("auto", str(tmp_path / "a"))
        with pytest.raises(UserError, match=r"1\.png: no such file; captions\.csv names it in row 1"):
            source[0].check()
        assert source[1].captions == ("two",)

    @pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")])
    def test_accents_may_be_composed_or_not(self, forms: tuple[Form, Form], tmp_path: Path) -> None:
        listed, stored = (unicodedata.normalize(form, "sub/café.png") for form in forms)
        write(tmp_path / "listed", images(stored) | {"captions.csv": f"image,caption\n{listed},one\ncafé.png,two\n"})
        assert read(tmp_path / "listed") == {stored: ("one", "two")}
        write(tmp_path / "beside", images(stored) | {listed.replace(".png", ".txt"): "one"})
        assert read(tmp_path / "beside") == {stored: ("one",)}

    @pytest.mark.parametrize("form", ["NFC", "NFD"])
    def test_accents_in_a_table_may_be_composed_or_not(self, form: Form, tmp_path: Path) -> None:
        stored, composed, parted = (unicodedata.normalize(one, "é/café.png") for one in (form, *FORMS))
        write(tmp_path, images(stored) | {"a.csv": f"image,caption\n{composed},one\n{parted},two\n"})
        source = open_source("auto", str(tmp_path / "a.csv"))
        assert [(source[i].image, source[i].captions) for i in range(len(source))] == [(f"{tmp_path}/{stored}", ("one", "two"))]
        assert source.usage[1].to_text() == "2 of 2 rows used"

    def test_texts_beside_an_image(self, tmp_path: Path) -> None:
        names = ("IMG.JPG", "b.jpg", "c.jpg", "d.v1.jpg", "e.jpg", "f.jpg", "g.1.jpg", "g.jpg")
        texts = {"IMG.TXT": "one", "b.caption": "two", "c.jpg.txt": "three", "d.v1.txt": "four", "d.txt": "none"}
        texts |= {"e.0.txt": "five", "e.1.txt": "six", "e.txt": "five", "f.json": '{"caption": "seven"}', "g.1.txt": "eight"}
        texts |= {"e.json": '{"caption": "no"}', "f.ocr.txt": "STOP"}
        write(tmp_path / "a", images(*names) | texts)
        captions = [("one",), ("two",), ("three",), ("four",), ("five", "six"), ("seven",), ("eight",), ()]
        assert read(tmp_path / "a") == dict(zip(names, captions, strict=True))
        usage = open_source("auto", str(tmp_path / "a")).usage[0]
        assert usage.to_text() == "17 of 20 files used; not used: 2 .txt (d.txt, f.ocr.txt), 1 .json (e.json)"

    def test_records_of_annotation_tools_are_not_captions(self, tmp_path: Path) -> None:
        write(tmp_path / "a", images("a.png", "b.png") | {"a.json": '{"shapes": []}', "b.json": "[[["})
        assert read(tmp_path / "a") == {"a.png": (), "b.png": ()}

    def test_boxes_of_object_detectors_are_not_captions(self, tmp_path: Path) -> None:
        boxes = "0 0.5 0.5 .1 0.1\n12 1 0.33 5.1e-2 0.1 0.9 0.9\n"
        texts = {"a.txt": boxes, "b.txt": "0 0.5 0.5 0.1 0.1\na dog", "c.txt": "7", "d.txt": "1 2 3 4 5"}
        write(tmp_path / "a", images("a.png", "b.png", "c.png", "d.png") | texts)
        captions = [(), ("0 0.5 0.5 0.1 0.1", "a dog"), ("7",), ("1 2 3 4 5",)]
        assert list(read(tmp_path / "a").values()) == captions
        assert "not used: 1 .txt (a.txt)" in open_source("auto", str(tmp_path / "a")).usage[0].to_text()
        write_tar(tmp_path / "a.tar", [("a.png", picture()), ("a.txt", boxes.encode())])
        assert open_source("auto", str(tmp_path / "a.tar"), str(tmp_path / "root"))[0].captions == ()


class TestNotUsed:
    def test_images_that_cannot_be_read_are_counted_and_named(self, tmp_path: Path) -> None:
        files = images("a.jpg", "b.jfif", "c.jpe", "d.PNG") | {"e.heic": b"x", "f.HEIC": b"x", "g.jxl": b"x", "no": b"x"}
        Image.new("RGB", (4, 4)).save(write(tmp_path / "a", files) / "h.avif")
        source = open_source("auto", str(tmp_path / "a"))
        assert [Path(source[i].name).name for i in range(len(source))] == ["a.jpg", "b.jfif", "c.jpe", "d.PNG", "h.avif"]
        assert decoded(source[4]).size == (4, 4)
        line = (
            "5 of 9 files used; not used: 2 .heic to convert to .jpg or .png (e.heic, f.HEIC), "
            "1 .jxl to convert to .jpg or .png (g.jxl), 1 without suffix (no)"
        )
        assert list(source.warnings) == [line]
        for place in ("heic", "heic/sub"):
            write(tmp_path / "heic", {"sub/e.heic": b"x"})
            with pytest.raises(UserError, match=r"no image.* only 1 \.heic to convert to \.jpg or \.png \((sub/)?e\.heic\)"):
                open_source("auto", str(tmp_path / place))
            with pytest.raises(UserError, match=r"no image.* only 1 \.heic to convert"):
                open_source("folder", str(tmp_path / place))

    def test_files_of_operating_systems_are_not_data(self, tmp_path: Path) -> None:
        system = (
            "@eaDir/a.png",
            "sub/@eaDir/a.jpg/SYNO.jpg",
            "#recycle/a.png",
            "$RECYCLE.BIN/a.png",
            "lost+found/a.png",
            "__MACOSX/._a.png",
            ".thumbnails/a.png",
            "sub/.ipynb_checkpoints/a.png",
            "System Volume Information/a.png",
        )
        write(tmp_path / "a", images("sub/a.png", *system) | {"Thumbs.db": b"", ".DS_Store": b"", "desktop.ini": b""})
        source = open_source("auto", str(tmp_path / "a"))
        assert source.usage[0].to_text() == "1 of 1 file used"

    def test_files_about_the_data_are_not_data_but_folders_and_captions_of_these_names_are(self, tmp_path: Path) -> None:
        about = dict.fromkeys(("README", "readme.md", "sub/LICENSE", "LICENSE.rst", "NOTICE.md"), b"")
        write(tmp_path / "a", images("license/a.png", "notice.png") | about | {"notice.txt": "a notice"})
        source = open_source("auto", str(tmp_path / "a"))
        assert source.usage[0].to_text() == "3 of 3 files used"
        assert [source[row].captions for row in range(2)] == [(), ("a notice",)]

    def test_links_are_followed_once(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "a", images("sub/a.png"))
        write(tmp_path / "elsewhere", images("b.png"))
        for link, target in {
            "away": tmp_path / "elsewhere",
            "away2": tmp_path / "elsewhere",
            "around": tmp_path,
            "sub/loop": folder,
            "again": folder / "sub",
        }.items():
            (folder / link).symlink_to(target)
        (tmp_path / "elsewhere" / "itself").symlink_to(tmp_path / "elsewhere")
        listing = list_files(folder)
        assert listing.names == ["away/b.png", "sub/a.png"]
        assert sorted(listing.linked) == ["again", "around", "away/itself", "away2", "sub/loop"]
        usage = open_source("folder", str(folder)).usage[0]
        assert usage.to_text().startswith("2 of 7 files used; not used: 5 linked folders that are entered anyway")

    def test_a_folder_that_cannot_be_entered(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder, scan = write(tmp_path / "a", images("a.png", "secret/b.png")), os.scandir

        def refused(place: str | Path) -> Any:
            if str(place).endswith("secret"):
                raise PermissionError(13, "Permission denied", str(place))
            return scan(place)

        monkeypatch.setattr("os.scandir", refused)
        source = open_source("folder", str(folder))
        assert "1 of 2 files used; not used: 1 folders that cannot be read (secret)" in source.warnings[0]
        assert list(source.broken_files()) == [f"{folder}/secret: cannot be read: Permission denied"]
        with pytest.raises(UserError, match="secret: cannot be read: Permission denied"):
            open_source("folder", str(folder / "secret"))

    def test_members_of_shards_whose_names_have_another_dot(self, tmp_path: Path) -> None:
        members = {
            "photo.v1.jpg": picture(),
            "photo.v1.txt": b"one",
            "b.jpg": picture(),
            "b.txt": b"two",
            "b.seg.png": picture(),
        }
        write_tar(tmp_path / "0.tar", members)
        source = open_source("auto", str(tmp_path / "0.tar"), str(tmp_path))
        assert [source[i].captions for i in range(len(source))] == [("two",)]
        (line,) = source.warnings
        assert line.startswith("2 of 5 members used; not used: ")
        for part in ("1 .jpg whose names have another dot (photo.v1.jpg)", "(photo.v1.txt)", "(b.seg.png)"):
            assert part in line
        write_tar(tmp_path / "1.tar", {f"a.{n}.jpg": picture() for n in range(9)})
        with pytest.raises(
            UserError, match=r"no image or text .* not used: 9 \.jpg whose names have another dot \(a\.0\.jpg, "
        ):
            open_source("auto", str(tmp_path / "1.tar"), str(tmp_path))

    def test_several_texts_of_a_key(self, tmp_path: Path) -> None:
        members = [("a.jpg", picture()), ("a.json", b'{"caption": "no"}'), ("a.caption", b"one"), ("a.0.txt", b"two\nthree")]
        members += [
            ("b.jpg", picture()),
            ("b.jpg.txt", b"four"),
            ("b.txt", b"four"),
            ("c.jpg", picture()),
            ("c.ocr.txt", b"no"),
        ]
        write_tar(tmp_path / "0.tar", members)
        source = open_source("auto", str(tmp_path / "0.tar"), str(tmp_path))
        assert [source[i].captions for i in range(3)] == [("one", "two", "three"), ("four",), ()]
        assert source.usage[0].used == 8
