"""The vector of a question: texts, images and examples, weighted, less what is not wanted.

$q = u(\\sum_i w_i t_i + \\sum_j v_j m_j - \\sum_k n_k g_k)$ with unit vectors $t$ of texts, $m$ of images and $g$ of negatives,
and $u(x) = x / |x|$; as in Rocchio's relevance feedback (Salton and Buckley 1990, eq. 2), for unit vectors. A hit's score is
its cosine with $q$, so it does not change if all weights are multiplied by a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from mmcl.data.sample import ImageLike
from mmcl.errors import UserError, unknown_name
from mmcl.types import EmbeddingModel

T = TypeVar("T")

Part = Literal["text", "image", "like", "negative"]
Weights: TypeAlias = Mapping[str, float | Sequence[float]]
"""Weight of each part of a question, "text", "image", "like" and "negative": one for all of it, or one for each."""

_DEFAULTS: Mapping[str, float] = {"text": 1.0, "image": 1.0, "like": 1.0, "negative": 0.5}
_CANCELLED = 1e-6
"""Length of the sum, relative to the largest weight, below which nothing but rounding is left."""
MAX_TEXT = 20_000


def combined(
    texts_TD: np.ndarray,
    images_MD: np.ndarray,
    negatives_GD: np.ndarray,
    *,
    text: Sequence[float],
    image: Sequence[float],
    negative: Sequence[float],
) -> np.ndarray:
    """Returns the query, float32 [D], unit length.

    Args:
        texts_TD, images_MD, negatives_GD: unit vectors; no rows where there are none.
        text, image, negative: weight of each row, 0 or more.

    Raises:
        UserError: the parts cancel out.

    Example:
        >>> right, up, none = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), np.zeros((0, 2))
        >>> combined(right, up, none, text=[1], image=[1], negative=[]).round(4).tolist()
        [0.707099974155426, 0.707099974155426]
    """
    rows = np.concatenate([texts_TD, images_MD, negatives_GD]).astype(np.float64)
    weight = np.array([*text, *image, *(-one for one in negative)], np.float64)
    total = weight @ rows
    length = float(np.linalg.norm(total))
    if not length > _CANCELLED * np.abs(weight).max():
        raise UserError("the query cancels out: its parts add up to nothing; take another negative, or a smaller weight of it")
    unit: np.ndarray = (total / length).astype(np.float32)
    return unit


def weights_of(part: Part, number: int, weights: Weights) -> list[float]:
    """Returns the weight of each of a part's rows, where several images share one: 1 / number each.

    Raises:
        UserError: a weight is not a finite number of 0 or more, or there is another number of them than rows.
    """
    given = weights.get(part, _DEFAULTS[part])
    several = isinstance(given, Sequence) and not isinstance(given, str)
    values = [float(one) for one in given] if several else [float(given)] * number  # type: ignore[union-attr,arg-type]
    if len(values) != number:
        raise UserError(f"weights: {len(values)} for {part}, which has {number}; give one for each, or one for all")
    if not all(np.isfinite(one) and one >= 0 for one in values):
        raise UserError(
            f"weights: {part} has {given}; give finite numbers of 0 or more (what is unwanted goes into `negative`)"
        )
    return values if several or part in ("text", "negative") else [one / number for one in values]


def check_weights(weights: Weights) -> None:
    """Raises UserError for the weight of a part that there is not."""
    for name in weights:
        if name not in _DEFAULTS:
            raise unknown_name("part", name, _DEFAULTS, where="weights")


def check_negative(negative: Sequence[float], positive: Sequence[float]) -> None:
    """Raises UserError for a negative that outweighs everything that is looked for, or if nothing is looked for."""
    if not any(positive):
        raise UserError("weights: all that is looked for has the weight 0; give one of it more")
    if negative and max(negative) > sum(positive):
        raise UserError(
            f"weights: a negative has {max(negative):g}, and all that is looked for {sum(positive):g}; give it half"
        )


def as_list(given: T | Sequence[T] | None) -> list[T]:
    """Returns a list of one or several things; strings, bytes and arrays are one."""
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]  # type: ignore[list-item]


def checked_text(text: object) -> str:
    """Returns a text to look for. Raises UserError if it is empty, absurdly long or not valid Unicode."""
    if not isinstance(text, str) or not text.strip():
        raise UserError("the text to search for is empty; say what is to be found")
    if len(text) > MAX_TEXT:
        raise UserError(f"the text to search for has {len(text):,} characters, more than {MAX_TEXT:,}; give a shorter one")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError("the text to search for is not valid Unicode") from None
    return text


def encoded(
    model: EmbeddingModel, texts: Sequence[str], images: Sequence[ImageLike], width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Embeds texts and images: float32 [T, D] and [M, D].

    Raises:
        UserError: an image cannot be read, the model has no text tower, or its vectors are not those of the index.
    """
    if texts and not model.has_text:
        raise UserError("search by text needs a model with a text tower; this one embeds only images: give an image")
    nothing = np.zeros((0, width), np.float32)
    parts = (model.encode_text(list(texts)) if texts else nothing, model.encode_image(list(images)) if images else nothing)
    for rows in parts:
        if rows.shape[1] != width:
            raise UserError(f"the index holds rows of {width} numbers, and the model makes {rows.shape[1]}; build it again")
        if not np.isfinite(rows).all():
            raise UserError("the model's vector of the query is not finite; its weights are damaged")
    return parts


def is_text(given: object) -> bool:
    """True for a text among negatives; an image file is given as a `Path`."""
    return isinstance(given, str) and not isinstance(given, Path)
