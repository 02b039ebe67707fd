"""Hard negatives against a slow loop, and against sentence-transformers on the same rows."""

from __future__ import annotations

import random
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmcl.errors import UserError
from mmcl.search import mining
from mmcl.search.mining import Mined, MiningLimits, mine

QUERIES, KEYS, FAMILIES = 37, 60, 30
Case = dict[str, Any]
CASES: dict[str, Case] = {
    "top": {"relative_margin": None},
    "percentage of the positive": {"relative_margin": 0.05, "number": 2},
    "absolute": {"relative_margin": None, "absolute_margin": 0.1},
    "scores": {"relative_margin": None, "max_score": 0.5, "min_score": 0.2},
    "all": {"relative_margin": 0.2, "absolute_margin": 0.05, "max_score": 0.6, "min_score": 0.0, "range_min": 2},
    "ranks": {"relative_margin": None, "range_min": 3, "range_max": 7, "number": 4},
    "more than there are": {"relative_margin": None, "range_max": 500, "number": 100},
    "none left": {"relative_margin": None, "max_score": -0.9},
}


def rows_of(number: int, seed: int) -> Tensor:
    return normalize(torch.randn(number, 6, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture
def inputs() -> dict[str, Any]:
    """Queries of families, most of one, each with two keys."""
    rng = np.random.default_rng(0)
    query, key = rows_of(QUERIES, 0), rows_of(KEYS, 1)
    family_N = rng.integers(0, FAMILIES, QUERIES)
    pairs = {"family_P": np.repeat(np.arange(FAMILIES), 2), "key_P": rng.permutation(KEYS)}
    own = [pairs["key_P"][pairs["family_P"] == family] for family in family_N]
    positive = np.array([float((key[torch.from_numpy(keys)] @ row).min()) for keys, row in zip(own, query, strict=True)])
    return {"query_NE": query, "key_ME": key, "family_N": family_N, "positive_N": positive.astype(np.float32), **pairs}


def loop(inputs: dict[str, Any], limits: MiningLimits) -> list[list[int]]:
    """The candidates of each query that pass, one at a time."""
    found = []
    for query, family, positive in zip(inputs["query_NE"], inputs["family_N"], inputs["positive_N"], strict=True):
        own = set(inputs["key_P"][inputs["family_P"] == family].tolist())
        passed = []
        for number, key in enumerate(inputs["key_ME"]):
            score = float(query.double() @ key.double())
            refused = number in own
            refused |= limits.max_score is not None and score > limits.max_score
            refused |= limits.min_score is not None and score < limits.min_score
            refused |= limits.absolute_margin is not None and score > positive - limits.absolute_margin
            refused |= limits.relative_margin is not None and score > positive - abs(positive) * limits.relative_margin
            if not refused:
                passed.append((-score, number))
        found.append([number for _, number in sorted(passed)][limits.range_min : limits.range_max])
    return found


def listed(mined: Mined) -> list[list[int]]:
    return [[number for number in row if number >= 0] for row in mined.row_NK.tolist()]


@pytest.mark.parametrize("block", [5, 1000])
@pytest.mark.parametrize("case", CASES)
def test_negatives_are_those_of_a_loop(case: str, block: int, inputs: dict[str, Any]) -> None:
    limits = MiningLimits(**CASES[case])
    expected = loop(inputs, limits)
    with mock.patch.object(mining, "_BLOCK", block):
        mined = mine(**inputs, limits=limits)
    assert listed(mined) == [one[: limits.number] for one in expected]
    score = (inputs["query_NE"] @ inputs["key_ME"].T).numpy()
    for query, row in enumerate(listed(mined)):
        np.testing.assert_allclose(mined.score_NK[query, : len(row)], score[query, row], atol=1e-6)
        assert (mined.score_NK[query, len(row) :] == -np.inf).all()


@pytest.mark.parametrize("case", CASES)
def test_random_negatives_are_some_of_those_that_pass(case: str, inputs: dict[str, Any]) -> None:
    limits = MiningLimits(**CASES[case], strategy="random", seed=3)
    mined = mine(**inputs, limits=limits)
    for found, passed in zip(listed(mined), loop(inputs, limits), strict=True):
        assert len(set(found)) == len(found) == min(len(passed), limits.number)
        assert set(found) <= set(passed)
        assert found == sorted(found, key=passed.index)
    assert listed(mine(**inputs, limits=limits)) == listed(mined)


def test_random_negatives_are_equally_likely() -> None:
    query, key, own = rows_of(1, 0).repeat(3000, 1), rows_of(9, 1), np.arange(3000)
    limits = MiningLimits(number=2, range_min=1, range_max=6, relative_margin=None, strategy="random")
    none = np.zeros(0, np.int64)
    mined = mine(query, key, positive_N=np.ones(3000), family_N=own, family_P=none, key_P=none, limits=limits)
    counts = np.bincount(mined.row_NK.ravel(), minlength=9)
    assert sorted(counts)[:4] == [0] * 4
    assert all(abs(count - 1200) < 120 for count in sorted(counts)[4:])


def test_each_refusal_is_counted_for_the_first_guard(inputs: dict[str, Any]) -> None:
    limits = MiningLimits(range_max=KEYS, absolute_margin=0.3, relative_margin=None, min_score=0.1)
    mined = mine(**inputs, limits=limits)
    score = (inputs["query_NE"] @ inputs["key_ME"].T).numpy()
    is_own = [np.isin(np.arange(KEYS), inputs["key_P"][inputs["family_P"] == one]) for one in inputs["family_N"]]
    near = ~np.stack(is_own) & (score + 0.3 > inputs["positive_N"][:, None])
    far = ~np.stack(is_own) & ~near & (score < 0.1)
    assert mined.candidates == QUERIES * (KEYS - 2)
    assert mined.refused == {"absolute_margin": near.sum(), "relative_margin": 0, "max_score": 0, "min_score": far.sum()}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"number": 0}, "--number is 0: give 1 or more"),
        ({"range_min": -1}, "--range_min is -1: give 0 or more"),
        ({"range_min": 98}, "--range_max 100 leaves 2 candidates after --range_min 98, and --number is 3: raise --range_max"),
    ],
)
def test_limits_that_leave_nothing(given: Case, message: str) -> None:
    with pytest.raises(UserError, match=message):
        MiningLimits(**given)


class FixedRows:
    """A model of sentence-transformers that looks its rows up."""

    device = torch.device("cpu")

    def __init__(self, rows: dict[str, Tensor]):
        self.rows = rows

    def encode(self, texts: list[str], **options: Any) -> np.ndarray:
        return torch.stack([self.rows[text] for text in texts]).numpy()

    encode_query = encode_document = encode

    def similarity(self, a: Any, b: Any) -> Tensor:
        return torch.as_tensor(a) @ torch.as_tensor(b).T

    def similarity_pairwise(self, a: Any, b: Any) -> Tensor:
        return (torch.as_tensor(a) * torch.as_tensor(b)).sum(dim=1)


@pytest.mark.parametrize("case", [name for name in CASES if name not in ("more than there are", "none left")])
def test_negatives_are_those_of_sentence_transformers(case: str) -> None:
    library = pytest.importorskip("sentence_transformers.util", reason="sentence-transformers is not installed")
    from datasets import Dataset

    query, key, own = rows_of(50, 5), rows_of(50, 6), np.arange(50)
    # By default all are candidates: from version 6.3 on, the library looks at one more than it is told.
    limits = MiningLimits(**{"range_max": 50, **CASES[case]})
    positive = (query * key).sum(dim=1).numpy()
    ours = mine(query, key, positive_N=positive, family_N=own, family_P=own, key_P=own, limits=limits)
    names = {"anchor": [f"q{number}" for number in own], "positive": [f"k{number}" for number in own]}
    rows = {**dict(zip(names["anchor"], query, strict=True)), **dict(zip(names["positive"], key, strict=True))}
    random.seed(0)
    theirs = library.mine_hard_negatives(
        Dataset.from_dict(names),
        FixedRows(rows),
        range_min=limits.range_min,
        range_max=limits.range_max,
        max_score=limits.max_score,
        min_score=limits.min_score,
        absolute_margin=limits.absolute_margin,
        relative_margin=limits.relative_margin,
        num_negatives=limits.number,
        output_format="triplet",
        verbose=False,
    )
    found: list[list[int]] = [[] for _ in own]
    for row in theirs:
        found[int(row["anchor"][1:])].append(int(row["negative"][1:]))
    assert found == listed(ours)
