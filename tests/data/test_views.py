"""Views that differ: by name or by family, at decoding or on cached pictures, the same for any processes and workers."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from mmcl.config import DataConfig, from_dict
from mmcl.data.views import ImageView, build_image_views
from mmcl.errors import UserError
from tests.data.test_loader import PREPROCESS, Toy, batches, rows

NAMES = ["a", "b", "small_0", "small_1"]
AT_DECODING = {
    "crop": {"scale": [0.5, 1.0]},
    "views": {"small": {"crop": {"scale": [0.1, 0.3]}, "size": 4}, "small_1": {"augment": [{"name": "invert"}]}},
}
ON_CACHED = {
    "augment": [{"name": "crop", "args": {"scale": [0.5, 1.0]}}, {"name": "hflip"}],
    "views": {
        "b": {"augment": [{"name": "solarise", "args": {"p": 1.0}}]},
        "small": {"augment": [{"name": "crop", "args": {"scale": [0.1, 0.3], "size": 4}}]},
    },
}


def views(data: dict, names: list[str] = NAMES) -> dict[str, ImageView]:
    return build_image_views(names, from_dict(DataConfig, data, "data"), PREPROCESS)


def multi_crop(data: dict, **options):
    source = Toy(bad_pictures=(3, 17), labels=[i % 3 for i in range(40)])
    return batches(source, views={}, images=views(data), **options)


def test_a_name_goes_before_its_family_and_a_family_before_the_rest():
    built = views(AT_DECODING)
    assert [view.number for view in built.values()] == [0, 1, 2, 3]
    assert [view.crop.scale for view in built.values()] == [(0.5, 1.0), (0.5, 1.0), (0.1, 0.3), (0.5, 1.0)]
    assert [view.preprocess.size for view in built.values()] == [8, 8, 4, 8]
    assert [view.augment is None for view in built.values()] == [True, True, True, False]


def test_augmentations_of_a_view_replace_those_of_all():
    built = views(ON_CACHED)
    names = [[type(operation).__name__ for operation in view.augment.operations] for view in built.values()]
    assert names == [["Crop", "HorizontalFlip"], ["Solarise"], ["Crop"], ["Crop"]]
    assert views({"augment": [{"name": "hflip"}], "views": {"a": {"augment": []}}}, ["a"])["a"].augment is None


def test_views_that_the_method_does_not_have():
    with pytest.raises(UserError, match=r"unknown image view 'smal'.*did you mean 'small'"):
        views({"views": {"smal": {}}})


@pytest.mark.parametrize("data", [AT_DECODING, ON_CACHED], ids=["decoded", "cached"])
class TestMultiCrop:
    def test_sizes_and_draws(self, data):
        batch = multi_crop(data)[0]
        sizes = [4, 4] if data is ON_CACHED else [4, 8]
        assert [view.shape[-1] for view in batch.views.values()] == [8, 8, *sizes]
        assert not torch.equal(batch.views["a"], batch.views["b"])
        assert data is AT_DECODING or not torch.equal(batch.views["small_0"], batch.views["small_1"])

    def test_processes_and_workers_change_nothing(self, data):
        whole = multi_crop(data)
        expected = [rows(whole[step]) for step in range(4)]
        for world in (2, 3, 4):
            ranks = [multi_crop(data, rank=rank, world=world) for rank in range(world)]
            assert [[row for part in ranks for row in rows(part[step])] for step in range(4)] == expected
        for workers in (1, 2):
            loader = DataLoader(whole, sampler=range(4), batch_size=None, num_workers=workers)
            assert [rows(batch) for batch in loader] == expected


def test_an_override_of_one_view_leaves_the_draws_of_the_others():
    plain, other = multi_crop({"augment": ON_CACHED["augment"]})[2], multi_crop(ON_CACHED)[2]
    assert torch.equal(plain.views["a"], other.views["a"])
    assert not torch.equal(plain.views["b"], other.views["b"])
