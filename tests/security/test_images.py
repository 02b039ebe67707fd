"""Untrusted images: the result is an image or one line that names the file, within bounds of time and memory."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mmcl.data.images.decode import FORMATS, decode
from mmcl.errors import UserError


def _encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _bomb(width: int, height: int) -> bytes:
    """A PNG header that promises width x height pixels, with next to no data behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", zlib.compress(b"0")) + _png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (10_000, 10_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_stopped_at_its_header(width: int, height: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(_bomb(width, height))
    assert path.stat().st_size < 100
    with pytest.raises(UserError, match=r"bomb\.png"):
        decode(path)


def test_the_limits_are_exact(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_encoded("PNG"))
    size = path.stat().st_size
    decode(path, max_pixels=24 * 24, max_bytes=size)
    with pytest.raises(UserError, match=r"a\.png: 24 x 24 pixels, more than the limit of 575"):
        decode(path, max_pixels=24 * 24 - 1)
    with pytest.raises(UserError, match=rf"a\.png: {size} bytes, more than the limit of {size - 1}"):
        decode(path, max_bytes=size - 1)
    with pytest.raises(UserError, match="more than the limit of 10"):
        decode(_encoded("PNG"), max_bytes=10)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"])
def test_a_truncated_file_is_an_error(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(_encoded(kind)[:-200])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(UserError, match="cut"):
        decode(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 50, b"<html>not found</html>", b"GIF89a", b"\xff\xd8\xff", b"%PDF-1.7", b"8BPS"]
)
def test_content_that_is_not_an_image(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"photo\.jpg"):
        decode(path)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "PCX", "TGA", "SGI", "DDS"])
def test_rare_parsers_are_never_tried(kind: str) -> None:
    assert kind not in FORMATS
    with pytest.raises(UserError, match=r"none of the formats|is a PDF"):
        decode(_encoded(kind))


@given(kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]), seed=st.integers(0, 10**6))
def test_flipped_bytes_give_an_image_or_a_user_error(kind: str, seed: int) -> None:
    content = bytearray(_encoded(kind))
    generator = np.random.default_rng(seed)
    for position in generator.integers(0, min(len(content), 200), 4):
        content[position] = generator.integers(0, 256)
    try:
        outcome = decode(bytes(content), name="fuzzed").mode
    except UserError as error:
        outcome = str(error)
    assert outcome in ("RGB", "L") or (outcome.startswith("fuzzed: ") and "\n" not in outcome)


def test_paths_that_are_not_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        decode(tmp_path / "missing.png")
    with pytest.raises(UserError, match="is not a file"):
        decode(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="is not a file"):
        decode(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="is not a file"):
        decode(Path("/dev/zero"))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(4, np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
)
def test_arrays_of_another_form(array: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"image: an array must be \[H, W\]"):
        decode(array)


def test_floating_point_images() -> None:
    with pytest.raises(UserError, match="no known range"):
        decode(Image.fromarray(np.zeros((2, 2), np.float32)))
