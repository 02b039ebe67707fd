"""Batches by step number: a batch is a pure function of the step, so the loader has no state to save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmcl.data.batches.fewer_tokens import FewerTokens
from mmcl.data.batches.order import BatchOrder
from mmcl.data.batches.pieces import PIECE_ROWS, Piece, join
from mmcl.data.batches.views import ImageView, make_views
from mmcl.data.captions import caption_key, checked_caption, text_hash, token_ids
from mmcl.data.derived.label_captions import CAPTIONS_WANTED
from mmcl.data.images.image_cache import ImageCache
from mmcl.data.random_streams import Stream
from mmcl.data.sample import OWN_TEXTS, Sample
from mmcl.data.source import Source, has_rows
from mmcl.data.stored_rows import StoredRows, caption_place, read_rows, rows_of_texts
from mmcl.errors import UserError
from mmcl.preprocess import Preprocess
from mmcl.rng import hash_integers, uniform
from mmcl.terminal import counted
from mmcl.types import BadSample, Batch, Features, ImagePatches, Tokens, Unaugmented

CACHE_BYTES = 10**9
MAX_ATTEMPTS = 100
_PATCHES = "patches/"


@dataclass(frozen=True, slots=True)
class _BatchRow:
    """One row of a batch: the sample, its part of every view, and all of its captions."""

    epoch: int
    index: int
    sample: Sample
    pixels: dict[str, Tensor]
    captions: dict[str, str]
    is_replacement: bool


class StepBatches(Dataset[Batch]):
    """A map-style dataset whose item number is the training step.

    `DataLoader(batches, sampler=range(start, stop), batch_size=None, num_workers=w)` gives the same batches for any number of
    workers and after any resume. The concatenated rows of all ranks are the same for any number of processes. A large batch
    can also be read in pieces, which loader processes share: `batches[step]` is `joined` of every `piece` of the step.

    A sample that cannot be used (an unreadable image, a missing caption) is replaced by another, drawn by (seed, epoch,
    sample, attempt), and listed in the batch, which keeps its size.

    With captions, ids are the source's own, else hashes of the first text view's tokens: captions that the encoder cannot
    distinguish are positives of each other. With image views only, every sample is its own class. Labels of the source are
    separate from the ids, in `Batch.labels`; only methods that request labels use them.

    Where stored rows stand for images or texts, a view is their `Features`, and ids are hashes of the texts themselves. With
    `caption_ids`, texts are drawn and not tokenized: a batch has no text views.

    Args:
        source: the samples.
        order: sample order; its seed is also used for all other draws.
        images: image views by name.
        texts: names of the text views; each has its own draws.
        tokenizer: converts texts to `Tokens`, for text views.
        cache: decode every image once for each size and keep it in memory; "auto" does so without crops and for as many sizes
            as take less than 1 GB, first for those of the first steps.
        rank, world: rank of this process, and number of processes that share the global batch.
        by_length: sort the rows of a step by text length, so that micro-batches need less padding.
        augment_on: "device" leaves the augmentation to `views_on`, which then runs it on the device.
        progress: whether filling the cache shows a progress bar.
        stored: name -> stored rows of the samples, for `Batch.stored`; of texts those of the first text view.
        caption_ids: the `token_ids` of all captions, for a run that needs nothing else of their tokens.
        fewer: what an encoder sees of each image in most steps: other views, or `ImagePatches`; None sees all in every step.

    Raises:
        UserError: a view needs captions or images that the source lacks, or the batch cannot be shared equally.
    """

    def __init__(
        self,
        source: Source,
        order: BatchOrder,
        *,
        images: Mapping[str, ImageView],
        texts: Sequence[str] = (),
        tokenizer: Callable[[Sequence[str]], Tokens] | None = None,
        cache: Literal["auto"] | bool = "auto",
        rank: int = 0,
        world: int = 1,
        by_length: bool = False,
        augment_on: Literal["host", "device"] = "host",
        progress: bool = False,
        stored: Mapping[str, StoredRows] | None = None,
        caption_ids: StoredRows | None = None,
        fewer: FewerTokens | None = None,
    ):
        self.fewer = fewer
        self.stored, self.caption_ids = stored or {}, caption_ids
        self.source, self.order, self.rank, self.world, self.by_length = source, order, rank, world, by_length
        self.augment_on = augment_on
        self.images, self.texts, self.tokenizer = images, texts, tokenizer
        # Here rather than at the first batch, where every loader process would read the labels again.
        self.labels = source.labels
        self.order.rows(0, rank, world)
        self._check_source()
        self._has_rows = has_rows(source)
        self._caches: dict[Preprocess, ImageCache] = {}
        room = CACHE_BYTES
        for preprocess in self._sizes_to_cache():
            size = ImageCache.nbytes(source, preprocess)
            if cache is True or (cache == "auto" and size <= room):
                self._caches[preprocess] = ImageCache(source, preprocess, progress=progress)
                room -= size

    @property
    def pieces(self) -> int:
        """Number of pieces of every step."""
        return -(-self._share // PIECE_ROWS)

    def __getitem__(self, step: int) -> Batch:
        return self.joined(step, (self.piece(step, number) for number in range(self.pieces)))

    def piece(self, step: int, number: int) -> Piece:
        """Reads piece `number` of this process's share of a step."""
        start = number * PIECE_ROWS
        stop, first = min(start + PIECE_ROWS, self._share), self.rank * self._share
        epoch, wanted = self.order.part(step, first + start, first + stop)
        bad: list[BadSample] = []
        draws, images = self._caption_draws(epoch, wanted), self._images_of(step)
        rows = [self._read(images, int(e), int(i), draw, bad) for e, i, draw in zip(epoch, wanted, draws, strict=True)]
        epoch, index = (np.array(numbers, np.int64) for numbers in zip(*((row.epoch, row.index) for row in rows), strict=True))
        views = self._image_views(images, rows, epoch, index)
        texts = {name: [row.captions[name] for row in rows] for name in self.texts}
        if self.caption_ids is None:
            views |= {name: self._text_view(own) for name, own in texts.items()}
        place = self._places(rows) if self._are_captions_stored else None
        batch = Batch(
            views,
            torch.from_numpy(self._ids(index, texts, views, place)),
            torch.from_numpy(index),
            tuple(bad),
            None if self.labels is None else torch.from_numpy(self.labels[index]),
            bad_rows=tuple(first + start + number for number, row in enumerate(rows) if row.is_replacement),
            text_ids=self._text_ids(views) if "negative" in self.texts else None,
            stored={
                **{name: torch.from_numpy(stored.read(index, place)) for name, stored in self.stored.items()},
                **self._kept_patches(step, epoch, index),
            },
        )
        lengths = [sum(map(len, row.captions.values())) for row in rows] if self.by_length else None
        return Piece(batch, lengths, {} if number else self._same_ids(step))

    def joined(self, step: int, pieces: Iterable[Piece], *, pin: bool = False) -> Batch:
        """Joins all pieces of a step, in their order.

        Args:
            step: the step.
            pieces: each is taken when there is room for it, and freed before the next.
            pin: whether the batch is in page-locked memory.
        """
        batch = join(pieces, self._share, pin=pin)
        return self._with_patches(batch) if self.fewer and self.fewer.is_on(step) else batch

    @property
    def _share(self) -> int:
        return self.order.batch_size // self.world

    def _kept_patches(self, step: int, epoch: np.ndarray, index: np.ndarray) -> dict[str, Tensor]:
        """The patches that are seen in a step, among the stored rows, so that they are joined and sorted as these are."""
        if self.fewer is None or not self.fewer.is_on(step):
            return {}
        rows = {"epoch": epoch, "index": index}
        return {
            f"{_PATCHES}{name}": torch.from_numpy(
                self.fewer.draw(name, seed=self.order.seed, number=self.images[name].number, **rows)
            )
            for name in self.fewer.counts
        }

    def _with_patches(self, batch: Batch) -> Batch:
        assert self.fewer
        views, stored = dict(batch.views), dict(batch.stored)
        for name, count in self.fewer.counts.items():
            views[name] = ImagePatches(views[name], stored.pop(f"{_PATCHES}{name}"), count.all)
        return replace(batch, views=views, stored=stored)

    def _images_of(self, step: int) -> Mapping[str, ImageView]:
        """The image views of a step."""
        return self.fewer.views if self.fewer and self.fewer.views and self.fewer.is_on(step) else self.images

    def _sizes_to_cache(self) -> Iterable[Preprocess]:
        """What whole images are resized to, in the order of the steps."""
        if self._has_rows or any(view.crop for view in self.images.values()):
            return []
        steps = [0, self.fewer.steps - 1] if self.fewer else [0]
        return dict.fromkeys(view.preprocess for step in steps for view in self._images_of(step).values())

    def _image_views(
        self, images: Mapping[str, ImageView], rows: Sequence[_BatchRow], epoch: np.ndarray, index: np.ndarray
    ) -> dict[str, Any]:
        if not self._has_rows:
            stacked = {name: torch.stack([row.pixels[name] for row in rows]) for name in images}
            return {name: self._images(view, stacked[name], epoch, index) for name, view in images.items()}
        stored = [row.sample.row for row in rows if row.sample.row is not None]
        return dict.fromkeys(self.images, Features(torch.from_numpy(read_rows(stored))))

    def _text_view(self, texts: Sequence[str]) -> Tokens | Features:
        """The tokens of texts, or the rows that are stored for them."""
        if stored := rows_of_texts(texts):
            return Features(torch.from_numpy(read_rows(stored)))
        assert self.tokenizer
        return self.tokenizer(texts)

    def _images(self, view: ImageView, pixels: Tensor, epoch: np.ndarray, index: np.ndarray) -> Tensor | Unaugmented:
        if view.augment is None:
            return pixels
        augment = partial(view.augment, seed=self.order.seed, view=view.number)
        if self.augment_on == "device":
            return Unaugmented(pixels, epoch, index, augment)
        return augment(pixels.float().div_(255), epoch=epoch, index=index)

    def _read(
        self, images: Mapping[str, ImageView], epoch: int, index: int, caption_draw_V: np.ndarray, bad: list[BadSample]
    ) -> _BatchRow:
        """Reads a sample, or its first readable replacement; appends unreadable samples to `bad`."""
        wanted, peers, tried = index, self.source.peers(index), set[int]()
        for attempt in range(MAX_ATTEMPTS):
            try:
                sample = self.source[index].check()
                pixels = self._pixels(images, epoch, index, sample)
                captions = self._captions(index, sample.name, caption_draw_V)
                return _BatchRow(epoch, index, sample, pixels, captions, attempt > 0)
            except UserError as error:
                bad.append(BadSample(index, self.source[index].name, str(error)))
                tried.add(index)
                if len(tried) == len(peers):
                    first = bad[-attempt - 1].reason
                    raise UserError(f"none of the {counted(len(tried), 'sample')} can be used; the first: {first}") from None
                hashed = hash_integers(self.order.seed, Stream.REPLACEMENT, epoch, wanted, attempt)
                index = peers[int(hashed % np.uint64(len(peers)))]
                caption_draw_V = self._caption_draws(np.array(epoch), np.array(index))
        raise UserError(f"{MAX_ATTEMPTS} samples in a row could not be used; the last: {bad[-1].reason}")

    def _pixels(self, images: Mapping[str, ImageView], epoch: int, index: int, sample: Sample) -> dict[str, Tensor]:
        if not images or self._has_rows:
            return {}
        sizes = {name: view.preprocess for name, view in images.items()}
        if self._caches.keys() >= set(sizes.values()):
            return {name: self._caches[preprocess][index] for name, preprocess in sizes.items()}
        seed = self.order.seed
        return make_views(sample.required_image(), images, name=sample.name, seed=seed, epoch=epoch, index=index)

    def _caption_draws(self, epoch: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Draws that choose captions, one per text view: float64 [..., V]."""
        views = np.arange(len(self.texts))
        return uniform(self.order.seed, Stream.CAPTION, epoch[..., None], index[..., None], views)

    def _captions(self, index: int, sample_name: str, draw_V: np.ndarray) -> dict[str, str]:
        captions = {}
        for name, draw in zip(self.texts, draw_V.tolist(), strict=True):
            # One draw for all texts of a sample: its third caption is paired with its third positive and negative.
            own = draw_V[0] if name in OWN_TEXTS else draw
            text = self.source.view_text(name, index, float(own))
            captions[name] = checked_caption(text, sample_name)
        return captions

    @property
    def _are_captions_stored(self) -> bool:
        return any(stored.starts for stored in self.stored.values()) or self.caption_ids is not None

    def _places(self, rows: Sequence[_BatchRow]) -> np.ndarray:
        """Places of the captions shown in the first text view among the distinct ones of their samples: int64 [b]."""
        as_listed = self.source.draws_as_listed
        shown = [caption_place(row.captions[self.texts[0]], row.sample.distinct_captions, as_listed=as_listed) for row in rows]
        return np.array(shown, np.int64)

    def _ids(
        self, index: np.ndarray, texts: Mapping[str, Sequence[str]], views: Mapping[str, Any], place: np.ndarray | None
    ) -> np.ndarray:
        if not self.texts:
            return index
        if self.source.ids is not None:
            ids: np.ndarray = self.source.ids[index]
            return ids
        if self.caption_ids:
            return self.caption_ids.read(index, place)
        return _ids_of_texts(texts[self.texts[0]], views[self.texts[0]])

    def _text_ids(self, views: Mapping[str, Any]) -> Tensor:
        """Text ids of every text view, hard negatives last: int64 [b, V]."""
        names = sorted(self.texts, key=lambda name: name == "negative")
        return torch.from_numpy(np.stack([token_ids(views[name]) for name in names], axis=1))

    def _same_ids(self, step: int) -> dict[int, int]:
        """Maps the ids of texts to the smallest id of their group of positives.

        A batch that crosses the end of an epoch may show a sample twice, with two captions; then all rows with either caption
        are positives of each other. Computed from the whole batch, so that every process gets the same groups.
        """
        if not self.texts or self.source.ids is not None:
            return {}
        epoch, index = self.order.rows(step)
        everyone, times = np.unique(index, return_counts=True)
        again = np.isin(index, everyone[times > 1])
        shown: list[tuple[int, str]] = []
        for sample, draw_V in zip(index[again].tolist(), self._caption_draws(epoch[again], index[again]), strict=True):
            with suppress(UserError):  # the sample is replaced, so its caption is not shown
                shown.append((sample, self._captions(sample, "", draw_V)[self.texts[0]]))
        if not shown:
            return {}
        groups = dict[int, set[int]]()
        for (sample, _), text_id in zip(shown, self._ids_of_captions(shown).tolist(), strict=True):
            groups.setdefault(sample, set()).add(text_id)
        return _smallest(groups.values())

    def _ids_of_captions(self, shown: Sequence[tuple[int, str]]) -> np.ndarray:
        """Ids of captions, each with the number of its sample, in the first text view: int64 [N]."""
        texts = [text for _, text in shown]
        if self.caption_ids is None:
            return _ids_of_texts(texts, self._text_view(texts))
        place = [caption_place(text, self.source[sample].distinct_captions) for sample, text in shown]
        return self.caption_ids.read(np.array([sample for sample, _ in shown]), np.array(place))

    def _check_source(self) -> None:
        """Raises UserError for a source without any caption or image, instead of reporting every sample as bad."""
        first = [self.source[index] for index in range(min(len(self.source), MAX_ATTEMPTS))]
        for view in self.texts:
            field = OWN_TEXTS.get(view, "captions")
            if not any(getattr(sample, field) for sample in first):
                fix = f"; {CAPTIONS_WANTED}" if field == "captions" else ""
                raise UserError(f"the data have no {field}, which the view {view!r} needs: {first[0].name} has none{fix}")
        if self.images and all(sample.image is None and sample.row is None for sample in first):
            raise UserError(
                f"the data have no images, which the view {next(iter(self.images))!r} needs: {first[0].name} has none "
                "(in a table, `image_column` names them)"
            )


def _ids_of_texts(texts: Sequence[str], view: Tokens | Features) -> np.ndarray:
    """Ids of texts: of their tokens, or, where rows are stored for them, of the texts themselves: int64 [B]."""
    if isinstance(view, Tokens):
        return token_ids(view)
    return np.array([text_hash(caption_key(text)) for text in texts], np.int64)


def _smallest(groups: Iterable[set[int]]) -> dict[int, int]:
    """Maps every number to the smallest of its group; groups that share a number are merged."""
    root: dict[int, int] = {}

    def find(number: int) -> int:
        while root.setdefault(number, number) != number:
            number = root[number]
        return number

    for group in groups:
        roots = {find(number) for number in group}
        root.update(dict.fromkeys(roots, min(roots)))
    return {number: find(number) for number in list(root)}
