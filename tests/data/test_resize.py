"""Resizing of whole images and of parts against Pillow and torchvision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode

from mmcl.data.images.decode import decode, opened
from mmcl.data.images.image_cache import ReadableImages, decoded_batches
from mmcl.data.images.resize import _shrink
from mmcl.data.images.tensors import part_to_tensor, read_pixels, to_tensor
from mmcl.data.sample import Sample
from mmcl.data.source import SampleList
from mmcl.errors import UserError
from mmcl.preprocess import Backend, CropRounding, Interpolation, Preprocess, Resize
from tests.data.test_decode import encode, noise, oriented


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize_size", [None, 19, 23, 13])
def test_shortest_is_the_usual_resize_and_center_crop(resize_size: int | None, interpolation: Interpolation) -> None:
    sizes = np.random.default_rng(1).integers(1, 120, (40, 2)).tolist()
    for height, width in [*sizes, (1, 1), (300, 16), (16, 16)]:
        image = Image.fromarray(noise(height, width))
        resized = F.resize(image, [resize_size or 16], interpolation=InterpolationMode(interpolation))
        expected = F.pil_to_tensor(F.center_crop(resized, [16]))
        tensor = to_tensor(image, Preprocess(size=16, interpolation=interpolation, resize_size=resize_size, fill=0))
        assert torch.equal(tensor, expected), (height, width)


@pytest.mark.parametrize("rounding", ["truncate", "floor"])
@pytest.mark.parametrize(("width", "start"), [(9, (2, 2)), (8, (1, 1)), (7, (1, 1)), (3, (-1, -1)), (2, (-1, -2))])
def test_where_a_crop_begins(width: int, start: tuple[int, int], rounding: CropRounding) -> None:
    image = Image.fromarray(noise(5, width))
    preprocess = Preprocess(size=5, resize="none", crop_rounding=rounding, fill=9)
    tensor, first = to_tensor(image, preprocess), start[rounding == "floor"]
    for column in range(5):
        inside = 0 <= column + first < width
        expected = F.pil_to_tensor(image)[:, :, column + first] if inside else torch.full((3, 5), 9)
        assert torch.equal(tensor[:, :, column], expected.to(torch.uint8))


def test_squash_and_pad() -> None:
    image = Image.fromarray(noise(20, 40))
    squashed = to_tensor(image, Preprocess(size=10, resize="squash"))
    assert torch.equal(squashed, F.pil_to_tensor(image.resize((10, 10), Image.Resampling.BICUBIC)))
    padded = to_tensor(image, Preprocess(size=10, resize="pad"))
    assert (padded[:, :2] == 255).all()
    assert (padded[:, 7:] == 255).all()
    assert torch.equal(padded[:, 2:7], F.pil_to_tensor(image.resize((10, 5), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("box", [(0, 0, 640, 427), (31, 17, 500, 410), (100, 50, 122, 91), (3, 4, 4, 5)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_part_is_cut_out_and_resized(
    photo: Image.Image, channels: int, box: tuple[int, int, int, int], interpolation: Interpolation
) -> None:
    part = part_to_tensor(photo, Preprocess(size=56, channels=channels, interpolation=interpolation, resize="pad"), box)
    cut = photo.convert("L" if channels == 1 else "RGB").crop(box)
    expected = F.pil_to_tensor(cut.resize((56, 56), Image.Resampling[interpolation.upper()]))
    assert part.dtype == torch.uint8
    assert part.shape == expected.shape
    assert (part.int() - expected.int()).abs().max() <= (0 if interpolation == "nearest" else 1)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_part_of_an_image_whose_memory_is_in_blocks(mode: str) -> None:
    """Pillow allocates large images piece by piece, and lends the memory of none of them."""
    image = Image.fromarray(np.tile(noise(500, 600), (9, 9, 1))).convert(mode)
    box = (0, 0, image.width, image.height)
    if mode == "RGB":
        with pytest.raises(ValueError, match=r"not contiguous|multiple array blocks"):
            pyarrow.array(image.crop(box))
    preprocess = Preprocess(size=32, channels=len(mode), interpolation="bilinear")
    part = part_to_tensor(image, preprocess, box)
    expected = F.pil_to_tensor(image.resize((32, 32), Image.Resampling.BILINEAR))
    assert (part.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(("channels", "mode"), [(1, "RGB"), (3, "L"), (1, "L"), (3, "RGB")])
def test_channels(channels: int, mode: str) -> None:
    image = Image.fromarray(noise(9, 9)).convert(mode)
    tensor = to_tensor(image, Preprocess(size=9, channels=channels))
    assert torch.equal(tensor, F.pil_to_tensor(image.convert("L" if channels == 1 else "RGB")))


@pytest.mark.parametrize(("width", "height"), [(1, 20_000), (20_000, 1)])
@pytest.mark.parametrize("resize", ["shortest", "pad", "squash"])
@pytest.mark.parametrize("backend", ["pillow", "torchvision", "torchvision_float"])
def test_extreme_aspects_take_little_memory(width: int, height: int, resize: Resize, backend: Backend) -> None:
    # Resized whole, the shorter side to 224, this image would have a billion pixels.
    preprocess = Preprocess(size=224, channels=1, resize=resize, backend=backend)
    tensor = to_tensor(Image.new("L", (width, height), 7), preprocess)
    assert tensor.shape == (1, 224, 224)
    assert ((tensor - 7.0).abs() < 1e-4).any()


@pytest.mark.parametrize("shape", [(5, 400), (400, 5), (3, 251)], ids=str)
@pytest.mark.parametrize("backend", ["pillow", "torchvision", "torchvision_float"])
@pytest.mark.parametrize("resize_size", [32, 37, 27])
def test_of_a_very_long_image_only_the_part_that_is_shown_is_resized(
    monkeypatch: pytest.MonkeyPatch, resize_size: int, backend: Backend, shape: tuple[int, int]
) -> None:
    photo_like = np.asarray(Image.fromarray(noise(-(-shape[0] // 4), -(-shape[1] // 4))).resize(shape[::-1]))
    # What is not rounded may be any number of levels beyond 255 where a bicubic filter overshoots.
    interpolation: Interpolation = "bilinear" if backend == "torchvision_float" else "bicubic"
    preprocess = Preprocess(size=32, resize_size=resize_size, backend=backend, fill=0, interpolation=interpolation)
    whole = to_tensor(Image.fromarray(photo_like), preprocess)
    monkeypatch.setattr("mmcl.data.images.resize._WHOLE_PIXELS", 0)
    part = to_tensor(Image.fromarray(photo_like), preprocess)
    assert part.dtype == whole.dtype
    assert (part.float() - whole.float()).abs().max() <= 2


def test_a_view_of_another_size_shows_the_same_part() -> None:
    small = Preprocess(size=224, resize_size=256).at(112)
    assert (small.size, small.resize_size) == (112, 128)
    assert Preprocess(size=224, resize="squash").at((64, 96)) == Preprocess(size=(64, 96), resize="squash")


@pytest.mark.parametrize("shape", [(9, 9), (9, 9, 1), (9, 9, 3), (9, 9, 4), (9, 12), (7, 7, 3)], ids=str)
@pytest.mark.parametrize("resize", ["shortest", "squash", "pad"])
@pytest.mark.parametrize("resize_size", [None, 9, 11])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_array_of_the_right_size_comes_as_through_pillow(
    channels: int, resize_size: int | None, resize: Resize, shape: tuple[int, ...]
) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    array.flags.writeable = False
    preprocess = Preprocess(size=9, channels=channels, resize=resize, resize_size=resize_size)
    expected = to_tensor(decode(array), preprocess)
    pixels = read_pixels(array, preprocess)
    assert torch.equal(pixels, expected)
    assert pixels.shape == (channels, 9, 9)
    pixels.zero_()
    assert array.any()


@pytest.mark.parametrize("backend", ["pillow", "torchvision_float"])
def test_a_tensor_has_been_resized_already(backend: Backend) -> None:
    preprocess = Preprocess(size=9, resize_size=11, backend=backend)
    pixels = read_pixels(noise(20, 30), preprocess)
    assert torch.equal(read_pixels(pixels, preprocess), pixels)
    for other in (pixels[:, :8], pixels[:1], pixels.to(torch.float64)):
        with pytest.raises(UserError, match="a tensor is taken as it is"):
            read_pixels(other, preprocess)


def test_images_that_are_read_for_an_index_are_resized_once() -> None:
    class OneImage(SampleList):
        fingerprint = "one"
        _samples = (Sample("a", noise(20, 30)),)

    preprocess = Preprocess(size=9, resize_size=11)
    [once] = decoded_batches(ReadableImages(OneImage(), preprocess), preprocess, 1)
    assert torch.equal(once[0], read_pixels(noise(20, 30), preprocess))


class TestShrinkOnLoad:
    @pytest.mark.parametrize("resize", ["shortest", "squash", "pad"])
    @pytest.mark.parametrize("orientation", [1, 6])
    @pytest.mark.parametrize("size", [20, 37, 70, 100])
    def test_photos_are_the_same_but_for_four_levels_on_average(
        self, photo: Image.Image, size: int, orientation: int, resize: Resize
    ) -> None:
        file = encode(photo, "JPEG", quality=90, exif=oriented(orientation))
        exact = Preprocess(size=size, resize=resize)
        shrunk = read_pixels(file, replace(exact, shrink_on_load=True))
        assert shrunk.shape == (3, size, size)
        assert (shrunk.float() - read_pixels(file, exact).float()).abs().mean() < 4
        assert not torch.equal(shrunk, read_pixels(file, exact))

    def test_only_what_has_two_pixels_for_each_that_is_left(self, photo: Image.Image) -> None:
        for size, scale in ((26, 8), (27, 4), (53, 4), (54, 2), (106, 2), (107, 1)):  # of 427 rows
            with opened(encode(photo, "JPEG")) as stored:
                assert _shrink(stored, Preprocess(size=size, shrink_on_load=True)) == scale

    def test_nothing_else_and_not_by_default(self, photo: Image.Image) -> None:
        jpeg, png = encode(photo, "JPEG"), encode(photo)
        assert torch.equal(read_pixels(jpeg, Preprocess(size=20)), to_tensor(decode(jpeg), Preprocess(size=20)))
        on = Preprocess(size=20, shrink_on_load=True)
        for image in (png, photo, np.asarray(photo)):
            assert torch.equal(read_pixels(image, on), to_tensor(decode(image), on))
