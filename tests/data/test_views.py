"""Views with settings of their own, by name or by family, decoded or from cached images, in any processes and workers."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mmcl.config import DataConfig, from_dict
from mmcl.data.batches.loader import StepBatches
from mmcl.data.batches.views import ImageView, build_image_views, make_views
from mmcl.data.images.crop import RandomResizedCrop
from mmcl.data.images.decode import decode
from mmcl.data.images.tensors import part_to_tensor, read_pixels
from mmcl.data.sample import Sample
from mmcl.errors import UserError
from mmcl.preprocess import Preprocess
from tests.data.test_decode import encode, oriented
from tests.data.test_loader import AUGMENT, PREPROCESS, Toy, batches, images, rows
from tests.narrow import present

NAMES = ["a", "b", "small_0", "small_1"]
AT_DECODING: dict[str, Any] = {
    "crop": {"scale": [0.5, 1.0]},
    "views": {"small": {"crop": {"scale": [0.1, 0.3]}, "size": 4}, "small_1": {"augment": [{"name": "invert"}]}},
}
ON_CACHED: dict[str, Any] = {
    "augment": [{"name": "crop", "args": {"scale": [0.5, 1.0]}}, {"name": "hflip"}],
    "views": {
        "b": {"augment": [{"name": "solarize", "args": {"p": 1.0}}]},
        "small": {"augment": [{"name": "crop", "args": {"scale": [0.1, 0.3], "size": 4}}]},
    },
}


def views(data: dict[str, Any], names: list[str] = NAMES) -> dict[str, ImageView]:
    return build_image_views(names, from_dict(DataConfig, data, "data"), PREPROCESS)


def multi_crop(data: dict[str, Any], **options: Any) -> StepBatches:
    source = Toy(bad_images=(3, 17), labels=[i % 3 for i in range(40)])
    return batches(source, views={}, images=views(data), **options)


def test_a_name_goes_before_its_family_and_a_family_before_the_rest() -> None:
    built = views(AT_DECODING)
    assert [view.number for view in built.values()] == [0, 1, 2, 3]
    assert [present(view.crop).scale for view in built.values()] == [(0.5, 1.0), (0.5, 1.0), (0.1, 0.3), (0.5, 1.0)]
    assert [view.preprocess.size for view in built.values()] == [8, 8, 4, 8]
    assert [view.augment is None for view in built.values()] == [True, True, True, False]


def test_augmentations_of_a_view_replace_those_of_all() -> None:
    built = views(ON_CACHED)
    names = [[type(operation).__name__ for operation in present(view.augment).operations] for view in built.values()]
    assert names == [["Crop", "HorizontalFlip"], ["Solarize"], ["Crop"], ["Crop"]]
    assert views({"augment": [{"name": "hflip"}], "views": {"a": {"augment": []}}}, ["a"])["a"].augment is None


def test_views_that_the_method_does_not_have() -> None:
    with pytest.raises(UserError, match=r"unknown image view 'smal'.*did you mean 'small'"):
        views({"views": {"smal": {}}})


@pytest.mark.parametrize("data", [AT_DECODING, ON_CACHED], ids=["decoded", "cached"])
class TestMultiCrop:
    def test_sizes_and_draws(self, data: dict[str, Any]) -> None:
        shown = images(multi_crop(data)[0])
        sizes = [4, 4] if data is ON_CACHED else [4, 8]
        assert [view.shape[-1] for view in shown.values()] == [8, 8, *sizes]
        assert not torch.equal(shown["a"], shown["b"])
        assert data is AT_DECODING or not torch.equal(shown["small_0"], shown["small_1"])

    def test_processes_and_workers_change_nothing(self, data: dict[str, Any]) -> None:
        whole = multi_crop(data)
        expected = [rows(whole[step]) for step in range(4)]
        for world in (2, 3, 4):
            ranks = [multi_crop(data, rank=rank, world=world) for rank in range(world)]
            assert [[row for part in ranks for row in rows(part[step])] for step in range(4)] == expected
        for workers in (1, 2):
            loader = DataLoader(whole, sampler=range(4), batch_size=None, num_workers=workers)
            assert [rows(batch) for batch in loader] == expected


def test_an_override_of_one_view_leaves_the_draws_of_the_others() -> None:
    plain, other = (images(multi_crop(data)[2]) for data in ({"augment": ON_CACHED["augment"]}, ON_CACHED))
    assert torch.equal(plain["a"], other["a"])
    assert not torch.equal(plain["b"], other["b"])


class TestShow:
    """What a view shows of a file does not hang on how finely the file is decoded, but for the last details."""

    DRAW: ClassVar[dict[str, Any]] = {"seed": 1, "epoch": 2, "index": 3}

    def views(self, *sizes: int, scale: tuple[float, float] = (0.9, 1.0)) -> dict[str, ImageView]:
        return {
            str(number): ImageView(number=number, preprocess=Preprocess(size=size), crop=RandomResizedCrop(scale=scale))
            for number, size in enumerate(sizes)
        }

    @pytest.mark.parametrize("size", [200, 100, 50, 20])
    @pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
    def test_a_shrunk_file_shows_the_same_part(self, photo: Image.Image, orientation: int, size: int) -> None:
        whole_blocks = photo.crop((0, 0, 640, 424))
        file = encode(whole_blocks, "JPEG", quality=90, exif=oriented(orientation))
        views = self.views(size)
        # An image of the caller's is never shrunk.
        [shown], [full] = (make_views(image, views, **self.DRAW).values() for image in (file, decode(file)))
        assert 0 < (shown.int() - full.int()).abs().float().mean() < 3
        # The rest is detail: a pixel further, the difference would be of another size.
        assert (shown[:, 1:].int() - full[:, :-1].int()).abs().float().mean() > 9

    def test_a_file_that_is_not_shrunk_shows_every_bit(self, photo: Image.Image) -> None:
        file = encode(photo, "JPEG")
        for views in (self.views(224, 448), self.views(300, 20), self.views(64, scale=(0.01, 0.02))):
            of_file, of_pixels = (make_views(image, views, **self.DRAW) for image in (file, decode(file)))
            assert all(torch.equal(of_file[key], of_pixels[key]) for key in views)

    def test_a_view_without_a_crop_is_as_in_an_evaluation(self, photo: Image.Image) -> None:
        file = encode(photo, "JPEG")
        views = self.views(20) | {"whole": ImageView(number=1, preprocess=PREPROCESS)}
        assert torch.equal(make_views(file, views, **self.DRAW)["whole"], read_pixels(file, PREPROCESS))

    def test_the_part_is_the_one_that_was_drawn(self, photo: Image.Image) -> None:
        [view] = self.views(50, scale=(0.1, 0.2)).values()
        left, top, right, bottom = present(view.crop).box(*photo.size, **self.DRAW, view=0)
        scale = view.part(*photo.size, **self.DRAW).scale
        box = left // scale * scale, top // scale * scale, right // scale * scale, bottom // scale * scale
        expected = part_to_tensor(photo, view.preprocess, box)
        assert torch.equal(make_views(photo, {"a": view}, **self.DRAW)["a"], expected)

    def test_a_part_keeps_a_pixel_for_each_that_is_shown(self) -> None:
        [view] = self.views(30, scale=(0.01, 1.0)).values()
        seen = set()
        for index in range(300):
            box, scale = view.part(640, 427, seed=0, epoch=0, index=index)
            left, top, right, bottom = present(box)
            assert all(side % scale == 0 for side in (left, top, right, bottom))
            assert 0 <= left < right <= 640
            assert 0 <= top < bottom <= 427
            shorter = min(right - left, bottom - top)
            assert scale == 1 or shorter >= 30 * scale
            assert scale == 8 or shorter <= 30 * scale * 2
            seen.add(scale)
        assert seen == {1, 2, 4, 8}


class Photos(Toy):
    """Parts of a photo as JPEG files, each turned in its own way."""

    def __init__(self, photo: Image.Image):
        super().__init__()
        parts = (photo.crop((7 * i, 5 * i, 7 * i + 101, 5 * i + 83)) for i in range(40))
        self.files = [encode(part, "JPEG", exif=oriented(1 + i % 8)) for i, part in enumerate(parts)]

    def __getitem__(self, index: int) -> Sample:
        return Sample(f"photo/{index}", self.files[index], (f"caption {index}",))


def test_photos_are_the_same_from_every_process(photo: Image.Image) -> None:
    made = batches(Photos(photo), crop=RandomResizedCrop(scale=(0.2, 1.0)), augment=AUGMENT)
    expected = [rows(made[step]) for step in range(6)]
    for workers in (1, 2):
        loader = DataLoader(made, sampler=range(6), batch_size=None, num_workers=workers)
        assert [rows(batch) for batch in loader] == expected
