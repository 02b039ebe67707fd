"""A small JPEG without metadata is its own small picture; of all other images one is made, which shows the same."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmcl.data.images.metadata import is_bare_jpeg
from mmcl.files.byte_range import FilePart, LocalFile
from mmcl.preprocess import Preprocess
from mmcl.search.collection import Collection, FileList, sha_of, with_small_file
from mmcl.search.content import Encoder
from mmcl.search.image_facts import THUMB, read_facts, read_with_facts
from mmcl.testing.patterns import SIZE, PatternModel

PREPROCESS = Preprocess(size=16)


def photo(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    colors = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    written = io.BytesIO()
    image.save(written, "JPEG", **options)
    return written.getvalue()


def model() -> PatternModel:
    """A model whose preprocessing is known, so that an image is read for its vector and its small picture at once."""
    made = PatternModel()
    made.preprocess = Preprocess(size=SIZE)  # type: ignore[attr-defined]
    return made


def with_camera() -> Image.Exif:
    exif = Image.Exif()
    exif[271] = "private camera"
    return exif


def with_segment(file: bytes, marker: int, content: bytes) -> bytes:
    """The file with a segment behind its JFIF header."""
    return file[:20] + bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content + file[20:]


BARE = {
    "color": jpeg(photo()),
    "gray": jpeg(photo().convert("L")),
    "progressive": jpeg(photo(), progressive=True),
    "restart markers": jpeg(photo(), restart_marker_rows=1, optimize=True),
    "as large as a small picture": jpeg(photo(THUMB, THUMB)),
}
OTHERS = {
    "camera data": jpeg(photo(), exif=with_camera()),
    "comment": jpeg(photo(), comment="private"),
    "profile": jpeg(photo(), icc_profile=b"private" * 20),
    "four channels": jpeg(photo().convert("CMYK")),
    "Adobe's color space": jpeg(photo(), keep_rgb=True),
    "XMP": with_segment(jpeg(photo()), 0xE1, b"http://ns.adobe.com/xap/1.0/\0private"),
    "a second JFIF segment": with_segment(jpeg(photo()), 0xE0, b"JFXX\0\x10private"),
    "something behind the end": jpeg(photo()) + b"private",
    "a second image behind the end": jpeg(photo()) + jpeg(photo(seed=1)),
    "another format": b"\x89PNG\r\n\x1a\nprivate\xff\xd9",
    "nothing": b"",
}


@pytest.mark.parametrize("file", BARE.values(), ids=BARE)
def test_a_bare_file_is_its_own_small_picture(file: bytes, tmp_path: Path) -> None:
    assert is_bare_jpeg(file)
    path = tmp_path / "photo.jpg"
    path.write_bytes(file)
    (tmp_path / "all.bin").write_bytes(b"before" + file + b"after")
    part = FilePart(LocalFile.find(str(tmp_path / "all.bin")), 6, len(file))
    for image in (path, str(path), file, part):
        _, facts = read_with_facts(image, "photo", PREPROCESS, thumb=True)
        assert facts.thumb == file
        assert read_facts(image, "photo", PREPROCESS, thumb=True) == facts
        assert read_facts(image, "photo", PREPROCESS, thumb=False).thumb is None


@pytest.mark.parametrize("file", OTHERS.values(), ids=OTHERS)
def test_what_else_a_file_holds_is_found(file: bytes) -> None:
    assert not is_bare_jpeg(file)


@pytest.mark.parametrize("name", [name for name, file in OTHERS.items() if file.startswith(b"\xff\xd8")])
def test_of_other_files_one_is_made_without_what_else_they_hold(name: str) -> None:
    _, facts = read_with_facts(OTHERS[name], name, PREPROCESS, thumb=True)
    assert facts.thumb is not None
    assert is_bare_jpeg(facts.thumb)
    assert b"private" not in facts.thumb
    with Image.open(io.BytesIO(facts.thumb)) as small, Image.open(io.BytesIO(OTHERS[name])) as whole:
        difference = np.asarray(small, float) - np.asarray(whole.convert("RGB"), float)
    assert np.abs(difference).mean() < 6


def test_a_file_of_many_bytes_or_pixels_is_made_small() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    for image in (noise, photo(THUMB + 1, 40)):
        file = jpeg(image, quality=95)
        assert is_bare_jpeg(file)
        _, facts = read_with_facts(file, "photo", PREPROCESS, thumb=True)
        assert facts.thumb is not None
        assert facts.thumb != file
        assert (facts.width, facts.height) == image.size
        with Image.open(io.BytesIO(facts.thumb)) as small:
            assert max(small.size) <= THUMB


@pytest.mark.parametrize("cut", range(0, 620, 31))
def test_files_with_damaged_headers_are_not_bare(cut: int) -> None:
    file = jpeg(photo())
    assert not is_bare_jpeg(file[:cut])
    assert not is_bare_jpeg(file[:20] + file[20 + cut + 1 :])


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.png", "a.npy", "a"])
@pytest.mark.parametrize("content", ["small", "large", "no JPEG", "empty"])
def test_a_small_jpeg_is_read_once_and_what_is_told_of_any_file_stays(tmp_path: Path, name: str, content: str) -> None:
    large = jpeg(Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)))
    file = tmp_path / name
    file.write_bytes({"small": jpeg(photo()), "large": large, "no JPEG": b"no image", "empty": b""}[content])
    (entry,) = Collection(FileList([file]), "files")
    held = with_small_file(entry)
    assert (held.file is not None) == (content == "small" and name in ("a.jpg", "a.JPEG"))
    assert sha_of(held.image) == sha_of(entry.image)
    encoder = Encoder(model())
    (before,), (after,) = encoder.contents([entry], {}), encoder.contents([held], {})
    assert isinstance(before, str) == (content in ("no JPEG", "empty") or name == "a.npy")
    if isinstance(before, str) or isinstance(after, str):
        assert after == before
    else:
        assert after.thumb == before.thumb
        assert np.array_equal(after.vector, before.vector)


def test_the_hash_of_a_small_jpeg_is_that_of_the_pixels(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(BARE["color"])
    (entry,) = Collection(FileList([file]), "files")
    held = with_small_file(entry)
    file.write_bytes(BARE["gray"])
    (content,) = Encoder(model()).contents([held], {})
    assert not isinstance(content, str)
    assert content.thumb == BARE["color"]
    assert sha_of(held.image) == hashlib.sha256(BARE["color"]).digest()


def test_a_file_that_has_gone_is_not_held(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(BARE["color"])
    (entry,) = Collection(FileList([file]), "files")
    file.unlink()
    assert with_small_file(entry) is entry
    assert Encoder(model()).contents([entry], {}) == [f"{file}: no such file"]
