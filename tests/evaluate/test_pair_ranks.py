"""Ranks of pairs against a slow loop in float64, with ties and images that share texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmcl.evaluate.measures.pair_ranks import pair_ranks


def slow_rank(score: np.ndarray, own: int, positives: set[int]) -> tuple[float, int]:
    """Expected rank of a key among the keys that are no positives of the query, and their number with it."""
    rivals = [score[key] for key in range(len(score)) if key not in positives]
    above = sum(one > score[own] for one in rivals)
    tied = sum(one == score[own] for one in rivals)
    return above + 1 + tied / 2, len(rivals) + 1


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("levels", [2, 1000])
def test_ranks_are_those_of_a_loop(levels: int, chunk_size: int | None) -> None:
    """With few levels, many rows are equal, and a row may be zero."""
    rng = np.random.default_rng(levels)
    image_ids, text_ids = rng.integers(9, size=20), rng.integers(9, size=14)
    images, texts = (rng.integers(levels, size=(size, 4)).astype(np.float32) for size in (20, 14))
    pairs = [(i, t) for i in range(20) for t in range(14) if image_ids[i] == text_ids[t]]
    rng.shuffle(pairs)
    image_P, text_P = np.array(pairs[: len(pairs) // 2]).T  # some of those that belong together
    rows = torch.from_numpy(images), torch.from_numpy(texts)
    ids = torch.from_numpy(image_ids), torch.from_numpy(text_ids)
    found = pair_ranks(*rows, *ids, image_P, text_P, chunk_size=chunk_size)
    wide_images, wide_texts = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300) for rows in map(np.float64, (images, texts))
    )
    score = (wide_images @ wide_texts.T).astype(np.float32)
    for number, (image, text) in enumerate(zip(image_P, text_P, strict=True)):
        positives = set(np.flatnonzero(text_ids == image_ids[image]).tolist())
        assert (found.text_rank[number], found.texts[number]) == slow_rank(score[image], text, positives)
        positives = set(np.flatnonzero(image_ids == text_ids[text]).tolist())
        assert (found.image_rank[number], found.images[number]) == slow_rank(score[:, text], image, positives)
    assert found.similarity == pytest.approx(score[image_P, text_P], abs=1e-6)


def test_swapped_texts_have_the_worst_ranks() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(300, 16)).astype(np.float32)
    texts = images + 0.5 * rng.normal(size=(300, 16)).astype(np.float32)
    swapped = rng.permutation(300)[:20]
    texts[swapped] = texts[np.roll(swapped, 1)]
    own = np.arange(300)
    ids = torch.from_numpy(own)
    found = pair_ranks(torch.from_numpy(images), torch.from_numpy(texts), ids, ids, own, own)
    is_far = (found.text_rank > 30) | (found.image_rank > 30)
    assert set(np.flatnonzero(is_far)) <= set(swapped.tolist())
    assert is_far.sum() >= 16  # by chance, one in a hundred swapped pairs is near in both directions


def test_equal_rows_tell_nothing() -> None:
    own = np.arange(5)
    found = pair_ranks(torch.ones(5, 3), torch.ones(5, 3), torch.arange(5), torch.arange(5), own, own)
    assert found.text_rank.tolist() == found.image_rank.tolist() == [3.0] * 5
