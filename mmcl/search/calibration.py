"""How likely a hit is what was looked for: Platt scaling (Platt 1999) of the cosine, fitted without labels.

The captions of a collection are the queries. A caption's best score is an example of a match; its best score with every image
of the same caption masked is an example of none. match = 1 / (1 + exp(-(a s + b))). It is a weak signal, valid for one model
and one collection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mmcl.data.captions import text_hash
from mmcl.errors import UserError
from mmcl.search.store import Store

LEAST = 200
"""Least number of different captions."""
MOST_CAPTIONS = 2000
"""Captions that are used, chosen by a hash of their texts."""
_CHANCE = 0.55
"""Below this, the score tells nothing: the best score with a caption's images is that without them."""
STALE = 0.2
"""Relative change in the number of images after which the fit is made again."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fit of `match`.

    Attributes:
        a, b: match = 1 / (1 + exp(-(a s + b))).
        auroc: on the captions held out, how often a match scores above no match; 0.5 is chance.
        ece: expected calibration error on the captions held out, 0 to 1 (10 bins).
        captions: how many captions it is made of.
        images: how many images the collection had.
    """

    a: float
    b: float
    auroc: float
    ece: float
    captions: int
    images: int


def match_of(score: float, calibration: Mapping[str, float]) -> float:
    """Returns how likely a score is that of a match, 0 to 1."""
    return 1 / (1 + math.exp(-(calibration["a"] * score + calibration["b"])))


def score_at(match: float, calibration: Mapping[str, float]) -> float:
    """Returns the score with a given `match_of`."""
    return (math.log(match / (1 - match)) - calibration["b"]) / calibration["a"]


def fit(store: Store) -> Calibration:
    """Fits `match` to the captions of an index; those of half of the images are held out to measure it.

    All captions of an image are on one side, unless another image has one of them too. The sides depend on the ids of the
    images, not on their order.

    Raises:
        UserError: there are fewer than 200 different captions, or scores do not tell matches from others.
    """
    positive, negative, held = _examples(store)
    if len(positive) < LEAST:
        raise UserError(
            f"match is calibrated on {LEAST} different captions or more, and the index has {len(positive)}; use scores instead"
        )
    a, b = _platt(positive[~held], negative[~held])
    held_out = positive[held], negative[held]
    auroc = _auroc(*held_out)
    if a <= 0 or auroc < _CHANCE:
        raise UserError(
            "match cannot be calibrated: the captions of the collection score no higher with their images than without"
        )
    ece = _calibration_error(*(1 / (1 + np.exp(-(a * part + b))) for part in held_out))
    return Calibration(a, b, auroc, ece, len(positive), len(store))


def _examples(store: Store) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best score of every different caption, and the best with the images of that caption masked: float64 [C] each; and whether
    the caption is held out, bool [C]."""
    texts = store.texts
    captions = [text for item in store.column("captions").to_pylist() for text in item or []]
    if not len(texts.vectors):
        return np.empty(0), np.empty(0), np.empty(0, bool)
    rows: dict[str, list[int]] = {}
    for row, caption in enumerate(captions):
        rows.setdefault(" ".join(caption.casefold().split()), []).append(row)
    chosen = [rows[text] for text in sorted(rows, key=text_hash)[:MOST_CAPTIONS]]
    ids = store.column("id").to_pylist()
    image = [min(ids[position] for position in texts.item[group].tolist()) for group in chosen]
    held = np.array([text_hash(one) % 2 == 1 for one in image])
    positive, negative = [], []
    for start in range(0, len(chosen), 128):
        part = chosen[start : start + 128]
        score = texts.vectors[[group[0] for group in part]] @ store.images.T
        for row, group in zip(score, part, strict=True):
            positive.append(float(row.max()))
            row[texts.item[group]] = -2
            negative.append(float(row.max()))
    return np.array(positive), np.array(negative), held


def _platt(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """Maximum likelihood of the logistic model by Newton's method, with the targets (N+ + 1) / (N+ + 2) and 1 / (N- + 2)."""
    score = np.concatenate([positive, negative])
    high, low = (len(positive) + 1) / (len(positive) + 2), 1 / (len(negative) + 2)
    target = np.concatenate([np.full(len(positive), high), np.full(len(negative), low)])
    center, spread = score.mean(), score.std() or 1.0
    rows = np.stack([(score - center) / spread, np.ones_like(score)], axis=1)
    weight = np.zeros(2)
    for _ in range(100):
        share = 1 / (1 + np.exp(-rows @ weight))
        curvature = (rows * (share * (1 - share))[:, None]).T @ rows + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, rows.T @ (share - target))
        weight -= step
        if np.abs(step).max() < 1e-10:
            break
    a = weight[0] / spread
    return float(a), float(weight[1] - a * center)


def _auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    below = np.searchsorted(np.sort(negative), positive, side="left")
    up_to = np.searchsorted(np.sort(negative), positive, side="right")
    return float((below + up_to).mean() / 2 / len(negative))


def _calibration_error(positive: np.ndarray, negative: np.ndarray) -> float:
    share = np.concatenate([positive, negative])
    is_match = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])
    place = np.minimum((share * 10).astype(int), 9)
    bins = [place == number for number in range(10)]
    return float(sum(abs(share[one].sum() - is_match[one].sum()) for one in bins) / len(share))
