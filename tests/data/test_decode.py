"""Decoding against Pillow and torchvision, whatever the file's colours and orientation."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode

from mmcl.data.decode import decode, read_pixels, to_tensor
from mmcl.errors import UserError
from mmcl.types import Preprocess


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG"])
def test_formats(kind, tmp_path):
    grey = np.linspace(0, 255, 40 * 30).reshape(40, 30).astype(np.uint8)
    image = Image.fromarray(np.stack([grey] * 3, axis=2))
    path = tmp_path / "picture"
    path.write_bytes(encode(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    for given in (path, str(path), path.read_bytes()):
        decoded = decode(given)
        assert decoded.mode == "RGB"
        difference = np.abs(np.asarray(decoded).astype(int) - np.asarray(image))
        assert difference.max() <= (4 if kind in ("JPEG", "GIF") else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    upright = Image.fromarray(noise(4, 6))
    # What the EXIF standard says each value means: how row 0 and column 0 of the stored picture lie.
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
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encode(Image.fromarray(np.ascontiguousarray(stored)), exif=exif))
    assert np.array_equal(np.asarray(decoded), np.asarray(upright))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays(channels):
    array = noise(5, 7, channels)
    decoded = decode(array)
    assert decoded.size == (7, 5)
    assert decoded.mode == ("L" if channels == 1 else "RGB")
    assert np.array_equal(np.asarray(decode(noise(5, 7)[:, :, :1])), noise(5, 7)[:, :, 0])
    if channels < 4:
        assert np.array_equal(np.asarray(decoded), array)


def test_transparency_is_white_behind():
    rgba = noise(8, 8, 4)
    share = rgba[:, :, 3:].astype(float) / 255
    expected = rgba[:, :, :3] * share + 255 * (1 - share)
    decoded = decode(encode(Image.fromarray(rgba)))
    assert decoded.mode == "RGB"
    assert np.abs(np.asarray(decoded) - expected).max() <= 1
    grey = decode(encode(Image.merge("LA", Image.fromarray(rgba).split()[2:])))
    assert grey.mode == "L"
    assert np.abs(np.asarray(grey) - expected[:, :, 2]).max() <= 1


def test_palettes_with_and_without_a_transparent_colour():
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    image = Image.frombytes("P", (2, 2), indices.tobytes())
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    red, green, blue, white = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    assert np.asarray(decode(encode(image))).tolist() == [[list(red), list(green)], [list(blue), list(green)]]
    for transparency in (1, bytes([255, 0, 255])):
        decoded = decode(encode(image, transparency=transparency))
        assert np.asarray(decoded).tolist() == [[list(red), list(white)], [list(blue), list(white)]]


def test_sixteen_bits_become_eight():
    grey = np.array([[0, 257, 65535], [128 * 257, 256, 65534]], np.uint16)
    for kind in ("PNG", "TIFF"):
        decoded = decode(encode(Image.fromarray(grey), kind))
        assert decoded.mode == "L"
        assert np.asarray(decoded).tolist() == [[0, 1, 255], [128, 0, 254]]


def test_cmyk_is_not_inverted():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        assert np.abs(np.asarray(decode(encode(cmyk, kind))).astype(int) - (255, 0, 0)).max() <= 3


def test_one_bit():
    assert np.asarray(decode(encode(Image.fromarray(np.array([[True, False]]))))).tolist() == [[255, 0]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_an_animation_is_its_first_frame(kind):
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    decoded = decode(encode(red, kind, save_all=True, append_images=[blue]))
    assert np.abs(np.asarray(decoded).astype(int) - (255, 0, 0)).max() <= 6


def test_the_given_picture_is_neither_changed_nor_closed():
    image = Image.fromarray(noise(4, 4))
    decode(image).paste("white", (0, 0, 4, 4))
    assert np.array_equal(np.asarray(image), noise(4, 4))
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    with Image.open(io.BytesIO(encode(red, "GIF", save_all=True, append_images=[blue]))) as animation:
        decode(animation)
        animation.seek(1)
        assert np.abs(np.asarray(animation.convert("RGB")).astype(int) - (0, 0, 255)).max() <= 6


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(50, 30), (31, 77), (16, 16), (7, 9), (200, 41)])
def test_shortest_is_the_usual_resize_and_centre_crop(size, interpolation):
    image = Image.fromarray(noise(size[1], size[0]))
    resized = F.resize(image, [16], interpolation=InterpolationMode(interpolation))
    expected = F.pil_to_tensor(F.center_crop(resized, [16]))
    tensor = to_tensor(image, Preprocess(size=16, interpolation=interpolation))
    assert tensor.dtype == torch.uint8
    assert (tensor.int() - expected.int()).abs().max() <= 1


def test_squash_and_pad_and_crop():
    image = Image.fromarray(noise(20, 40))
    squashed = to_tensor(image, Preprocess(size=10, resize="squash"))
    assert torch.equal(squashed, F.pil_to_tensor(image.resize((10, 10), Image.Resampling.BICUBIC)))
    padded = to_tensor(image, Preprocess(size=10, resize="pad"))
    assert (padded[:, :2] == 255).all()
    assert (padded[:, 7:] == 255).all()
    assert torch.equal(padded[:, 2:7], F.pil_to_tensor(image.resize((10, 5), Image.Resampling.BICUBIC)))
    # The pixels that meet in a part's border come from outside of it, so only its size is a whole factor here.
    part = to_tensor(image, Preprocess(size=10, resize="pad", interpolation="nearest"), box=(5, 10, 15, 20))
    assert torch.equal(part, F.pil_to_tensor(image.crop((5, 10, 15, 20))))


@pytest.mark.parametrize(("channels", "mode"), [(1, "RGB"), (3, "L"), (1, "L"), (3, "RGB")])
def test_channels(channels, mode):
    image = Image.fromarray(noise(9, 9)).convert(mode)
    tensor = to_tensor(image, Preprocess(size=9, channels=channels))
    assert torch.equal(tensor, F.pil_to_tensor(image.convert("L" if channels == 1 else "RGB")))


@pytest.mark.parametrize(("width", "height"), [(1, 20_000), (20_000, 1)])
@pytest.mark.parametrize("resize", ["shortest", "pad", "squash"])
def test_extreme_aspects_take_little_memory(width, height, resize):
    # Resized whole, the shorter side to 224, this picture would have a billion pixels.
    tensor = to_tensor(Image.new("L", (width, height), 7), Preprocess(size=224, channels=1, resize=resize))
    assert tensor.shape == (1, 224, 224)
    assert (tensor == 7).any()


def test_greys_beyond_16_bits_are_refused():
    with pytest.raises(UserError, match="beyond 16 bits"):
        decode(Image.fromarray(np.array([[70000]], np.int32)))


@pytest.mark.parametrize("shape", [(9, 9), (9, 9, 1), (9, 9, 3), (9, 9, 4), (9, 12), (7, 7, 3)], ids=str)
@pytest.mark.parametrize("resize", ["shortest", "squash", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_array_of_the_right_size_comes_as_through_pillow(channels, resize, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    array.flags.writeable = False
    preprocess = Preprocess(size=9, channels=channels, resize=resize)
    expected = to_tensor(decode(array), preprocess)
    pixels = read_pixels(array, preprocess)
    assert torch.equal(pixels, expected)
    assert pixels.shape == (channels, 9, 9)
    pixels.zero_()
    assert array.any()
