"""Decoding against Pillow for all color modes and orientations, at full size and reduced."""

from __future__ import annotations

import io
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmcl.data.images.decode import allow_pixels, decode, measure, opened
from mmcl.errors import UserError


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG"])
def test_formats(kind: str, tmp_path: Path) -> None:
    gray = np.linspace(0, 255, 40 * 30).reshape(40, 30).astype(np.uint8)
    image = Image.fromarray(np.stack([gray] * 3, axis=2))
    path = tmp_path / "image"
    path.write_bytes(encode(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    for given in (path, str(path), path.read_bytes()):
        decoded = decode(given)
        assert decoded.mode == "RGB"
        difference = np.abs(np.asarray(decoded).astype(int) - np.asarray(image))
        assert difference.max() <= (4 if kind in ("JPEG", "GIF") else 0)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "is a HEIC image"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0", "is a HEIC image"),
        (b"\xff\x0a\x7f\x0b", "is a JPEG XL image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is a JPEG XL image"),
        (b"%PDF-1.7\n", "is a PDF"),
        (b'<svg xmlns="http://www.w3.org/2000/svg">', "is SVG or XML"),
        (b"\n  <!DOCTYPE HTML><html>", "is a web page"),
        (b"<html><body>404", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (b"plain text", "not an image"),
    ],
)
def test_other_content_is_named_as_what_it_is(content: bytes, named: str) -> None:
    with pytest.raises(UserError, match=f"^a.jpg: {named}"):
        decode(content, name="a.jpg")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    upright = Image.fromarray(noise(4, 6))
    # What the EXIF standard says each value means: how row 0 and column 0 of the stored image lie.
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[::-1],
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    }[orientation](np.asarray(upright))
    decoded = decode(encode(Image.fromarray(np.ascontiguousarray(stored)), exif=oriented(orientation)))
    assert np.array_equal(np.asarray(decoded), np.asarray(upright))


def test_orientation_is_undone_once() -> None:
    once = decode(encode(Image.fromarray(noise(4, 6)), exif=oriented(6)))
    assert np.array_equal(np.asarray(decode(once)), np.asarray(once))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays(channels: int) -> None:
    array = noise(5, 7, channels)
    decoded = decode(array)
    assert decoded.size == (7, 5)
    assert decoded.mode == ("L" if channels == 1 else "RGB")
    assert np.array_equal(np.asarray(decode(noise(5, 7)[:, :, :1])), noise(5, 7)[:, :, 0])
    if channels < 4:
        assert np.array_equal(np.asarray(decoded), array)


def test_transparency_is_white_behind() -> None:
    rgba = noise(8, 8, 4)
    share = rgba[:, :, 3:].astype(float) / 255
    expected = rgba[:, :, :3] * share + 255 * (1 - share)
    decoded = decode(encode(Image.fromarray(rgba)))
    assert decoded.mode == "RGB"
    assert np.abs(np.asarray(decoded) - expected).max() <= 1
    gray = decode(encode(Image.merge("LA", Image.fromarray(rgba).split()[2:])))
    assert gray.mode == "L"
    assert np.abs(np.asarray(gray) - expected[:, :, 2]).max() <= 1


def test_palettes_with_and_without_a_transparent_color() -> None:
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    image = Image.frombytes("P", (2, 2), indices.tobytes())
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    red, green, blue, white = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    assert np.asarray(decode(encode(image))).tolist() == [[list(red), list(green)], [list(blue), list(green)]]
    for transparency in (1, bytes([255, 0, 255])):
        decoded = decode(encode(image, transparency=transparency))
        assert np.asarray(decoded).tolist() == [[list(red), list(white)], [list(blue), list(white)]]


def test_sixteen_bits_become_eight() -> None:
    gray = np.array([[0, 257, 65535], [128 * 257, 256, 65534]], np.uint16)
    for kind in ("PNG", "TIFF"):
        decoded = decode(encode(Image.fromarray(gray), kind))
        assert decoded.mode == "L"
        assert np.asarray(decoded).tolist() == [[0, 1, 255], [128, 0, 254]]


def test_cmyk_is_not_inverted() -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        assert np.abs(np.asarray(decode(encode(cmyk, kind))).astype(int) - (255, 0, 0)).max() <= 3


def test_one_bit() -> None:
    assert np.asarray(decode(encode(Image.fromarray(np.array([[True, False]]))))).tolist() == [[255, 0]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    decoded = decode(encode(red, kind, save_all=True, append_images=[blue]))
    assert np.abs(np.asarray(decoded).astype(int) - (255, 0, 0)).max() <= 6


def test_the_given_image_is_neither_changed_nor_closed() -> None:
    image = Image.fromarray(noise(4, 4))
    decode(image).paste("white", (0, 0, 4, 4))
    assert np.array_equal(np.asarray(image), noise(4, 4))
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    with Image.open(io.BytesIO(encode(red, "GIF", save_all=True, append_images=[blue]))) as animation:
        decode(animation)
        animation.seek(1)
        assert np.abs(np.asarray(animation.convert("RGB")).astype(int) - (0, 0, 255)).max() <= 6


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nothing.jpg", "no such file"),
        ("a.jpg/b.jpg", "no such file"),
        ("a\0b.jpg", "no such file"),
        (".", "is not a file"),
        ("a" * 300, "cannot be read (File name too long)"),
        ("loop.jpg", "cannot be read (Too many levels of symbolic links)"),
    ],
)
def test_what_cannot_be_opened_is_named(path: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"content")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    with pytest.raises(UserError, match=re.escape(f"a.jpg: {said}")):
        decode(tmp_path / path, name="a.jpg")


def test_grays_beyond_16_bits_are_refused() -> None:
    with pytest.raises(UserError, match=r"beyond 8 and 16 bits, have no known range; set image.preprocess.intensity"):
        decode(Image.fromarray(np.array([[70000]], np.int32)))


class TestShrunk:
    @pytest.mark.parametrize("scale", [2, 4, 8])
    @pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
    def test_a_shrunk_jpeg_is_the_mean_of_its_pixels(self, photo: Image.Image, orientation: int, scale: int) -> None:
        file = encode(photo.crop((0, 0, 640, 424)), "JPEG", quality=90, exif=oriented(orientation))
        whole = decode(file)
        with opened(file) as picture:
            assert (picture.width, picture.height) == whole.size
            shrunk = picture.pixels(scale)
        assert shrunk.size == (whole.width // scale, whole.height // scale)
        expected = np.asarray(whole.reduce(scale)).astype(int)
        assert np.abs(np.asarray(shrunk) - expected).mean() < 2.5

    def test_sides_of_other_blocks_are_rounded_up(self, photo: Image.Image) -> None:
        with opened(encode(photo.crop((0, 0, 101, 17)), "JPEG")) as picture:
            assert picture.pixels(8).size == (13, 3)

    def test_other_files_and_images_of_the_caller_keep_their_size(self, photo: Image.Image) -> None:
        file = encode(photo, "JPEG")
        callers = Image.open(io.BytesIO(file))
        for image in (encode(photo), np.asarray(photo), photo, callers):
            with opened(image) as picture:
                assert picture.pixels(8).size == photo.size
        assert np.array_equal(np.asarray(callers), np.asarray(Image.open(io.BytesIO(file))))

    def test_orientation_that_a_png_states_after_its_pixels(self, photo: Image.Image) -> None:
        chunks = encode(photo, exif=oriented(6))
        start = chunks.index(b"eXIf") - 4
        length = int.from_bytes(chunks[start : start + 4]) + 12
        end = chunks.index(b"IEND") - 4
        late = chunks[:start] + chunks[start + length : end] + chunks[start : start + length] + chunks[end:]
        with opened(late) as picture:
            assert (picture.width, picture.height) == photo.size[::-1]


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) if crc is None else crc
    return len(data).to_bytes(4, "big") + kind + data + crc.to_bytes(4, "big")


BOMB = zlib.compress(bytes(3_000_000))
RUBBISH = {
    "invalid EXIF": chunk(b"eXIf", bytes([0, 8, 0, 2, 1, 0x12, 0, 3])),
    "EXIF that is cut": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x05"),
    "checksum of a text": chunk(b"tEXt", b"a\0b", 1),
    "checksum of EXIF": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0", 1),
    "checksum of a profile": chunk(b"iCCP", b"a\0\0" + zlib.compress(b"x"), 1),
    "large profile": chunk(b"iCCP", b"a\0\0" + BOMB),
    "large text": chunk(b"zTXt", b"a\0\0" + BOMB),
    "large international text": chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB),
    "many texts": b"".join(chunk(b"tEXt", b"%d\0" % number + bytes(900_000)) for number in range(80)),
    "text without a name": chunk(b"iCCP", b"a"),
    "gamma that is cut": chunk(b"gAMA", b""),
    "resolution that is cut": chunk(b"pHYs", b"\0"),
    "animation that is cut": chunk(b"acTL", b"\0"),
}


class TestDamagedMetadata:
    @pytest.mark.parametrize("late", [False, True])
    @pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH.keys())
    def test_of_a_png_cost_nothing(self, rubbish: bytes, late: bool) -> None:
        file = encode(Image.fromarray(noise(20, 30)))
        at = file.index(b"IEND") - 4 if late else 33
        assert np.array_equal(np.asarray(decode(file[:at] + rubbish + file[at:])), noise(20, 30))

    def test_of_a_png_do_not_cost_the_orientation_that_is_whole(self, tmp_path: Path) -> None:
        file = encode(Image.fromarray(noise(20, 30)), exif=oriented(6))
        path = tmp_path / "a.png"
        path.write_bytes(file[:33] + RUBBISH["checksum of a text"] + file[33:])
        assert np.array_equal(np.asarray(decode(path)), np.asarray(decode(file)))
        assert decode(path).size == (20, 30)
        assert measure(path, name="a") == (30, 20)

    @pytest.mark.filterwarnings("ignore::UserWarning")  # as mmcl ignores what Pillow says of them
    @pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "GIF"])
    @pytest.mark.parametrize(
        "exif",
        [bytes([0, 8, 0, 2, 1, 0x12, 0, 3]), b"Exif\0\0MM\0*\0\0\0\x08\0\5\1\x12", b"Exif\0\0MM\0*\xff\xff\xff\xf0"],
    )
    def test_exif_of_any_format(self, exif: bytes, kind: str) -> None:
        image, lossless = Image.fromarray(noise(20, 30)), {"lossless": True} if kind == "WEBP" else {}
        decoded = decode(encode(image, kind, exif=exif, **lossless))
        assert np.array_equal(np.asarray(decoded), np.asarray(decode(encode(image, kind, **lossless))))

    @pytest.mark.parametrize(
        "segment",
        [
            b"\xff\xed\0\x16Photoshop 3.0\x008BIM\4\x04",
            b"\xff\xe2\0\x08MPF\0II",
            b"\xff\xe1\0\x0aExif\0\0\xff\xff",
            b"\xff\xe2\0\x10ICC_PROFILE\0\0",
            b"\xff\xfe\0\2",
        ],
    )
    def test_segments_of_a_jpeg(self, segment: bytes, photo: Image.Image) -> None:
        file = encode(photo, "JPEG")
        assert np.array_equal(np.asarray(decode(file[:2] + segment + file[2:])), np.asarray(decode(file)))

    @pytest.mark.parametrize("at", [20, 100, -30])
    def test_pixels_that_are_damaged_are_refused_still(self, at: int) -> None:
        file = encode(Image.fromarray(noise(20, 30)))
        text = RUBBISH["checksum of a text"]
        with pytest.raises(UserError):
            decode(file[:33] + text + file[33:at] if at > 33 or at < 0 else file[:at] + text)


class TestLimit:
    def test_the_limit_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        image = Image.fromarray(noise(20, 30))
        monkeypatch.setenv("MMCL_MAX_PIXELS", "599")
        with pytest.raises(UserError, match=r"30 x 20 pixels, more than the limit of 599; raise data.max_pixels"):
            decode(image)
        allow_pixels(600)
        assert decode(image).size == (30, 20)
        monkeypatch.setenv("MMCL_MAX_PIXELS", "many")
        with pytest.raises(UserError, match="MMCL_MAX_PIXELS=many: give a number"):
            decode(image)

    def test_more_than_pillow_itself_allows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        monkeypatch.setenv("MMCL_MAX_PIXELS", "200")
        with pytest.raises(UserError, match=r"more pixels than the limit of 200; raise data.max_pixels"):
            decode(encode(Image.fromarray(noise(20, 30))))
        monkeypatch.setenv("MMCL_MAX_PIXELS", "600")
        assert decode(encode(Image.fromarray(noise(20, 30)))).size == (30, 20)
