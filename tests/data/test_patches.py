"""Patches that images keep: a function of sample, epoch and view, every set of them equally likely."""

from __future__ import annotations

import numpy as np
from scipy.stats import chisquare
from torch import Tensor

from mmcl.data.batches.order import Order
from mmcl.data.batches.patches import PatchCount, PatchDropout
from mmcl.types import Batch, ImagePatches
from tests.data.test_loader import SOME_PATCHES, TWO, Toy, batches, rows
from tests.narrow import of_type


def test_each_view_keeps_its_own_patches_until_a_step() -> None:
    """Those of the draws for its epoch and sample, whatever the order of the rows; no other pixels or texts than without."""
    drop = PatchDropout({"a": PatchCount(2, 9), "b": PatchCount(8, 9)}, 3)
    made, without = batches(views=TWO, patches=drop), batches(views=TWO)
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
        batches(patches=SOME_PATCHES, by_length=is_sorted, source=Toy(captions={3: ("long" * 9,)}))[0]
        for is_sorted in (False, True)
    )
    assert plain.index.tolist() != by_length.index.tolist()
    assert kept_by_sample(plain) == kept_by_sample(by_length)


def kept_by_sample(batch: Batch) -> dict[int, list[int]]:
    return dict(zip(batch.index.tolist(), of_type(ImagePatches, batch.views["image"]).kept.tolist(), strict=True))


def test_every_set_of_patches_is_equally_likely() -> None:
    """Of one sample over epochs, and of samples in one epoch; two views are independent."""
    drop, draws = PatchDropout({"a": PatchCount(2, 5)}, 1), 20_000
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
