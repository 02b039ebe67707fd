"""Retrieval against brute force: loops in float64, and for ties the enumeration of every order."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from mmcl.errors import UserError
from mmcl.evaluate import Report, retrieval
from mmcl.evaluate.ranking import chance_ranks
from tests.evaluate.toys import unit

DIRECTIONS = ("text_to_image", "image_to_text")


def brute_force_hits(query: np.ndarray, key: np.ndarray, query_ids: np.ndarray, key_ids: np.ndarray, k: int) -> list[bool]:
    hits = []
    for vector, own in zip(query.astype(np.float64), query_ids, strict=True):
        order = sorted(range(len(key)), key=lambda j: -float(vector @ key[j].astype(np.float64)))
        if own in key_ids:
            hits.append(any(key_ids[j] == own for j in order[:k]))
    return hits


def n_to_m() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """30 images with 0 to 4 texts each, some images equal in id; ids with gaps, some texts without an image."""
    rng = np.random.default_rng(5)
    image_ids = rng.integers(25, size=30) * 7 - 50
    text_ids = np.concatenate([rng.choice(image_ids, 50), [999, 1000]])
    mean = dict(zip(image_ids.tolist(), rng.normal(size=(30, 12)), strict=True))
    image = np.stack([mean[own] for own in image_ids]) + rng.normal(size=(30, 12))
    text = np.stack([mean.get(own, np.ones(12)) for own in text_ids]) + rng.normal(size=(52, 12))
    return image.astype(np.float32), text.astype(np.float32), image_ids, text_ids


def normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)


def values(report: Report) -> dict[str, float | None]:
    return {metric.metric: metric.value for metric in report.metrics}


def test_n_to_m_equals_a_loop() -> None:
    image, text, image_ids, text_ids = n_to_m()
    report = retrieval(image, text, image_ids=image_ids, text_image_ids=text_ids, ks=(1, 5, 10))
    image, text = normalised(image), normalised(text)
    assert 0.1 < report["text_to_image_R@1"] < 0.9
    for k in (1, 5, 10):
        expected = brute_force_hits(text, image, text_ids, image_ids, k)
        assert len(expected) == 50
        assert report[f"text_to_image_R@{k}"] == pytest.approx(np.mean(expected), abs=1e-12)
        expected = brute_force_hits(image, text, image_ids, text_ids, k)
        assert report[f"image_to_text_R@{k}"] == pytest.approx(np.mean(expected), abs=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
@pytest.mark.parametrize("ties", ["mean", "optimistic", "pessimistic", "index"])
def test_chunk_size_changes_nothing(chunk_size: int, ties: str) -> None:
    image, text, image_ids, text_ids = n_to_m()
    ids = {"image_ids": image_ids, "text_image_ids": text_ids}
    assert retrieval(image, text, **ids, ties=ties, chunk_size=chunk_size) == retrieval(image, text, **ids, ties=ties)


def test_order_of_the_rows_changes_nothing() -> None:
    image, text, image_ids, text_ids = n_to_m()
    rng = np.random.default_rng(1)
    i, t = rng.permutation(len(image)), rng.permutation(len(text))
    moved = retrieval(image[i], text[t], image_ids=image_ids[i], text_image_ids=text_ids[t])
    assert values(moved) == pytest.approx(values(retrieval(image, text, image_ids=image_ids, text_image_ids=text_ids)))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_ties_equal_the_enumeration_of_all_orders(k: int) -> None:
    """One-hot rows: scores are 0 or 1 and tie all the time; equal scores may come in each of the orders of the keys."""
    rng = np.random.default_rng(3)
    image, text = np.eye(3)[rng.integers(3, size=6)], np.eye(3)[rng.integers(3, size=9)]
    image_ids, text_ids = rng.integers(3, size=6), rng.integers(3, size=9)
    reports = {
        ties: retrieval(image, text, image_ids=image_ids, text_image_ids=text_ids, ks=(k,), ties=ties)
        for ties in ("mean", "optimistic", "pessimistic", "index")
    }
    outcomes = []
    for vector, own in zip(text, text_ids, strict=True):
        hits = []
        for order in permutations(range(6)):
            ranking = sorted(order, key=lambda j: -(vector @ image[j]))
            hits.append(any(image_ids[j] == own for j in ranking[:k]))
        outcomes.append((np.mean(hits), max(hits), min(hits), hits[0]))
    expected = np.mean(outcomes, axis=0)
    found = [report[f"text_to_image_R@{k}"] for report in reports.values()]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert len(set(expected)) > 1, "the case must tell the policies apart"


def test_a_collapsed_model_scores_k_over_n() -> None:
    row = np.random.default_rng(0).normal(size=(1, 37))
    image, text = np.repeat(row, 101, axis=0), np.repeat(row, 101, axis=0)
    report = retrieval(image, text, image_ids=np.arange(101), text_image_ids=np.arange(101), ks=(1, 10))
    for direction in DIRECTIONS:
        assert report[f"{direction}_R@1"] == pytest.approx(1 / 101)
        assert report[f"{direction}_R@10"] == pytest.approx(10 / 101)
        assert report[f"{direction}_median_rank"] == 51
        assert report[f"{direction}_tied"] == 1


def test_chance_is_the_mean_over_random_models() -> None:
    _, _, image_ids, text_ids = n_to_m()
    ranks = chance_ranks(torch.from_numpy(text_ids), torch.from_numpy(image_ids))
    rng = np.random.default_rng(0)
    ids = {"image_ids": image_ids, "text_image_ids": text_ids}
    drawn = [retrieval(rng.normal(size=(30, 3)), rng.normal(size=(52, 3)), **ids, ks=(5,)) for _ in range(40)]
    assert ranks.hits(5).mean() == pytest.approx(np.mean([report["text_to_image_R@5"] for report in drawn]), abs=0.03)


def test_median_rank() -> None:
    # The positives of the five texts are at ranks 1, 1, 2, 3, 5.
    scores = np.array([[9, 1, 1, 1, 1], [0, 9, 0, 0, 0], [5, 0, 4, 0, 0], [5, 6, 0, 4, 0], [5, 6, 7, 8, 4]], np.float64)
    text, image = np.c_[scores, np.sqrt(200 - (scores**2).sum(1))], np.eye(5, 6)
    report = retrieval(image, text, image_ids=np.arange(5), text_image_ids=np.arange(5), ks=(1, 2))
    assert report["text_to_image_median_rank"] == 2
    assert report["text_to_image_R@1"] == pytest.approx(0.4)
    assert report["text_to_image_R@2"] == pytest.approx(0.6)


def test_more_than_all_candidates_has_no_value() -> None:
    report = retrieval(unit((4, 3), 0), unit((20, 3), 1), image_ids=range(4), text_image_ids=[n % 4 for n in range(20)])
    assert report["text_to_image_R@5"] is None
    assert report["image_to_text_R@5"] is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_emb": np.full((3, 2), np.nan)}, "image_emb has 3 rows that are not finite"),
        ({"text_emb": np.array([[1, 0], [np.inf, 0], [0, 1]])}, "first row 1"),
        ({"text_emb": np.ones((3, 5))}, "same width"),
        ({"text_emb": np.ones(3)}, r"must be \[N, D\]"),
        ({"image_ids": [1, 2]}, r"image_ids must be \[3\]"),
        ({"image_ids": [0.5, 1, 2]}, "must be integers"),
        ({"image_ids": [7, 8, 9]}, "no query has a positive"),
        ({"ks": ()}, "at least 1"),
        ({"ks": (0,)}, "at least 1"),
        ({"ties": "men"}, "did you mean 'mean'"),
    ],
)
def test_bad_input_is_a_user_error(change: dict[str, object], message: str) -> None:
    args = {"image_emb": np.eye(3, 2), "text_emb": np.eye(3, 2), "image_ids": [0, 1, 2], "text_image_ids": [0, 1, 2]}
    with pytest.raises(UserError, match=message):
        retrieval(**(args | change))
