"""A small JPEG without metadata is its own small picture; of all other images one is made, which shows the same."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmcl.data.images.metadata import is_bare_jpeg
from mmcl.files.byte_range import FilePart, LocalFile
from mmcl.preprocess import Preprocess
from mmcl.search.image_facts import THUMB, read_facts, read_with_facts

PREPROCESS = Preprocess(size=16)


def photo(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    colors = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    written = io.BytesIO()
    image.save(written, "JPEG", **options)
    return written.getvalue()


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
