"""Retrieval against brute force: loops in float64, and for ties all possible orders."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

from mmcl.errors import UserError
from mmcl.evaluate import Report, retrieval, retrieval_from_scores
from mmcl.evaluate.measures.ranking import Ties, chance_ranks
from tests.evaluate.toys import bounds, normalized, unit
from tests.narrow import present

DIRECTIONS = ("text_to_image", "image_to_text")


def slow_metrics(relevant: list[bool], k: int) -> dict[str, float]:
    """Every metric of one query from the keys in their order, as the textbooks write them."""
    ranks = [place + 1 for place, positive in enumerate(relevant) if positive]
    precision = {rank: (number + 1) / rank for number, rank in enumerate(ranks)}
    return {
        f"R@{k}": float(ranks[0] <= k),
        f"recall@{k}": sum(rank <= k for rank in ranks) / len(ranks),
        "mAP": sum(precision.values()) / len(ranks),
        f"mAP@{k}": sum(p for rank, p in precision.items() if rank <= k) / min(k, len(ranks)),
        f"MRR@{k}": 1 / ranks[0] if ranks[0] <= k else 0.0,
        f"nDCG@{k}": sum(1 / math.log2(rank + 1) for rank in ranks if rank <= k)
        / sum(1 / math.log2(place + 2) for place in range(min(k, len(ranks)))),
        "mean_rank": float(ranks[0]),
    }


def slow_retrieval(query: np.ndarray, key: np.ndarray, query_ids: np.ndarray, key_ids: np.ndarray, k: int) -> dict[str, float]:
    rows = []
    for vector, own in zip(query.astype(np.float64), query_ids, strict=True):
        order = sorted(range(len(key)), key=lambda j: -float(vector @ key[j].astype(np.float64)))
        if own in key_ids:
            rows.append(slow_metrics([bool(key_ids[j] == own) for j in order], k))
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return means | {"median_rank": float(np.median([row["mean_rank"] for row in rows]))}


def n_to_m() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """30 images with 0 to 4 texts each, some images equal in id; ids with gaps, some texts without an image."""
    rng = np.random.default_rng(5)
    image_ids = rng.integers(25, size=30) * 7 - 50
    text_ids = np.concatenate([rng.choice(image_ids, 50), [999, 1000]])
    mean = dict(zip(image_ids.tolist(), rng.normal(size=(30, 12)), strict=True))
    image = np.stack([mean[own] for own in image_ids]) + rng.normal(size=(30, 12))
    text = np.stack([mean.get(own, np.ones(12)) for own in text_ids]) + rng.normal(size=(52, 12))
    return image.astype(np.float32), text.astype(np.float32), image_ids, text_ids


def values(report: Report) -> dict[str, float | None]:
    return {metric.metric: metric.value for metric in report.metrics}


@pytest.mark.parametrize("k", [1, 5, 10])
def test_n_to_m_equals_a_loop(k: int) -> None:
    image, text, image_ids, text_ids = n_to_m()
    report = retrieval(image, text, image_ids=image_ids, text_image_ids=text_ids, ks=(k,))
    image, text = normalized(image), normalized(text)
    expected = slow_retrieval(text, image, text_ids, image_ids, k), slow_retrieval(image, text, image_ids, text_ids, k)
    assert {row.n for row in report.metrics if row.metric.startswith("text")} == {50}
    assert 0.1 < present(report[f"text_to_image_recall@{k}"]) < present(report[f"text_to_image_R@{k}"]) < 0.99
    for direction, values in zip(DIRECTIONS, expected, strict=True):
        for name, value in values.items():
            assert report[f"{direction}_{name}"] == pytest.approx(value, abs=1e-12), name


def test_several_cut_offs_equal_one_at_a_time() -> None:
    image, text, image_ids, text_ids = n_to_m()
    together = values(retrieval(image, text, image_ids=image_ids, text_image_ids=text_ids, ks=(10, 1, 5)))
    assert [name for name in together if name.startswith("text_to_image")] == [
        f"text_to_image_{name}"
        for name in ("R@1", "R@5", "R@10", "recall@1", "recall@5", "recall@10", "mAP", "mAP@10", "MRR@10", "nDCG@10")
        + ("mean_rank", "median_rank", "tied")
    ]
    for k in (1, 5, 10):
        alone = values(retrieval(image, text, image_ids=image_ids, text_image_ids=text_ids, ks=(k,)))
        assert {name: together[name] for name in alone if name in together} == {
            name: value for name, value in alone.items() if name in together
        }


def test_equals_scikit_learn_ties_included() -> None:
    """Its nDCG takes the mean over tied keys as well; its label ranking precision breaks ties pessimistically."""
    rng = np.random.default_rng(0)
    image, text = rng.choice([0.0, 1.0, 2.0], (30, 3)) + 0.1, rng.choice([0.0, 1.0, 2.0], (40, 3)) + 0.1
    image_ids, text_ids = np.arange(30) % 20, rng.integers(20, size=40)
    score = (normalized(text) @ normalized(image).T).astype(np.float32)
    relevant = text_ids[:, None] == image_ids
    report = retrieval(image, text, image_ids=image_ids, text_image_ids=text_ids, ks=(7,))
    assert present(report["text_to_image_tied"]) > 0.5
    assert report["text_to_image_nDCG@7"] == pytest.approx(ndcg_score(relevant, score, k=7))
    distinct = score + 1e-4 * rng.normal(size=score.shape)
    untied = retrieval_from_scores(
        {"text_to_image": lambda part: torch.from_numpy(distinct[part])}, image_ids=image_ids, text_image_ids=text_ids
    )
    assert untied["text_to_image_mAP"] == pytest.approx(label_ranking_average_precision_score(relevant, distinct))


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
@pytest.mark.parametrize("ties", ["mean", "optimistic", "pessimistic", "index"])
def test_chunk_size_changes_nothing(chunk_size: int, ties: Ties) -> None:
    image, text, image_ids, text_ids = n_to_m()
    whole, chunked = (
        retrieval(image, text, image_ids=image_ids, text_image_ids=text_ids, ties=ties, chunk_size=size)
        for size in (None, chunk_size)
    )
    assert chunked == whole


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
    by_query = []
    for vector, own in zip(text, text_ids, strict=True):
        orders = [sorted(order, key=lambda j: -(vector @ image[j])) for order in permutations(range(6))]
        by_query.append([slow_metrics([bool(image_ids[j] == own) for j in order], k) for order in orders])
    for name in by_query[0][0]:
        outcomes = np.array([[metrics[name] for metrics in orders] for orders in by_query])
        better, worse = (outcomes.min, outcomes.max) if name == "mean_rank" else (outcomes.max, outcomes.min)
        expected = [outcomes.mean(), better(axis=1).mean(), worse(axis=1).mean(), outcomes[:, 0].mean()]
        found = [present(report[f"text_to_image_{name}"]) for report in reports.values()]
        np.testing.assert_allclose(found, expected, atol=1e-12, err_msg=name)
        assert len(set(expected)) > 1 or k == 5, "the case must tell the policies apart"


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
    drawn = []
    for _ in range(40):
        image, text = rng.normal(size=(30, 3)), rng.normal(size=(52, 3))
        report = retrieval(image, text, image_ids=image_ids, text_image_ids=text_ids, ks=(5,))
        drawn.append(present(report["text_to_image_R@5"]))
    assert ranks.hits(5).mean() == pytest.approx(np.mean(drawn), abs=0.03)


@pytest.mark.parametrize("others", [0, 4])
def test_one_image_with_one_text(others: int) -> None:
    image = unit((1 + others, 6), 0)
    report = retrieval(image, image[:1], image_ids=range(1 + others), text_image_ids=[0], ks=(1,))
    for metric in report.metrics:
        assert metric.n == 1
        assert metric.value == (0 if metric.metric.endswith("tied") else 1)


def test_equal_captions_of_an_image_are_all_its_own() -> None:
    """The same text twice: both are positives, and neither is a negative of the other."""
    image = unit((3, 6), 0)
    report = retrieval(image, image[[0, 0, 1, 2]], image_ids=[0, 1, 2], text_image_ids=[0, 0, 1, 2], ks=(1, 2))
    assert report["image_to_text_R@1"] == report["image_to_text_mAP"] == report["image_to_text_recall@2"] == 1
    assert report["image_to_text_recall@1"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert report["image_to_text_tied"] == 0


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
def test_bad_input_is_a_user_error(change: dict[str, Any], message: str) -> None:
    args: dict[str, Any] = {
        "image_emb": np.eye(3, 2),
        "text_emb": np.eye(3, 2),
        "image_ids": [0, 1, 2],
        "text_image_ids": [0, 1, 2],
    }
    with pytest.raises(UserError, match=message):
        retrieval(**(args | change))


def test_captions_of_one_image_are_drawn_together() -> None:
    image, text = unit((40, 5), 0), unit((40, 5), 0) + 0.6 * unit((40, 5), 1)
    one = retrieval(image, text, image_ids=np.arange(40), text_image_ids=np.arange(40), ks=(1,))
    same = retrieval(image, text.repeat(5, 0), image_ids=np.arange(40), text_image_ids=np.arange(40).repeat(5), ks=(1,))
    width, expected = (
        high - low
        for report in (same, one)
        for low, high in (bounds(row) for row in report.metrics if row.metric == "text_to_image_R@1")
    )
    assert width == pytest.approx(expected, rel=0.1), "the same caption five times says no more than once"
    named = [f"image {number}" for number in range(40)]
    assert retrieval(image, text, image_ids=named, text_image_ids=named, ks=(1,)) == one
