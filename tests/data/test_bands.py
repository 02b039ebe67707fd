"""Images of more than 8 bits or with any number of channels, from arrays and from files."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmcl.data.batches.views import ImageView, make_views
from mmcl.data.images.bands import read_bands
from mmcl.data.images.crop import RandomResizedCrop
from mmcl.data.images.decode import decode
from mmcl.data.images.levels import warn_of_darkness
from mmcl.data.images.tensors import read_pixels, to_tensor
from mmcl.data.sample import ImageLike
from mmcl.encoders import IMAGE_ENCODERS
from mmcl.errors import UserError
from mmcl.preprocess import Percentiles, Preprocess
from tests.data.test_decode import encode, noise


def values(dtype: Any, *shape: int, top: int = 4095) -> np.ndarray:
    return np.random.default_rng(0).integers(0, top + 1, shape).astype(dtype)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def pixels(image: ImageLike, **options: Any) -> np.ndarray:
    return np.asarray(decode(image, **options))


class TestIntensity:
    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "array", "npy"])
    @pytest.mark.parametrize("intensity", [(0, 4095), (1000, 3000), (-100.5, 70_000)], ids=str)
    def test_low_and_high_become_the_levels_0_and_255(self, intensity: tuple[float, float], kind: str) -> None:
        gray = values(np.uint16, 20, 30)
        image: Any = gray if kind == "array" else npy(gray) if kind == "npy" else encode(Image.fromarray(gray), kind)
        low, high = intensity
        expected = np.rint(np.clip((gray.astype(np.float64) - low) / (high - low), 0, 1) * 255)
        decoded = np.asarray(decode(image, intensity=intensity)).astype(int)
        assert np.abs(decoded - expected).max() <= 1  # where float32 rounds a half otherwise
        assert (decoded == expected).mean() > 0.99

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int16])
    def test_values_of_any_type(self, dtype: Any) -> None:
        array = values(dtype, 20, 30, 3)
        assert np.array_equal(pixels(array, intensity=(0, 4095)), pixels(array.astype(np.uint16), intensity=(0, 4095)))
        with pytest.raises(UserError, match=r"no known range; set image.preprocess.intensity"):
            decode(array - 1)

    def test_values_that_are_not_finite_are_refused(self) -> None:
        with pytest.raises(UserError, match="not finite"):
            decode(np.full((4, 4), np.nan, np.float32), intensity=(0, 1))

    def test_8_bits_are_levels_already(self) -> None:
        assert np.array_equal(pixels(noise(4, 4), intensity=(0, 4095)), noise(4, 4))

    def test_12_bits_without_it_are_warned_about_once(self, caplog: pytest.LogCaptureFixture) -> None:
        warn_of_darkness.cache_clear()
        for _ in range(2):
            decode(values(np.uint16, 20, 30))
        assert caplog.text.count("nearly black; set image.preprocess.intensity") == 1

    def test_of_a_model(self) -> None:
        gray = values(np.uint16, 20, 30)
        preprocess = Preprocess(size=9, channels=1, intensity=(0, 4095))
        assert torch.equal(read_pixels(gray, preprocess), to_tensor(decode(gray, intensity=(0, 4095)), preprocess))
        views = {"image": ImageView(number=0, preprocess=preprocess)}
        assert torch.equal(make_views(gray, views, seed=0, epoch=0, index=0)["image"], read_pixels(gray, preprocess))

    @pytest.mark.parametrize("given", [[5, 5], [5, 1], [1], [1, 2, 3]], ids=str)
    def test_an_invalid_range_is_refused(self, given: list[int]) -> None:
        with pytest.raises(UserError, match="intensity"):
            Preprocess.from_json({"size": 9, "intensity": given})


class TestChannels:
    @pytest.mark.parametrize("channels", [2, 4, 5, 13])
    @pytest.mark.parametrize("form", ["array", "channels first", "npy", "npz", "path", "tiff", "planar tiff", "pages"])
    def test_any_number_from_any_form(self, form: str, channels: int, tmp_path: Path) -> None:
        tifffile = pytest.importorskip("tifffile")
        array, first = noise(20, 30, channels), np.ascontiguousarray(noise(20, 30, channels).transpose(2, 0, 1))
        file = tmp_path / ("a.npy" if form == "path" else "a.tif")
        if form == "path":
            np.save(file, array)
        if form == "tiff":
            tifffile.imwrite(file, array, photometric="minisblack", planarconfig="contig")
        if form == "planar tiff":
            tifffile.imwrite(file, first, photometric="minisblack", planarconfig="separate")
        if form == "pages":
            tifffile.imwrite(file, first, photometric="minisblack")
        forms: dict[str, ImageLike] = {"array": array, "channels first": first, "npy": npy(array), "npz": npz(image=array)}
        assert np.array_equal(read_bands(forms.get(form, file), channels, None, name="a"), array)

    def test_every_channel_is_resized_as_a_gray_image(self) -> None:
        array = noise(31, 47, 5)
        preprocess = Preprocess(size=(16, 24), channels=5, resize_size=(20, 30), fill=0)
        pixels = read_pixels(array, preprocess)
        gray = Preprocess(size=(16, 24), channels=1, resize_size=(20, 30), fill=0)
        expected = [to_tensor(Image.fromarray(np.ascontiguousarray(array[..., channel])), gray) for channel in range(5)]
        assert torch.equal(pixels, torch.cat(expected))

    def test_a_crop_shows_the_same_part_of_every_channel(self) -> None:
        array = np.repeat(noise(60, 80, 1)[..., None], 2, axis=2)
        view = ImageView(number=0, preprocess=Preprocess(size=16, channels=2), crop=RandomResizedCrop(scale=(0.2, 0.5)))
        pixels = make_views(array, {"a": view}, seed=1, epoch=2, index=3)["a"]
        assert pixels.shape == (2, 16, 16)
        assert torch.equal(pixels[0], pixels[1])

    def test_four_channels_are_a_transparency_only_to_a_model_of_three(self) -> None:
        array = noise(9, 9, 4)
        array[..., 3] = 0
        assert (read_pixels(array, Preprocess(size=9)) == 255).all()
        assert torch.equal(read_pixels(array, Preprocess(size=9, channels=4)), torch.from_numpy(array).permute(2, 0, 1))
        assert torch.equal(
            read_pixels(encode(Image.fromarray(array)), Preprocess(size=9, channels=4)),
            torch.from_numpy(array).permute(2, 0, 1),
        )

    @pytest.mark.parametrize("image", [noise(9, 9, 3), noise(9, 9, 1), encode(Image.fromarray(noise(9, 9)))], ids=repr)
    def test_another_number_is_refused(self, image: Any) -> None:
        with pytest.raises(UserError, match=r"a: an array of shape .* takes images of 5 channels"):
            read_pixels(image, Preprocess(size=9, channels=5), name="a")

    def test_bands_beyond_8_bits_have_an_intensity(self) -> None:
        array = values(np.uint16, 9, 9, 5)
        preprocess = Preprocess(size=9, channels=5, intensity=(0, 4095))
        assert read_pixels(array, preprocess).float().mean() == pytest.approx(127, abs=10)

    @pytest.mark.parametrize("image", [noise(20, 30, 3), noise(20, 30, 1)], ids=repr)
    def test_array_files_of_usual_images(self, image: np.ndarray, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", image=image)
        for given in (npy(image), tmp_path / "a.npz"):
            assert np.array_equal(pixels(given), pixels(image))


class TestHostileArrays:
    @pytest.mark.parametrize("channels", [3, 5])
    def test_objects_are_not_unpickled(self, channels: int) -> None:
        with pytest.raises(UserError, match="Python objects"):
            read_pixels(npy(np.array([[print, 1]], object)), Preprocess(size=9, channels=channels), name="a")

    @pytest.mark.parametrize("channels", [3, 5])
    def test_the_header_is_believed_only_within_the_limit(self, channels: int) -> None:
        file = npy(np.zeros((1, 1), np.uint8)).replace(b"(1, 1)", b"(999999, 999999)")[: 10 + 118 + 1]
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as members:
            members.writestr("a.npy", file)
        for content in (file, archive.getvalue()):
            with pytest.raises(UserError, match=r"^a: "):
                read_pixels(content, Preprocess(size=9, channels=channels), name="a")

    @pytest.mark.parametrize("cut", [5, 30, 100, 140])
    def test_files_that_are_cut(self, cut: int) -> None:
        for file in (npy(noise(9, 9)), npz(a=noise(9, 9)), b"II*\0" + bytes(100)):
            for channels in (3, 5):
                with pytest.raises(UserError):
                    read_pixels(file[:cut], Preprocess(size=9, channels=channels), name="a")

    def test_several_arrays_are_not_an_image(self) -> None:
        with pytest.raises(UserError, match=r"holds 2 arrays \(a.npy, b.npy\)"):
            decode(npz(a=noise(2, 2), b=noise(2, 2)))

    def test_an_array_of_many_pixels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MMCL_MAX_PIXELS", "100")
        for image in (npy(noise(20, 30)), noise(20, 30)):
            with pytest.raises(UserError, match="limit"):
                decode(image)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("small_cnn", {"image_size": [16, 40], "channels": 5}),
        ("strided_cnn", {"image_size": [16, 41], "channels": 2}),
        ("timm", {"name": "test_convnext", "image_size": [64, 96], "in_chans": 5}),
        ("torchvision", {"name": "squeezenet1_1", "image_size": [64, 96]}),
    ],
)
def test_encoders_of_other_frames_and_channels(name: str, args: dict[str, Any]) -> None:
    encoder = IMAGE_ENCODERS.build(name, args).eval()
    preprocess = encoder.preprocess
    assert (preprocess.height, preprocess.width) == tuple(args["image_size"])
    pixels = torch.stack([read_pixels(noise(50, 70, preprocess.channels), preprocess)] * 2).float().div(255)
    features = encoder(pixels)
    assert features.shape == (2, encoder.feature_dim)
    again = IMAGE_ENCODERS.build(name, dict(encoder.rebuild_args)).eval()
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again(pixels), features)


def png16(values: np.ndarray, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG file of 16 bits, uint16 [H, W, C], written by the specification; Pillow and torchvision write none in color."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def pnm(values: np.ndarray, top: int) -> bytes:
    kind = b"P6" if values.ndim == 3 else b"P5"
    return kind + f"\n# by hand\n{values.shape[1]} {values.shape[0]}\n{top}\n".encode() + values.astype(">u2").tobytes()


def tiff(values: np.ndarray, **options: Any) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="rgb" if values.ndim == 3 else "minisblack", **options)
    return file.getvalue()


DEEP = {
    "png": png16,
    "ppm": lambda values: pnm(values, 4095),
    "tiff": tiff,
    "compressed tiff": lambda values: tiff(values, compression="zlib"),
    "planar tiff": lambda values: tiff(np.ascontiguousarray(values.transpose(2, 0, 1)), planarconfig="separate"),
    "compressed planar tiff": lambda values: tiff(
        np.ascontiguousarray(values.transpose(2, 0, 1)), planarconfig="separate", compression="zlib"
    ),
    "big-endian tiff": lambda values: tiff(values, byteorder=">"),
    "float tiff": lambda values: tiff(values.astype(np.float32)),
    "int32 tiff": lambda values: tiff(values.astype(np.int32)),
    "npy": npy,
}


class TestDeepColor:
    """No file of more than 8 bits is cut before the intensity is applied: the same levels as of the array."""

    @pytest.mark.parametrize("intensity", [(0, 4095), (100, 300), Percentiles((1, 99)), Percentiles((0, 100))], ids=str)
    @pytest.mark.parametrize("kind", DEEP)
    def test_colors(self, kind: str, intensity: Any) -> None:
        colors = values(np.uint16, 9, 13, 3)
        decoded = decode(DEEP[kind](colors), intensity=intensity)
        assert decoded.mode == "RGB"
        assert np.array_equal(np.asarray(decoded), pixels(colors, intensity=intensity))

    def test_a_tiff_in_planes_is_read_without_intensity_too(self) -> None:
        colors = values(np.uint16, 9, 13, 3, top=65535)
        assert np.array_equal(pixels(DEEP["planar tiff"](colors)), pixels(colors))

    @pytest.mark.parametrize("kind", ["png", "pgm", "tiff", "int32", "npy"])
    def test_grays(self, kind: str) -> None:
        gray = values(np.uint16, 9, 13)
        file = {
            "png": lambda: png16(gray[..., None]),
            "pgm": lambda: pnm(gray, 4095),
            "tiff": lambda: tiff(gray),
            "int32": lambda: tiff(gray.astype(np.int32)),
            "npy": lambda: npy(gray),
        }[kind]()
        for intensity in ((0, 4095), Percentiles((2, 98))):
            assert np.array_equal(pixels(file, intensity=intensity), pixels(gray, intensity=intensity))

    @pytest.mark.parametrize("channels", [2, 4])
    @pytest.mark.parametrize("intensity", [(0, 4095), Percentiles((0, 100))], ids=str)
    def test_transparency_has_its_own_range(self, channels: int, intensity: Any) -> None:
        image = values(np.uint16, 9, 13, channels)
        image[..., -1] = 65535
        image[0, :, -1] = 0
        decoded = np.asarray(decode(png16(image), intensity=intensity))
        colors = np.asarray(decode(image[..., : channels - 1], intensity=intensity))
        assert (decoded[0] == 255).all()
        assert np.array_equal(decoded[1:], colors[1:])

    def test_every_channel_of_a_png_is_a_band_to_a_model_of_four(self) -> None:
        image = values(np.uint16, 9, 13, 4)
        expected = read_bands(image, 4, (0, 4095), name="a")
        assert np.array_equal(read_bands(png16(image), 4, (0, 4095), name="a"), expected)

    @pytest.mark.parametrize("orientation", [1, 3, 6])
    def test_orientation(self, orientation: int) -> None:
        image = values(np.uint16, 9, 13, 3)
        exif = Image.Exif()
        exif[0x0112] = orientation
        plain = pixels(image, intensity=(0, 4095))
        turned = pixels(png16(image, (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))), intensity=(0, 4095))
        assert np.array_equal(turned, np.rot90(plain, {1: 0, 3: 2, 6: 3}[orientation]))

    def test_without_intensity_all_16_bits_are_taken(self, caplog: pytest.LogCaptureFixture) -> None:
        warn_of_darkness.cache_clear()
        image = values(np.uint16, 9, 13, 3, top=65535)
        assert np.abs(np.asarray(decode(png16(image))).astype(int) - image // 257).max() <= 1
        decode(png16(values(np.uint16, 9, 13, 3)))
        assert "nearly black" in caplog.text

    def test_damage_is_one_line(self) -> None:
        for file in (png16(values(np.uint16, 9, 13, 3))[:-60], pnm(values(np.uint16, 9, 13, 3), 4095)[:-9]):
            with pytest.raises(UserError, match="cannot be decoded"):
                decode(file, intensity=(0, 4095))


class TestPercentiles:
    def test_are_those_of_the_image(self) -> None:
        image = values(np.float32, 40, 50, 3, top=10_000) - 5_000
        low, high = np.percentile(image.astype(np.float64), [5, 90])
        expected = np.rint(np.clip((image.astype(np.float64) - low) / (high - low), 0, 1) * 255)
        decoded = np.asarray(decode(image, intensity=Percentiles((5, 90)))).astype(int)
        assert np.abs(decoded - expected).max() <= 1

    def test_an_image_of_one_value_is_black(self) -> None:
        assert not np.asarray(decode(np.full((4, 4), 7.5, np.float32), intensity=Percentiles((1, 99)))).any()

    def test_survive_being_saved(self) -> None:
        given = Preprocess.from_json({"size": 9, "intensity": {"percentiles": [1, 99]}})
        assert given.intensity == Percentiles((1, 99))
        assert Preprocess.from_json(json.loads(json.dumps(asdict(given)))) == given
        assert hash(given)

    @pytest.mark.parametrize("given", [[99, 1], [1], [-1, 99], [1, 101], [1, "b"], "ab", None, [float("nan"), 5]], ids=str)
    def test_invalid_percentiles_are_refused(self, given: Any) -> None:
        with pytest.raises(UserError, match="percentiles"):
            Preprocess.from_json({"size": 9, "intensity": {"percentiles": given}})
