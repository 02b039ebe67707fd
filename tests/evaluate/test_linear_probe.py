"""The linear probe against scikit-learn's logistic regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmcl.errors import UserError
from mmcl.evaluate import linear_probe
from mmcl.evaluate.linear_probe import fit_logistic_regression


def data(rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    label = rng.integers(5, size=rows)
    centre = np.random.default_rng(1).normal(size=(5, 12))
    scale = np.geomspace(0.01, 100, 12)
    return ((centre[label] + 1.5 * rng.normal(size=(rows, 12))) * scale).astype(np.float32), label


@pytest.mark.parametrize("c", [0.001, 0.316, 10.0])
def test_probabilities_equal_scikit_learn(c: float) -> None:
    feature, label = data()
    feature = StandardScaler().fit_transform(feature).astype(np.float64)
    fit = fit_logistic_regression(torch.from_numpy(feature), torch.from_numpy(label), c=c, tolerance=1e-7)
    reference = LogisticRegression(C=c, tol=1e-10, max_iter=10000).fit(feature, label)
    found = (torch.from_numpy(feature) @ fit.weight + fit.bias).softmax(dim=1)
    assert fit.converged
    np.testing.assert_allclose(found, reference.predict_proba(feature), atol=1e-5)
    np.testing.assert_allclose(fit.weight.T, reference.coef_, atol=1e-4)


@pytest.mark.parametrize("names", [np.arange(5), np.array([8, -1, 300, 2, 7])])
def test_every_prediction_equals_scikit_learn(names: np.ndarray) -> None:
    (train, train_label), (test, _) = data(300), data(200)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.316, max_iter=1000, tol=1e-8))
    predicted = reference.fit(train, names[train_label]).predict(test)
    report = linear_probe(train, names[train_label], test, predicted, tolerance=1e-6)
    assert len(set(predicted)) == 5
    assert report["linear_top1"] == 1
    assert report.metrics[0].n == 200


def test_constant_features_are_ignored() -> None:
    (train, train_label), (test, test_label) = data(300), data(200)
    wider = [np.c_[rows, np.full(len(rows), 0.1, np.float32), np.zeros(len(rows), np.float32)] for rows in (train, test)]
    wider[1][:, -2:] += 5  # In the test rows they are not constant, or not the same.
    expected = linear_probe(train, train_label, test, test_label)
    assert linear_probe(wider[0], train_label, wider[1], test_label).metrics == expected.metrics


def test_the_note_says_whether_it_converged() -> None:
    rows = (*data(300), *data(200))
    assert "converged after" in linear_probe(*rows).notes[0]
    assert "did NOT converge (raise max_iter) after 2 steps" in linear_probe(*rows, max_iter=2).notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": np.zeros(300, int)}, "one class only"),
        ({"c": 0.0}, "c must be above 0"),
        ({"max_iter": 0}, "max_iter at least 1"),
        ({"test_emb": np.full((200, 12), np.nan)}, "not finite"),
        ({"test_emb": np.ones((200, 3))}, "same width"),
    ],
)
def test_bad_input_is_a_user_error(change: dict[str, object], message: str) -> None:
    args = dict(zip(("train_emb", "train_labels", "test_emb", "test_labels"), (*data(300), *data(200)), strict=True))
    with pytest.raises(UserError, match=message):
        linear_probe(**(args | change))
