"""Batches are pure functions of the step, for any number of workers and processes, with caches, resumes and bad samples."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from mmcl.config import ComponentConfig
from mmcl.core.cached_backward import split_views
from mmcl.data.augment.pipeline import AugmentationPipeline
from mmcl.data.batches.bad_samples import BadSampleBudget
from mmcl.data.batches.fewer_tokens import FewerTokens, PatchCount
from mmcl.data.batches.loader import StepBatches
from mmcl.data.batches.order import BatchOrder, Order
from mmcl.data.batches.views import ImageView
from mmcl.data.captions import NotText
from mmcl.data.images.crop import RandomResizedCrop
from mmcl.data.images.image_cache import decoded_batches
from mmcl.data.images.tensors import to_tensor
from mmcl.data.sample import Sample
from mmcl.data.source import Source
from mmcl.data.sources.tables.column_names import captions_of
from mmcl.engine.transfer import views_on
from mmcl.errors import UserError
from mmcl.files.digest import digest
from mmcl.preprocess import Preprocess
from mmcl.types import BadSample, Batch, Features, ImagePatches, Tokens
from tests.narrow import of_type, present

PREPROCESS = Preprocess(size=8)
PAIR = {"image": "image", "text": "text"}
TWO = {"a": "image", "b": "image"}
AUGMENT = AugmentationPipeline.build(
    [ComponentConfig(name="affine", args={"rotation": 20, "translation": 0.1}), ComponentConfig(name="hflip")]
)

View = Tensor | Tokens | Features | ImagePatches


class Toy(Source):
    """40 images of noise with captions of their own, some of them spoilt."""

    def __init__(
        self,
        size: int = 40,
        bad_images: tuple[int, ...] = (),
        captions: Mapping[int, object] | None = None,
        ids: np.ndarray | None = None,
        labels: Sequence[int | None] | None = None,
    ) -> None:
        generator = np.random.default_rng(0)
        self.pixels = generator.integers(0, 256, (size, 12, 10, 3), dtype=np.uint8)
        self.bad_images, self.replaced, self.ids = bad_images, captions or {}, ids
        self.label_of = labels or [None] * size

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Sample:
        image = b"<html>" if index in self.bad_images else self.pixels[index]
        captions = self.replaced.get(index, (f"caption {index}", f"text {index}"))
        return Sample(f"toy/{index}", image, captions, self.label_of[index])  # type: ignore[arg-type]

    @property
    def fingerprint(self) -> str:
        return digest(self.pixels.tobytes())


def tokenize(texts: Sequence[str]) -> Tokens:
    length = max(len(text) for text in texts)
    ids = torch.tensor([[ord(c) for c in text.ljust(length, "\0")] for text in texts])
    return Tokens(ids, ids != 0)


def texts(view: View) -> list[str]:
    return ["".join(map(chr, row)).rstrip("\0") for row in of_type(Tokens, view).ids.tolist()]


def images(batch: Batch) -> dict[str, Tensor]:
    return {name: view for name, view in batch.views.items() if isinstance(view, Tensor)}


def batches(
    source: Source | None = None,
    batch_size: int = 12,
    views: Mapping[str, str] = PAIR,
    seed: int = 3,
    augment: AugmentationPipeline | None = None,
    crop: RandomResizedCrop | None = None,
    images: Mapping[str, ImageView] | None = None,
    order: BatchOrder | None = None,
    tokenizer: Callable[[Sequence[str]], Tokens] | None = None,
    **options: Any,
) -> StepBatches:
    """Of views of equal crop and augmentation, or of `images` where these are given."""
    source = source or Toy()
    names = [name for name, kind in views.items() if kind == "image"]
    return StepBatches(
        source,
        order or Order(len(source), batch_size, seed),
        images=images
        or {name: ImageView(number=n, preprocess=PREPROCESS, augment=augment, crop=crop) for n, name in enumerate(names)},
        texts=[name for name, kind in views.items() if kind == "text"],
        tokenizer=tokenizer or tokenize,
        **options,
    )


def rows(batch: Batch) -> list[tuple[Any, ...]]:
    """Everything about a batch, row by row, to be compared bit for bit."""
    pixels = {name: [row.numpy().tobytes() for row in view] for name, view in images(batch).items()}
    some = {name: view for name, view in batch.views.items() if isinstance(view, ImagePatches)}
    pixels |= {
        name: [(row.numpy().tobytes(), *kept) for row, kept in zip(one.pixels, one.kept.tolist(), strict=True)]
        for name, one in some.items()
    }
    views = [pixels[name] if name in pixels else _read(view) for name, view in batch.views.items()]
    labels = [None] * len(batch.ids) if batch.labels is None else batch.labels.tolist()
    return list(zip(batch.index.tolist(), batch.ids.tolist(), labels, *views, strict=True))


def _read(view: View) -> list[Any]:
    return [row.numpy().tobytes() for row in view.rows] if isinstance(view, Features) else texts(view)


def test_a_batch_holds_what_the_order_says() -> None:
    source, made = Toy(), batches()
    batch = made[2]
    _, index = Order(40, 12, 3).rows(2)
    assert batch.index.tolist() == index.tolist()
    assert batch.ids.dtype == torch.int64
    for row, i in enumerate(index.tolist()):
        expected = to_tensor(Image.fromarray(source.pixels[i]), PREPROCESS)
        assert torch.equal(images(batch)["image"][row], expected)
        assert texts(batch.views["text"])[row] in source[i].captions


def test_images_travel_as_bytes_and_become_floats_on_the_device() -> None:
    """Augmented ones are floats already."""
    batch = batches()[2]
    travelling, arrived = images(batch)["image"], views_on("cpu", batch.views)
    assert travelling.dtype == torch.uint8
    assert torch.equal(of_type(Tensor, arrived["image"]), travelling.float() / 255)
    assert texts(arrived["text"]) == texts(batch.views["text"])
    augmented = images(batches(augment=AUGMENT)[2])["image"]
    assert augmented.dtype == torch.float32
    assert views_on("cpu", {"image": augmented})["image"] is augmented


def test_one_seed_one_batch() -> None:
    made, again, other = batches(augment=AUGMENT), batches(augment=AUGMENT), batches(augment=AUGMENT, seed=4)
    assert rows(made[5]) == rows(again[5])
    assert rows(made[5]) != rows(other[5])


SOME_PATCHES = FewerTokens(until=4, steps=9, counts={"image": PatchCount(3, 7)})
SMALLER = FewerTokens(until=3, steps=9, views={"image": ImageView(number=0, preprocess=PREPROCESS.at(5), augment=AUGMENT)})
"""Of the same draws."""


@pytest.mark.parametrize(
    "options",
    [{}, {"crop": RandomResizedCrop(scale=(0.3, 1.0))}, {"fewer": SOME_PATCHES}, {"fewer": SMALLER}],
    ids=["cached", "cropped", "some of the patches", "smaller"],
)
def test_ranks_one_after_the_other_are_one_process(options: dict[str, Any]) -> None:
    source = Toy(bad_images=(3, 17, 30), captions={5: ()})
    whole = batches(source, augment=AUGMENT, **options)
    for world in (2, 3, 4):
        ranks = [batches(source, augment=AUGMENT, rank=rank, world=world, **options) for rank in range(world)]
        for step in range(5):
            parts = [part[step] for part in ranks]
            assert [row for part in parts for row in rows(part)] == rows(whole[step])
            assert tuple(bad for part in parts for bad in part.bad_samples) == whole[step].bad_samples


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_resuming_change_nothing(workers: int) -> None:
    made = batches(Toy(bad_images=(3,)), augment=AUGMENT)
    expected = [rows(made[step]) for step in range(2, 9)]
    loader = DataLoader(made, sampler=range(2, 9), batch_size=None, num_workers=workers)
    assert [rows(batch) for batch in loader] == expected


def test_the_cache_changes_nothing_but_the_speed() -> None:
    """One of each size that occurs."""
    source = Toy(bad_images=(3, 4))
    cached, uncached = (batches(source, cache=cache, augment=AUGMENT, fewer=SMALLER) for cache in (True, False))
    for step in range(5):
        assert rows(cached[step]) == rows(uncached[step])
        assert cached[step].bad_samples == uncached[step].bad_samples


def test_two_views_differ_in_their_draws_alone() -> None:
    plain = images(batches(views=TWO)[0])
    assert torch.equal(plain["a"], plain["b"])
    for made in (batches(views=TWO, augment=AUGMENT), batches(views=TWO, crop=RandomResizedCrop(scale=(0.2, 0.5)))):
        shown = images(made[0])
        assert not torch.equal(shown["a"], shown["b"])


def test_captions_change_over_the_epochs() -> None:
    made = batches(Toy(12))
    seen = {text for step in range(12) for text in texts(made[step].views["text"])}
    assert seen == {text for i in range(12) for text in (f"caption {i}", f"text {i}")}


class TestLabels:
    def test_of_the_rows_that_are_shown(self) -> None:
        source = Toy(bad_images=(3, 17), labels=[None if i % 5 == 0 else i % 3 for i in range(40)])
        made = batches(source, views=TWO)
        for step in range(4):
            batch = made[step]
            assert batch.labels is not None
            assert batch.labels.tolist() == [-1 if i % 5 == 0 else i % 3 for i in batch.index.tolist()]
            assert torch.equal(batch.ids, batch.index), "labels do not leak into the ids"

    def test_data_without(self) -> None:
        assert batches()[0].labels is None


class TestBadSamples:
    @pytest.mark.parametrize(
        ("caption", "reason"),
        [
            ((), "is empty"),
            (("",), "is empty"),
            ((" \n",), "is empty"),
            ((None,), "type NoneType"),
            ((b"cat",), "type bytes"),
            ((float("nan"),), "type float"),
            ((["cat"],), "type list"),
            (("x" * 10**6,), "1000000 characters"),
            (("\ud800",), "not valid Unicode"),
        ],
    )
    def test_invalid_captions(self, caption: tuple[bytes | float | list[str] | str | None, ...], reason: str) -> None:
        source = Toy(captions={7: caption})
        found = [bad for step in range(10) for bad in batches(source)[step].bad_samples]
        assert len(found) == 3, "once per epoch"
        assert found[0].index == 7
        assert found[0].name == "toy/7"
        assert reason in found[0].reason
        assert "toy/7" in found[0].reason

    def test_cells_of_a_table(self) -> None:
        """Numbers are texts, missing ones are none, and what is neither reaches the check, and can be hashed until then."""
        assert captions_of(["a", None, float("nan"), 7, 1.5, np.int64(3)]) == ("a", "7", "1.5", "3")
        assert captions_of([b"cat", b"dog\0\0", b"\xff"]) == ("cat", "dog", NotText("bytes", r"b'\xff'"))  # type: ignore[comparison-overlap]
        assert captions_of({"raw": ["a", " "], "tokens": [["a"]]}) == captions_of([{"raw": "a", "imgid": 1}]) == ("a",)
        nested = (NotText("list", "['a']"), NotText("dict", "{'b': 1}"))
        assert captions_of([["a"], {"b": 1}]) == nested  # type: ignore[comparison-overlap]

    def test_an_invalid_first_caption_that_is_not_shown(self) -> None:
        """A batch over the end of an epoch goes by first captions, whatever these are."""
        for spoilt in (None, "\ud800", b"cat"):
            made = batches(Toy(5, captions={i: (spoilt, f"text {i}") for i in range(5)}), 4)
            assert [len(made[step].ids) for step in range(10)] == [4] * 10

    def test_the_batch_keeps_its_size_and_its_other_rows(self) -> None:
        good, spoilt = batches(), batches(Toy(bad_images=(3, 8)))
        for step in range(10):
            expected, batch = rows(good[step]), rows(spoilt[step])
            assert len(batch) == len(expected)
            for row, (one, other) in enumerate(zip(expected, batch, strict=True)):
                assert (one == other) == (one[0] not in (3, 8)), row
                assert other[0] not in (3, 8)

    def test_a_replacement_may_be_bad_too(self) -> None:
        source = Toy(bad_images=tuple(range(0, 40, 2)) + tuple(range(1, 30, 2)))
        batch = batches(source)[0]
        assert set(batch.index.tolist()) <= set(range(31, 40, 2))
        assert len(batch.bad_samples) >= 7

    def test_nothing_can_be_read(self) -> None:
        with pytest.raises(UserError, match="100 samples in a row could not be used; the last: "):
            batches(Toy(bad_images=tuple(range(40))))[0]

    def test_the_budget(self) -> None:
        budget = BadSampleBudget(0.01, 100)
        bad = bad_samples(30)
        budget.add(bad[:10], range(10), seen=100)  # 10 % of 100, but within the grace of 1,000.
        budget.add([], [], seen=3000)
        budget.add(bad[:25], range(20), seen=100)  # Some replacements were bad too: they are not counted as further rows.
        with pytest.raises(UserError, match="33 of 3203 samples could not be used") as error:
            budget.add(bad[27:], range(3), seen=3)
        assert [f"toy/{i}:" in str(error.value) for i in range(30)] == [i < 10 for i in range(30)], "the first ten"

    def test_no_budget(self) -> None:
        budget = BadSampleBudget(0.0, 100)
        budget.add([], [], seen=10)
        with pytest.raises(UserError, match="1 of 20 samples"):
            budget.add(bad_samples(1), [3], seen=10)

    @pytest.mark.parametrize("seed", range(5))
    def test_bad_samples_in_a_row(self, seed: int) -> None:
        """However the rows are cut into batches: the longest run of bad ones decides."""
        is_bad = np.random.default_rng(seed).random(60) < 0.6
        longest = max(len(run) for run in "".join("x" if bad else " " for bad in is_bad).split())
        for size in (1, 4, 12, 60):
            for allowed in (longest, longest - 1):
                budget = BadSampleBudget(1.0, allowed)
                parts = [np.flatnonzero(part).tolist() for part in np.split(is_bad, 60 // size)]
                outcome = nullcontext() if allowed == longest else pytest.raises(UserError, match="max_bad_consecutive")
                with outcome:
                    for rows_of_batch in parts:
                        budget.add(bad_samples(len(rows_of_batch)), rows_of_batch, seen=size)

    def test_rows_with_a_replacement_are_numbered_in_the_global_batch(self) -> None:
        source = Toy(bad_images=(3, 8, 9, 20, 33))
        for step in range(6):
            _, wanted = Order(40, 12, 3).rows(step)
            expected = tuple(np.flatnonzero(np.isin(wanted, source.bad_images)).tolist())
            parts = [batches(source, rank=rank, world=3)[step].bad_rows for rank in range(3)]
            assert sum(parts, ()) == batches(source)[step].bad_rows == expected


class TestRowsByLength:
    """Pieces of a step are of texts of like lengths; the step is the same."""

    captions = {i: ("word " * (7 * i % 11 + 1), "short") for i in range(40)}  # noqa: RUF012

    @pytest.mark.parametrize("world", [1, 2, 3])
    def test_the_rows_are_those_of_the_plain_order(self, world: int) -> None:
        source = Toy(bad_images=(3, 17), captions=self.captions)
        for rank, step in itertools.product(range(world), range(5)):
            plain, sorted_ = (
                batches(source, augment=AUGMENT, by_length=by_length, rank=rank, world=world)[step]
                for by_length in (False, True)
            )
            assert Counter(rows(sorted_)) == Counter(rows(plain))
            lengths = [len(text) for text in texts(sorted_.views["text"])]
            assert lengths == sorted(lengths)
            assert (sorted_.bad_samples, sorted_.bad_rows) == (plain.bad_samples, plain.bad_rows)

    def test_pieces_are_padded_to_their_own_longest(self) -> None:
        batch = batches(Toy(captions=self.captions), by_length=True)[0]
        whole = of_type(Tokens, batch.views["text"])
        pieces = [of_type(Tokens, views["text"]) for views in split_views(batch.views, 5)]
        assert [piece.mask.shape[1] for piece in pieces] == [max(len(text) for text in texts(piece)) for piece in pieces]
        assert pieces[0].mask.shape[1] < pieces[-1].mask.shape[1]
        assert [text for piece in pieces for text in texts(piece)] == texts(whole)
        assert whole[:0].ids.shape == (0, whole.ids.shape[1])


def test_every_tensor_of_a_batch_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader with `pin_memory` asks the batch; without a GPU, what would be pinned is marked here."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1 if self.dtype != torch.bool else self)
    batch = batches(Toy(labels=[1] * 40))[0]
    pinned, features = batch.pin_memory(), Features(torch.zeros(2, 3)).pin_memory()
    tensors, marked = (
        [images(part)["image"], of_type(Tokens, part.views["text"]).ids, part.ids, part.index, present(part.labels)]
        for part in (batch, pinned)
    )
    assert all(torch.equal(mark, tensor + 1) for mark, tensor in zip(marked, tensors, strict=True))
    assert torch.equal(features.rows, torch.ones(2, 3))


def bad_samples(count: int) -> list[BadSample]:
    return [BadSample(i, f"toy/{i}", f"toy/{i}: the caption is empty") for i in range(count)]


TRIPLET = {"text": "text", "positive": "text", "negative": "text"}


class TestChecks:
    def test_no_captions_at_all(self) -> None:
        with pytest.raises(UserError, match="the data have no captions, which the view 'text' needs"):
            batches(Toy(captions=dict.fromkeys(range(40), ())))

    def test_no_images_at_all(self) -> None:
        class Texts(Toy):
            def __getitem__(self, index: int) -> Sample:
                return Sample(f"toy/{index}", None, (f"caption {index}",))

        with pytest.raises(UserError, match="the data have no images"):
            batches(Texts())
        assert texts(batches(Texts(), views={"a": "text"})[0].views["a"])

    def test_processes_that_cannot_share(self) -> None:
        with pytest.raises(UserError, match="multiple of 5"):
            batches(world=5)

    @pytest.mark.parametrize("args", [{"scale": (0.0, 1.0)}, {"scale": (0.9, 0.5)}, {"ratio": (0.0, 1.0)}])
    def test_crops(self, args: dict[str, tuple[float, float]]) -> None:
        with pytest.raises(UserError, match="of a crop is"):
            RandomResizedCrop(**args)


class TestCrop:
    def boxes(self, width: int, height: int, count: int = 400, **options: Any) -> np.ndarray:
        crop = RandomResizedCrop(**options)
        return np.array([crop.box(width, height, seed=0, epoch=0, index=i, view=0) for i in range(count)])

    def test_boxes_lie_inside_and_keep_scale_and_ratio(self) -> None:
        left, top, right, bottom = self.boxes(5000, 4000, scale=(0.2, 0.6), ratio=(0.5, 2.0)).T
        assert (left >= 0).all()
        assert (top >= 0).all()
        assert (right <= 5000).all()
        assert (bottom <= 4000).all()
        area, ratio = (right - left) * (bottom - top) / 20e6, (right - left) / (bottom - top)
        # They are rounded to whole pixels.
        assert ((area >= 0.199) & (area <= 0.601)).all()
        assert ((ratio >= 0.499) & (ratio <= 2.001)).all()
        assert area.mean() == pytest.approx(0.4, abs=0.03)
        assert np.log(ratio).mean() == pytest.approx(0, abs=0.1)

    def test_where_nothing_fits_the_whole_is_cut(self) -> None:
        boxes = self.boxes(100, 10, count=3, scale=(1.0, 1.0), ratio=(0.5, 2.0))
        assert boxes.tolist() == [[40, 0, 60, 10]] * 3

    def test_the_whole_image(self) -> None:
        assert self.boxes(20, 20, count=3, scale=(1.0, 1.0), ratio=(1.0, 1.0)).tolist() == [[0, 0, 20, 20]] * 3

    def test_something_is_left_of_the_narrowest(self) -> None:
        left, top, right, bottom = self.boxes(1, 3, scale=(0.01, 1.0), ratio=(0.1, 10.0)).T
        assert ((left == 0) & (right == 1) & (top >= 0) & (top < bottom) & (bottom <= 3)).all()


def test_images_in_order_in_batches() -> None:
    source = Toy(10)
    parts = list(decoded_batches(source, PREPROCESS, 4))
    assert [len(part) for part in parts] == [4, 4, 2]
    expected = [to_tensor(Image.fromarray(pixels), PREPROCESS) for pixels in source.pixels]
    assert torch.equal(torch.cat(parts), torch.stack(expected))
    with pytest.raises(UserError, match="toy/6"):
        list(decoded_batches(Toy(10, bad_images=(6,)), PREPROCESS, 4))
