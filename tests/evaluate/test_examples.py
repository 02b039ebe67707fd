"""Examples are chosen by rule, their ranks are right, and what shows them is bounded."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS, CachedModel, Task
from mmcl.evaluate.measures.ranking import score_ranks
from mmcl.evaluate.reporting.examples import GROUPS, MOST, choose, first_rank
from mmcl.evaluate.reporting.thumbnails import MAX_BYTES, SIDE, data_uri, from_data_uri, square
from mmcl.testing.patterns import PatternModel, PatternSource
from tests.evaluate.toys import unit


@pytest.mark.parametrize("levels", [3, 10**6])
def test_first_ranks_are_those_of_the_metrics(levels: int) -> None:
    """With many ties, and with none."""
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.integers(levels, size=(40, 30)).astype(np.float32))
    query_ids, key_ids = torch.from_numpy(rng.integers(5, size=40)), torch.from_numpy(np.arange(30) % 5)
    expected = score_ranks(lambda rows: scores[rows], query_ids, key_ids).first()
    np.testing.assert_allclose(first_rank(scores, query_ids[:, None] == key_ids), expected)


def test_best_median_and_worst_are_at_their_places() -> None:
    query, key = (torch.from_numpy(unit((61, 8), seed)) for seed in (0, 1))
    ids = torch.arange(61)
    chosen, considered = choose(query, key, ids, ids, per_group=3)
    rank = first_rank(query.double() @ key.double().T, ids[:, None] == ids)
    ordered = rank.sort().values
    assert considered == 61
    assert [one.group for one in chosen] == [group for group in GROUPS for _ in range(3)]
    shown = {group: sorted(float(rank[one.query]) for one in chosen if one.group == group) for group in GROUPS}
    assert shown["best"] == ordered[:3].tolist()
    assert shown["median"] == ordered[29:32].tolist()
    assert shown["worst"] == ordered[-3:].tolist()
    for one in chosen:
        row, place, score = one.answer
        assert (row, place) == (one.query, float(rank[one.query]))
        assert score == pytest.approx(float(query[row] @ key[row]), abs=1e-6)
        assert [right for _, _, right in one.hits] == [hit == one.query for hit, _, _ in one.hits]
    again, _ = choose(query, key, ids, ids, per_group=3)
    assert again == chosen


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_no_query_is_shown_twice(count: int) -> None:
    rows = torch.from_numpy(unit((count, 4), 0))
    chosen, _ = choose(rows, rows, torch.arange(count), torch.arange(count), per_group=2)
    assert len({one.query for one in chosen}) == len(chosen) == min(count, 6)


def test_queries_without_a_right_candidate_are_left_out() -> None:
    rows = torch.from_numpy(unit((9, 4), 0))
    chosen, considered = choose(rows, rows, torch.arange(9), torch.arange(4, 13), per_group=5)
    assert considered == 5
    assert all(one.query >= 4 for one in chosen)


def test_examples_of_retrieval_have_what_was_asked_and_found() -> None:
    source = PatternSource(36, seed=0)
    report = EVALUATORS["retrieval"](CachedModel(PatternModel()), Task("patterns", source), examples=1)
    by_text, by_image = report.examples
    assert (by_text.candidates, by_image.candidates) == (36, len({source[row].captions[0] for row in range(36)}))
    assert all(query.image is None and all(hit.image for hit in query.hits) for query in by_text.queries)
    assert all(query.image and not any(hit.image for hit in query.hits) for query in by_image.queries)
    for query in (*by_text.queries, *by_image.queries):
        assert [hit.is_right for hit in query.hits] == [hit.text == query.text for hit in query.hits]
        assert (query.answer is None) == any(hit.is_right for hit in query.hits)


def test_examples_of_knn_are_right_where_the_class_is() -> None:
    task = Task("patterns", PatternSource(36, seed=0), PatternSource(60, seed=1))
    (found,) = EVALUATORS["knn"](CachedModel(PatternModel()), task, ks=[1], examples=2).examples
    assert (found.title, found.candidates, found.sampled, len(found.queries)) == ("nearest training images", 60, 36, 6)
    for query in found.queries:
        assert query.image is not None
        assert all(hit.image for hit in query.hits)
        assert [hit.is_right for hit in query.hits] == [hit.text == query.text for hit in query.hits]
    other = replace(task, bank=PatternSource(12, seed=1, labels=False))
    with pytest.raises(UserError, match="has no label"):
        EVALUATORS["knn"](CachedModel(PatternModel()), other, examples=2)


def test_the_number_of_examples_is_bounded() -> None:
    task = Task("patterns", PatternSource(12, seed=0))
    for wrong in (-1, MOST + 1):
        with pytest.raises(UserError, match=rf"retrieval: examples must be from 0 to {MOST}"):
            EVALUATORS["retrieval"](CachedModel(PatternModel()), task, examples=wrong)
    assert not EVALUATORS["retrieval"](CachedModel(PatternModel()), replace(task, figures=False)).examples


@pytest.mark.parametrize("size", [(1, 1), (5000, 3), (3, 5000), (300, 200), (4000, 4000)])
def test_thumbnails_are_small_whatever_the_image(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(256, size=(*size[::-1], 3)).astype(np.uint8)
    uri = data_uri(Image.fromarray(noise))
    assert len(base64.b64decode(uri.partition(",")[2])) <= MAX_BYTES
    shown = from_data_uri(uri)
    assert max(shown.size) <= SIDE
    assert min(shown.size) * 9 > max(shown.size)


def test_what_is_transparent_is_shown_on_white() -> None:
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    assert np.asarray(from_data_uri(data_uri(clear))).min() > 250
    assert np.asarray(square(clear, 16)).min() == 255
    palette = io.BytesIO()
    clear.convert("P").save(palette, "GIF", transparency=0)
    assert np.asarray(square(Image.open(palette), 16)).min() == 255
