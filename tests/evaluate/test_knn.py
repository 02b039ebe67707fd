"""k-NN against scikit-learn and a loop in float64. Labels that are the reference's predictions must give accuracy 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from mmcl.errors import UserError
from mmcl.evaluate import knn
from tests.evaluate.toys import bounds, unit
from tests.narrow import present


def data(classes: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    center = rng.normal(size=(classes, 6))
    bank_labels, query_labels = rng.integers(classes, size=120), rng.integers(classes, size=80)
    bank, query = (center[own] + 1.5 * rng.normal(size=(len(own), 6)) for own in (bank_labels, query_labels))
    return bank, bank_labels, query, query_labels


def loop(bank: np.ndarray, labels: np.ndarray, query: np.ndarray, k: int, temperature: float | None) -> np.ndarray:
    """The documented rule, vote by vote."""
    bank, query = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (bank, query))
    predicted = []
    for vector in query:
        score = bank @ vector
        nearest = np.argsort(-score, kind="stable")[:k]
        votes: dict[int, float] = {}
        for row in nearest:
            votes[labels[row]] = votes.get(labels[row], 0) + (1 if temperature is None else np.exp(score[row] / temperature))
        predicted.append(max(votes, key=lambda label: votes[label]))
    return np.array(predicted)


@pytest.mark.parametrize("temperature", [None, 0.07, 1.0])
def test_every_prediction_equals_the_loop(temperature: float | None) -> None:
    bank, bank_labels, query, _ = data()
    for k in (1, 2, 5, 20, 120):
        predicted = loop(bank, bank_labels, query, k, temperature)
        assert knn(bank, bank_labels, query, predicted, ks=(k,), temperature=temperature)[f"knn{k}_top1"] == 1
        assert len(set(predicted)) > 1 or k == 120


@pytest.mark.parametrize("k", [1, 3])
def test_equals_scikit_learn_where_no_votes_tie(k: int) -> None:
    bank, bank_labels, query, query_labels = data(classes=2)
    reference = KNeighborsClassifier(k, metric="cosine").fit(bank, bank_labels)
    assert knn(bank, bank_labels, query, reference.predict(query), ks=(k,))[f"knn{k}_top1"] == 1
    assert knn(bank, bank_labels, query, query_labels, ks=(k,))[f"knn{k}_top1"] == reference.score(query, query_labels)


def test_several_ks_equal_one_at_a_time() -> None:
    together = knn(*data(), ks=(20, 1, 5))
    assert [metric.metric for metric in together.metrics] == ["knn1_top1", "knn5_top1", "knn20_top1"]
    for k in (1, 5, 20):
        assert knn(*data(), ks=(k,))[f"knn{k}_top1"] == together[f"knn{k}_top1"]


def test_infinite_temperature_is_the_majority_vote_and_zero_the_nearest() -> None:
    values = [metric.value for metric in knn(*data()).metrics]
    assert [metric.value for metric in knn(*data(), temperature=1e12).metrics] == values
    assert knn(*data(), ks=(20,), temperature=1e-6)["knn20_top1"] == knn(*data(), ks=(1,))["knn1_top1"]


def test_names_of_the_classes_and_chunks_change_nothing() -> None:
    bank, bank_labels, query, query_labels = data()
    expected = knn(bank, bank_labels, query, query_labels)
    names = np.array([7, -3, 10**12, 0])
    assert knn(bank, names[bank_labels], query, names[query_labels]) == expected
    for chunk_size in (1, 33):
        assert knn(bank, bank_labels, query, query_labels, chunk_size=chunk_size) == expected


def test_a_class_that_the_bank_lacks_is_never_right() -> None:
    bank, bank_labels, query, query_labels = data()
    assert knn(bank, bank_labels, query, np.full_like(query_labels, 99))["knn5_top1"] == 0


def test_interval_and_n_are_those_of_the_queries() -> None:
    metric = knn(*data(), ks=(5,)).metrics[0]
    assert metric.n == 80
    low, high = bounds(metric)
    assert low < present(metric.value) < high


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ks": (1, 121)}, "k = 121 is more than the 120 rows of the bank"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"bank_emb": np.full((120, 6), np.inf)}, "not finite"),
        ({"query_emb": unit((80, 5), 0)}, "same width"),
        ({"bank_labels": np.zeros(3, int)}, r"bank_labels must be \[120\]"),
    ],
)
def test_bad_input_is_a_user_error(change: dict[str, Any], message: str) -> None:
    args: dict[str, Any] = dict(zip(("bank_emb", "bank_labels", "query_emb", "query_labels"), data(), strict=True))
    with pytest.raises(UserError, match=message):
        knn(**(args | change))


@pytest.mark.parametrize("kind", [list, np.asarray, lambda names: np.asarray(names, object)], ids=["list", "array", "objects"])
def test_labels_may_be_texts(kind: Callable[[list[str]], Any]) -> None:
    bank, bank_labels, query, query_labels = data()
    named = [kind([f"class {label}" for label in labels]) for labels in (bank_labels, query_labels)]
    assert knn(bank, named[0], query, named[1]) == knn(bank, bank_labels, query, query_labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 120, "bank_labels and query_labels must both be integers or both be texts"),
        ([None] * 120, "bank_labels must be an array of numbers"),
        ([[0]] * 120, r"bank_labels must be \[120\]"),
        (["a", 1] * 60, "bank_labels"),
        ([2**70] * 120, "bank_labels must be an array of numbers"),
    ],
)
def test_invalid_labels_are_user_errors(labels: list[Any], message: str) -> None:
    bank, _, query, query_labels = data()
    with pytest.raises(UserError, match=message):
        knn(bank, labels, query, query_labels)


@pytest.mark.parametrize("scale", [1e-30, 1e-14, 1e25, 1e37])
def test_the_length_of_rows_changes_nothing(scale: float) -> None:
    rng = np.random.default_rng(0)
    bank, query = rng.normal(size=(30, 5)), rng.normal(size=(200, 5))
    labels, truth = rng.integers(0, 3, 30), rng.integers(0, 3, 200)
    assert knn(scale * bank, labels, scale * query, truth) == knn(bank, labels, query, truth)


@pytest.mark.parametrize("ks", [5, None, "15", [1.5], [None], [np.nan], np.array([]), [0]])
def test_invalid_cutoffs_are_user_errors(ks: Any) -> None:
    with pytest.raises(UserError, match="ks must be a list of one or more integers"):
        knn(np.eye(3), [0, 1, 2], np.eye(3), [0, 1, 2], ks=ks)


def test_cutoffs_may_be_an_array() -> None:
    rows, labels = np.eye(3), [0, 1, 2]
    ks: Any = np.array([3, 1, 1])
    assert knn(rows, labels, rows, labels, ks=ks) == knn(rows, labels, rows, labels, ks=(1, 3))
