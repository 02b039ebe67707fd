"""Pair selection by the rules of the papers, and models that an argmax would reward wrongly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mmcl.errors import UserError
from mmcl.evaluate import Report, pairs, winoground
from tests.evaluate.toys import unit
from tests.narrow import present

N = 60


def near(rows: np.ndarray, seed: int) -> np.ndarray:
    return np.asarray(rows + 0.4 * unit(rows.shape, seed) * np.sqrt(rows.shape[1]))


def test_pairs_equal_a_loop() -> None:
    image = unit((N, 9), 0)
    positive, negative = near(image, 1), near(image, 2)
    right = [
        image[n] @ positive[n] / np.linalg.norm(positive[n]) > image[n] @ negative[n] / np.linalg.norm(negative[n])
        for n in range(N)
    ]
    assert pairs(image, positive, negative)["pairs_accuracy"] == pytest.approx(np.mean(right))
    assert 0.2 < np.mean(right) < 0.8


def test_winoground_equals_a_loop() -> None:
    image = unit((2 * N, 9), 0).reshape(N, 2, 9)
    text = near(image.reshape(-1, 9), 1).reshape(N, 2, 9) + 0.3 * image[:, ::-1]
    scores: dict[str, list[bool]] = {"text": [], "image": [], "group": []}
    for i, t in zip(image, text, strict=True):
        s = (i / np.linalg.norm(i, axis=1, keepdims=True)) @ (t / np.linalg.norm(t, axis=1, keepdims=True)).T
        by_text, by_image = s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0], s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1]
        for name, value in {"text": by_text, "image": by_image, "group": by_text and by_image}.items():
            scores[name].append(value)
    report = winoground(image, text)
    for name, values in scores.items():
        assert report[f"winoground_{name}"] == pytest.approx(np.mean(values)), name
    text_share, image_share, both = (present(report[f"winoground_{name}"]) for name in scores)
    assert 0 < both < min(text_share, image_share)


def test_a_constant_model_scores_zero() -> None:
    row = unit((1, 37), 3)
    same = np.repeat(row, N, axis=0)
    assert pairs(unit((N, 37), 4), same, 2 * same)["pairs_accuracy"] == 0
    both = np.repeat(same[:, None], 2, axis=1)
    assert [row.value for row in winoground(both, 3 * both).metrics] == [0, 0, 0]
    # Texts that are the same tell nothing, whatever the images; and the other way round.
    report = winoground(unit((2 * N, 37), 5).reshape(N, 2, 37), both)
    assert (report["winoground_text"], report["winoground_group"]) == (0, 0)


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        (pairs, (np.full((2, 3), np.nan), np.ones((2, 3)), np.ones((2, 3))), "image_emb has 2 rows that are not finite"),
        (pairs, (np.ones((2, 3)), np.ones((2, 3)), np.ones((1, 3))), "negative_emb 1"),
        (pairs, (np.ones((2, 3)), np.ones((2, 4)), np.ones((2, 3))), "same width"),
        (winoground, (np.ones((2, 3)), np.ones((2, 2, 3))), r"image_emb must be \[N, 2, D\]"),
        (winoground, (np.ones((2, 2, 3)), np.ones((3, 2, 3))), "2 examples and text_emb 3"),
        (winoground, (np.ones((2, 2, 3)), np.full((2, 2, 3), np.inf)), "not finite"),
    ],
)
def test_bad_input_is_a_user_error(function: Callable[..., Report], args: tuple[np.ndarray, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        function(*args)
