"""What is seen of images in most steps. Patches that they keep: a function of sample, epoch and view, every set of them equally
likely. Smaller images: the same part of each, after the same draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from torch import Tensor

from mmcl.data.batches.fewer_tokens import FewerTokens, PatchCount
from mmcl.data.batches.loader import StepBatches
from mmcl.data.batches.order import Order
from mmcl.data.batches.views import ImageView
from mmcl.data.images.crop import RandomResizedCrop
from mmcl.data.images.tensors import part_to_tensor
from mmcl.preprocess import Preprocess
from mmcl.types import Batch, ImagePatches
from tests.data.test_loader import AUGMENT, SMALLER, SOME_PATCHES, TWO, Toy, batches, rows
from tests.narrow import of_type


def test_each_view_keeps_its_own_patches_until_a_step() -> None:
    """Those of the draws for its epoch and sample, whatever the order of the rows; no other pixels or texts than without."""
    drop = FewerTokens(until=3, steps=9, counts={"a": PatchCount(2, 9), "b": PatchCount(8, 9)})
    made, without = batches(views=TWO, fewer=drop), batches(views=TWO)
    for step in range(3):
        batch, (epoch, index) = made[step], Order(40, 12, 3).rows(step)
        assert not batch.stored
        for number, name in enumerate(TWO):
            view = of_type(ImagePatches, batch.views[name])
            assert (view.patches, view.pixels.tolist()) == (9, of_type(Tensor, without[step].views[name]).tolist())
            expected = drop.draw(name, seed=3, number=number, epoch=epoch, index=index)
            assert view.kept.tolist() == expected.tolist()
    assert rows(made[3]) == rows(without[3])
    plain, by_length = (
        batches(fewer=SOME_PATCHES, by_length=is_sorted, source=Toy(captions={3: ("long" * 9,)}))[0]
        for is_sorted in (False, True)
    )
    assert plain.index.tolist() != by_length.index.tolist()
    assert kept_by_sample(plain) == kept_by_sample(by_length)


def kept_by_sample(batch: Batch) -> dict[int, list[int]]:
    return dict(zip(batch.index.tolist(), of_type(ImagePatches, batch.views["image"]).kept.tolist(), strict=True))


def test_every_set_of_patches_is_equally_likely() -> None:
    """Of one sample over epochs, and of samples in one epoch; two views are independent."""
    drop, draws = FewerTokens(until=1, steps=9, counts={"a": PatchCount(2, 5)}), 20_000
    many, one = np.arange(draws), np.zeros(draws, np.int64)
    found = {}
    for name, (epoch, index, number) in {"epochs": (many, one, 0), "samples": (one, many, 0), "b": (one, many, 1)}.items():
        found[name] = drop.draw("a", seed=7, number=number, epoch=epoch, index=index)
        assert (found[name][:, 0] < found[name][:, 1]).all()
        sets, times = np.unique(found[name], axis=0, return_counts=True)
        assert len(sets) == 10
        assert chisquare(times).pvalue > 1e-3
    both = np.unique(np.hstack([found["samples"], found["b"]]), axis=0, return_counts=True)[1]
    assert len(both) == 100
    assert chisquare(both).pvalue > 1e-3


def test_smaller_images_show_what_the_others_show() -> None:
    """The same part, resized to fewer pixels, after the same draws; of views with a size of their own, too."""
    crop, large = RandomResizedCrop(scale=(0.2, 0.9)), Preprocess(size=8)
    views = {
        name: ImageView(number=number, preprocess=large.at(side), crop=crop, augment=AUGMENT)
        for number, (name, side) in enumerate({"a": 8, "b": 4}.items())
    }
    smaller = {**views, "a": replace(views["a"], preprocess=large.at(6))}
    source, order = Toy(), Order(40, 12, 3)
    made = StepBatches(source, order, images=views, fewer=FewerTokens(until=3, steps=9, views=smaller))
    without = StepBatches(source, order, images=views)
    for step in range(3):
        batch, (epoch, index) = made[step], order.rows(step)
        parts = [
            (Image.fromarray(source.pixels[i]), crop.box(10, 12, seed=3, epoch=e, index=i, view=0))
            for e, i in zip(epoch.tolist(), index.tolist(), strict=True)
        ]
        shown = torch.stack([part_to_tensor(image, large.at(6), box) for image, box in parts]).float() / 255
        expected = AUGMENT(shown, seed=3, epoch=epoch, index=index, view=0)
        assert torch.equal(of_type(Tensor, batch.views["a"]), expected)
        assert torch.equal(of_type(Tensor, batch.views["b"]), of_type(Tensor, without[step].views["b"]))
    assert rows(made[3]) == rows(without[3])


@pytest.mark.parametrize(("room", "kept"), [(40 * 3 * (25 + 64), [5, 8]), (40 * 3 * 64, [5]), (40 * 3 * 24, [])])
def test_images_in_memory_of_all_sizes_are_below_the_bound(room: int, kept: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the first and most steps before the others."""
    monkeypatch.setattr("mmcl.data.batches.loader.CACHE_BYTES", room)
    made, expected = batches(augment=AUGMENT, fewer=SMALLER), batches(augment=AUGMENT, fewer=SMALLER, cache=False)
    assert [size.height for size in made._caches] == kept
    assert [rows(made[step]) for step in (2, 3)] == [rows(expected[step]) for step in (2, 3)]
    always = FewerTokens(until=9, steps=9, views=SMALLER.views)
    assert [size.height for size in batches(fewer=always)._caches] == kept[:1]
