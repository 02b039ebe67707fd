"""The linear probe against scikit-learn's logistic regression."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmcl.errors import UserError
from mmcl.evaluate import linear_probe
from mmcl.evaluate.baselines import PCAPixels
from mmcl.evaluate.evaluators import adamw
from mmcl.evaluate.evaluators.adamw import fit_adamw
from mmcl.evaluate.evaluators.linear_probe import fit_logistic_regression
from mmcl.rng import permutation, sample_seed
from mmcl.testing.patterns import PatternSource
from tests.narrow import present


def data(rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    label = rng.integers(5, size=rows)
    center = np.random.default_rng(1).normal(size=(5, 12))
    scale = np.geomspace(0.01, 100, 12)
    return ((center[label] + 1.5 * rng.normal(size=(rows, 12))) * scale).astype(np.float32), label


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


def test_a_note_says_if_it_did_not_converge() -> None:
    rows = (*data(300), *data(200))
    found = linear_probe(*rows)
    assert not found.notes
    assert "converged after" in found.details["solver: linear_probe, trained"]
    assert "did NOT converge (raise max_iter) after 2 steps" in linear_probe(*rows, max_iter=2).notes[0]


def directions(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Five well separated directions of rows: what AdamW on rows of unit length can learn in a few steps."""
    rng = np.random.default_rng(rows)
    label = rng.integers(5, size=rows)
    return (4 * np.eye(5, 12)[label] + rng.normal(size=(rows, 12))).astype(np.float32), label


@pytest.mark.parametrize("names", [np.arange(5), np.array([8, -1, 300, 2, 7])])
def test_adamw_comes_within_a_point_of_lbfgs_where_classes_are_separate(names: np.ndarray) -> None:
    (train, train_label), (test, test_label), (val, val_label) = directions(600), directions(2000), directions(100)
    rows = train, names[train_label], test, names[test_label]
    solved = present(linear_probe(*rows)["linear_top1"])
    assert solved > 0.95
    short = linear_probe(*rows, solver="adamw")
    assert short["linear_top1"] == pytest.approx(solved, abs=0.01)
    assert "weight decay 0" in short.details["solver: linear_probe, trained"]
    chosen = linear_probe(*rows, solver="adamw", val_emb=val, val_labels=names[val_label])
    assert chosen["linear_top1"] == pytest.approx(solved, abs=0.01)
    assert linear_probe(*rows, solver="adamw").metrics == short.metrics, "the same seed, the same probe"


def test_adamw_is_the_loop_of_clip_benchmark() -> None:
    """Its training loop with our first weights and our order of the rows."""
    feature, label = (torch.from_numpy(array) for array in directions(150))
    found = fit_adamw(feature, label, weight_decay=0.1, lr=0.1, epochs=3, batch_size=64, seed=4)
    torch.manual_seed(sample_seed(4))
    model = torch.nn.Linear(12, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    steps = 9
    for step in range(steps):
        rows = permutation(150, 4, step // 3)[step % 3 * 64 :][:64]
        optimizer.param_groups[0]["lr"] = 0.5 * (1 + np.cos(np.pi * step / steps)) * 0.1
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(feature[rows]), label[rows]).backward()
        optimizer.step()
    torch.testing.assert_close(found.weight, model.weight.detach())


def test_the_weight_decay_with_the_best_validation_accuracy_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fit whose accuracy depends on the decay alone, the search ends at the best of the 97, as a full search does."""
    best, tried = 41, []

    def fit(feature: torch.Tensor, label: torch.Tensor, *, weight_decay: float) -> object:
        tried.append(weight_decay)
        wrong = abs(int(np.searchsorted(adamw.DECAYS, weight_decay)) - best)
        return lambda rows: torch.nn.functional.one_hot((torch.arange(len(rows)) < wrong).long(), 2)

    monkeypatch.setattr(adamw, "fit_adamw", fit)
    rows = torch.zeros(100, 1), torch.zeros(100, dtype=torch.int64)
    assert adamw.choose_weight_decay(rows, rows) == adamw.DECAYS[best]
    assert len(tried) == len(set(tried)) < 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": np.zeros(300, int)}, "one class only"),
        ({"c": 0.0}, "c must be above 0"),
        ({"max_iter": 0}, "max_iter must be above 0"),
        ({"test_emb": np.full((200, 12), np.nan)}, "not finite"),
        ({"test_emb": np.ones((200, 3))}, "same width"),
        ({"solver": "adam"}, "did you mean 'adamw'"),
        ({"solver": "adamw", "c": 1.0}, "c is not an option of the solver adamw"),
        ({"lr": 0.1}, "lr is not an option of the solver lbfgs"),
        ({"val_emb": np.ones((2, 12)), "val_labels": [0, 1]}, "val_emb is not an option of the solver lbfgs"),
        ({"solver": "adamw", "val_emb": np.ones((2, 12))}, "give val_emb and val_labels"),
        ({"solver": "adamw", "val_emb": np.ones((2, 12)), "val_labels": [0, 99]}, "a class that the training rows lack"),
        ({"solver": "adamw", "epochs": 0}, "epochs must be above 0"),
    ],
)
def test_bad_input_is_a_user_error(change: dict[str, Any], message: str) -> None:
    args: dict[str, Any] = dict(
        zip(("train_emb", "train_labels", "test_emb", "test_labels"), (*data(300), *data(200)), strict=True)
    )
    with pytest.raises(UserError, match=message):
        linear_probe(**(args | change))


def rows_of_few(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training rows fewer than their width, and test rows of the same five classes."""
    rng = np.random.default_rng(1)
    center = rng.normal(size=(5, 192))
    labels, other = np.arange(count) % 5, np.arange(200) % 5
    rows = (center[own] + 4 * rng.normal(size=(len(own), 192)) for own in (labels, other))
    train, test = (part.astype(np.float32) for part in rows)
    return train, labels, test, other


def components(bank: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return PCAPixels(bank, lambda _: pixels).encode_image(PatternSource(len(pixels), seed=0))


@pytest.mark.parametrize("count", [10, 30, 50, 60])
def test_the_pca_baseline_of_few_images_is_that_of_scikit_learn(count: int) -> None:
    train, labels, test, other = rows_of_few(count)
    found = linear_probe(components(train, train), labels, components(train, test), other)["linear_top1"]
    reference = make_pipeline(
        PCA(min(50, count - 1)), StandardScaler(), LogisticRegression(C=0.316, max_iter=5000, tol=1e-8)
    ).fit(train.astype(float), labels)
    assert found == pytest.approx(reference.score(test.astype(float), other), abs=0.02)


def test_columns_of_rounding_noise_say_nothing() -> None:
    """A projection of rows that span fewer dimensions has more columns than they fill."""
    train, labels, test, other = rows_of_few(40)
    basis = np.linalg.svd(train - train.mean(0))[2].astype(np.float32)
    expected = linear_probe((train - train.mean(0)) @ basis[:39].T, labels, (test - train.mean(0)) @ basis[:39].T, other)
    noisy = linear_probe((train - train.mean(0)) @ basis.T, labels, (test - train.mean(0)) @ basis.T, other)
    assert noisy["linear_top1"] == pytest.approx(expected["linear_top1"], abs=0.02)
    assert present(noisy["linear_top1"]) > 0.5


@pytest.mark.parametrize("bank", [np.ones((1, 9), np.float32), np.ones((4, 9), np.float32)], ids=["one", "all the same"])
def test_images_without_components_have_a_column_of_zeros(bank: np.ndarray) -> None:
    assert components(bank, bank).tolist() == [[0.0]] * len(bank)


def test_labels_may_be_texts() -> None:
    train, labels, test, other = rows_of_few(40)
    names = np.array(["ant", "bee", "cat", "dog", "elk"])
    assert (
        linear_probe(train, names[labels], test, list(names[other])).metrics == linear_probe(train, labels, test, other).metrics
    )
