"""A question to an index, and its answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch

from mmcl.data.sample import ImageLike
from mmcl.errors import UserError, unknown_name
from mmcl.search.calibration import match_of, score_at
from mmcl.search.hits import Hit, Hits
from mmcl.search.narrow import RESCORE
from mmcl.search.query import (
    Weights,
    as_list,
    check_negative,
    check_weights,
    checked_text,
    combined,
    encoded,
    is_text,
    weights_of,
)
from mmcl.search.ranking import (
    FUSED,
    Ranked,
    Sort,
    allowed,
    by_date,
    fused,
    ranked,
    ranked_above,
    ranked_among,
    ranked_nearby,
)
from mmcl.search.store import Store, Target
from mmcl.types import EmbeddingModel

Combine = Literal["mean", "any"]
MOST = 100_000
"""Largest number of hits of one answer."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What to look for, and how to answer; see `Index.search`. Raises UserError if it cannot be answered."""

    text: Sequence[str] = ()
    image: Sequence[ImageLike] = ()
    like: Sequence[str] = ()
    negative: Sequence[str | ImageLike] = ()
    weights: Weights = field(default_factory=dict)
    where: str | None = None
    top_k: int = 20
    offset: int = 0
    min_score: float | None = None
    min_match: float | None = None
    sort: Sort | None = None
    target: Target = "images"
    hybrid: bool = False
    combine: Combine = "mean"
    exact: bool = False
    rescore: int | None = None

    def __post_init__(self) -> None:
        for name, given, kind in (("target", self.target, Target), ("combine", self.combine, Combine)):
            if given not in get_args(kind):
                raise unknown_name(name, given, get_args(kind))
        if self.sort is not None and self.sort not in get_args(Sort):
            raise unknown_name("order", self.sort, get_args(Sort), where="sort")
        if self.top_k < 1 or self.offset < 0 or self.top_k + self.offset > MOST:
            what = (
                f"top_k must be at least 1, not {self.top_k}"
                if self.top_k < 1
                else f"top_k and offset are {self.top_k}, {self.offset}"
            )
            raise UserError(f"{what}; an answer has at most {MOST:,} hits, and offset is 0 or more")
        if self.rescore is not None and not 1 <= self.rescore <= MOST:
            raise UserError(f"rescore is {self.rescore}; give a whole number from 1, such as {RESCORE}")
        for name in ("min_score", "min_match"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UserError(f"{name} is {value}; give a number, such as 0.2")
        if self.min_match is not None and not 0 < self.min_match < 1:
            raise UserError(f"min_match is {self.min_match}; give a number between 0 and 1")
        for text in (*self.text, *filter(is_text, self.negative)):
            checked_text(text)
        if not (self.text or self.image or self.like):
            raise UserError("nothing to search for: give a text, an image, or both")
        if self.hybrid and (not self.text or self.target == "texts" or self.sort is not None):
            raise UserError(
                "hybrid search finds images by a text, in the order of both lists; give a text, and no target or sort"
            )
        check_weights(self.weights)


def answer(store: Store, model: Callable[[], EmbeddingModel], question: Question) -> Hits:
    """Answers a question; only the rows of the hits are looked up. Arguments and errors are those of `ranked_rows`."""
    return _hits(store, ranked_rows(store, model, question), question)


def ranked_rows(store: Store, model: Callable[[], EmbeddingModel], question: Question) -> list[Ranked]:
    """Returns the rows that answer a question, best first.

    Args:
        store: the rows.
        model: returns the model, which is only loaded for texts and images.
        question: the question.

    Raises:
        UserError: the question does not fit the index or the model.
    """
    min_score = _lowest(store, question)
    if question.rescore is not None and (store.narrow is None or is_exact(store, question)):
        raise UserError("rescore is of images that narrow rows find, and here vectors are compared: leave it out")
    if question.target == "texts" and not len(store.texts.vectors):
        raise UserError("no texts to find: the collection has no captions, or the model no text tower; search for images")
    query = _vectors(store, model, question)
    among = allowed(store, question.where)
    wanted = question.top_k + question.offset
    return _found(store, query, among, question, wanted, min_score)[question.offset : wanted]


def is_exact(store: Store, question: Question) -> bool:
    """True if a question is answered by comparing the vectors of all images that may be found.

    It is not by an approximate index, which knows no filter, or narrow rows, which do.
    """
    if store.exact or question.exact or question.target == "texts" or question.sort is not None:
        return True
    return store.narrow is None and bool(question.where)


def _found(
    store: Store,
    query: np.ndarray,
    among: torch.Tensor | None,
    question: Question,
    wanted: int,
    min_score: float | None,
) -> list[Ranked]:
    """The rows that answer a question, best first."""
    if question.hybrid:
        rows = _hybrid(store, query, among, question, wanted)
        return [row for row in rows if min_score is None or row.score >= min_score]
    if question.target == "images" and question.sort is None:
        return _ranked_images(store, query, wanted, among, question, min_score)
    item = None if question.target == "images" else store.texts.item
    key = store.images if item is None else store.texts.vectors
    if among is not None and item is not None:
        among = among[item]
    if question.sort is None:
        return ranked(query, key, wanted, among, min_score=min_score)
    near = ranked_above(query, key, among, min_score=min_score)
    places = None if item is None else {row.position: int(item[row.position]) for row in near}
    return by_date(near, store.column("taken"), question.sort, places)


def _ranked_images(
    store: Store,
    query: np.ndarray,
    wanted: int,
    among: torch.Tensor | None,
    question: Question,
    min_score: float | None = None,
) -> list[Ranked]:
    """The nearest images, best first. An approximate index reads only the vectors that a filter lets through."""
    if not is_exact(store, question):
        return ranked_nearby(store, query, wanted, among, min_score=min_score, rescore=question.rescore or RESCORE)
    if among is not None and not store.exact:
        return ranked_among(store, query, wanted, among, min_score=min_score)
    return ranked(query, store.images, wanted, among, min_score=min_score)


def _lowest(store: Store, question: Question) -> float | None:
    """The lowest score that `min_score` and `min_match` allow; None if all are."""
    if question.min_match is None:
        return question.min_score
    if store.calibration is None:
        raise UserError(
            "min_match needs a calibration of the scores, and the index has none; use min_score, or `Index.calibrate`"
        )
    lowest = score_at(question.min_match, store.calibration)
    return lowest if question.min_score is None else max(lowest, question.min_score)


def _vectors(store: Store, model: Callable[[], EmbeddingModel], question: Question) -> np.ndarray:
    """The query, float32 [Q, D]: one row, or one for each image with `combine="any"`."""
    unwanted_texts = [one for one in question.negative if is_text(one)]
    unwanted_images = [one for one in question.negative if not is_text(one)]
    texts, images = [*question.text, *unwanted_texts], [*question.image, *unwanted_images]
    text_emb = image_emb = np.zeros((0, store.dim), np.float32)
    if texts or images:
        text_emb, image_emb = encoded(model(), texts, images, store.dim)  # type: ignore[arg-type]
    like = store.vectors([store.position(one) for one in question.like]).numpy() if question.like else text_emb[:0]
    negative = np.concatenate([text_emb[len(question.text) :], image_emb[len(question.image) :]])
    pictures = np.concatenate([image_emb[: len(question.image)], like])
    weights = question.weights
    text_weight = weights_of("text", len(question.text), weights)
    unwanted_weight = weights_of("negative", len(negative), weights)
    # Images and examples are pictures alike: all together have the weight of one.
    whole = len(pictures) if "image" not in weights and "like" not in weights else 0
    picture_weight = (
        [1 / whole] * whole
        if whole
        else weights_of("image", len(question.image), weights) + weights_of("like", len(question.like), weights)
    )
    check_negative(unwanted_weight, [*text_weight, *picture_weight])

    def one(rows: np.ndarray, weight: list[float]) -> np.ndarray:
        return combined(
            text_emb[: len(question.text)], rows, negative, text=text_weight, image=weight, negative=unwanted_weight
        )

    if question.combine == "any" and len(pictures) > 1:
        total = sum(picture_weight)
        return np.stack([one(pictures[n : n + 1], [total]) for n in range(len(pictures))])
    return one(pictures, picture_weight)[None]


def _hybrid(store: Store, query: np.ndarray, among: torch.Tensor | None, question: Question, wanted: int) -> list[Ranked]:
    depth = max(FUSED, wanted)
    by_vector = _ranked_images(store, query, depth, among, question)
    found = store.full_text(" ".join(question.text))
    by_text = [place for place, _ in found if among is None or among[place]][:depth]
    missing = sorted({*by_text} - {row.position for row in by_vector})
    scores = list[float]()
    if missing:
        scores = (store.vectors(missing).double() @ torch.from_numpy(query).double().T).amax(dim=1).float().tolist()
    return fused(by_vector, by_text, dict(zip(missing, scores, strict=True)))


def _hits(store: Store, rows: Sequence[Ranked], question: Question) -> Hits:
    if question.target == "images":
        places, numbers = [row.position for row in rows], [0] * len(rows)
    else:
        texts = store.texts
        places = [int(texts.item[row.position]) for row in rows]
        numbers = [int(texts.number[row.position]) for row in rows]
    found = []
    for row, item, number in zip(rows, store.items(places), numbers, strict=True):
        match = None if store.calibration is None or question.target == "texts" else match_of(row.score, store.calibration)
        caption = item.captions[number] if item.captions else ""
        more = {"taken": item.taken, "meta": item.meta, "match": match, "fused": row.fused}
        found.append(Hit(item.name, row.score, caption, item.image, item.id, **more))  # type: ignore[arg-type]
    return Hits(
        found,
        text=", ".join(question.text) or None,
        image=question.image[0] if question.image else None,
        exact=is_exact(store, question),
    )


def question_of(text: str | Sequence[str] | None, **given: object) -> Question:
    """Builds a question from the arguments of `Index.search`; one thing may stand for a list of one."""
    lists = {name: tuple(as_list(given.pop(name, None))) for name in ("image", "like", "negative")}
    weights = given.pop("weights", None) or {}
    return Question(text=tuple(as_list(text)), weights=weights, **lists, **given)  # type: ignore[arg-type]
